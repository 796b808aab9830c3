"""The server: the page at /, its stream of runs and its questions below /page, and the API of Gradio.

The page's script (static/wire.js) sends JSON objects with the name of its session, which guard.py has read and checked.
Answers are JSON objects too; a mistake of the visitor's is an answer, ``{"error": one line}``: browsers log an
error status to the console.
"""

import base64
import gzip
import importlib.util
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from html import escape
from pathlib import Path
from string import Template

import anyio.to_thread
import gradio as gr
import httpx
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse

from ddpm_hf.errors import UserError
from ddpm_hf.ui.api import STREAMS, Api, sentence
from ddpm_hf.ui.attendance import MAX_CALLS
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.exports import export, settings_of_png
from ddpm_hf.ui.forward import forward_process
from ddpm_hf.ui.guard import API, PAGE, Endpoint, Gate, Guard
from ddpm_hf.ui.links import SNIPPETS, SNIPPETS_OF_STARTS, query_of, settings_of_query, snippet
from ddpm_hf.ui.runs import Engine
from ddpm_hf.ui.zero import has_zero_gpu

STATIC = Path(__file__).parent / "static"
TITLE = "Noise, becoming pictures"
MEDIA_TYPES = {"png": "image/png", "gif": "image/gif", "webp": "image/webp", "mp4": "video/mp4"}
STYLES = ("page", "form", "stage", "compare", "forward", "theory", "takeaway")  # in this order
SUFFIXES = {".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_URL = 500  # characters


def build_server(engine: Engine, name: str, gate: Gate) -> gr.Server:
    """The server, to be launched with ``launch_options()``. name: how the page calls the first model."""
    server = gr.Server(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None)
    server.add_middleware(Guard, gate=gate)
    server.add_exception_handler(UserError, _mistake)
    Api(server, engine, gate.attendance, gate.journal)
    _add_page(server, engine, name)
    _add_runs(server, engine, gate)
    for answer in (_model, _noise, _take_away, _export, _restore):
        _add_question(server, engine, answer)
    return server


def launch_options() -> dict:
    """For ``gr.Server.launch``: what it may give away, and how much it may take."""
    return {
        "max_threads": MAX_CALLS,  # so that no call waits in Gradio's queue
        "state_session_capacity": 500,  # Gradio keeps 10,000
        "show_error": False,  # Gradio would show a stranger paths of the server
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": importlib.util.find_spec("mcp") is not None,  # the endpoints as tools, where its package is
        "enable_monitoring": False,
    }


def read_endpoints(url: str) -> dict[int, Endpoint]:
    """The API's endpoints by Gradio's number, as the server at ``url`` tells them to everybody."""
    config = httpx.get(f"{url.rstrip('/')}/config", timeout=60).raise_for_status().json()
    about = httpx.get(f"{url.rstrip('/')}{API}/info", timeout=60).raise_for_status().json()["named_endpoints"]
    found = {}
    for function in config["dependencies"]:
        known = about.get(f"/{function['api_name']}", {}).get("parameters")
        parameters = known or [{"parameter_name": str(i)} for i in range(len(function["inputs"]))]
        pairs = tuple((one["parameter_name"], one.get("parameter_has_default", False)) for one in parameters)
        found[function["id"]] = Endpoint(function["api_name"], pairs)
    return found


def _mistake(_request: Request, error: UserError) -> JSONResponse:
    return JSONResponse({"error": sentence(str(error))})


# ---- the page


def _add_page(server: gr.Server, engine: Engine, name: str):
    about = {"name": name, "zero_gpu": has_zero_gpu(), "description": describe(engine)}
    # in a script, where only this could end it
    data = json.dumps(about, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    modules = sorted(path.name for path in STATIC.glob("*.js") if path.name != "api.js")
    texts = {
        "title": TITLE,
        "name": escape(name),
        "about": data,
        "style": "".join((STATIC / f"{style}.css").read_text() for style in STYLES),
        "preloads": "\n".join(f'<link rel="modulepreload" href="page/{module}">' for module in modules),
    }
    page, api = (_page(file, texts) for file in ("index", "api"))

    async def front(request: Request) -> Response:
        plain, zipped = api if request.query_params.get("view") == "api" else page
        headers = {"cache-control": "no-cache", "vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return HTMLResponse(zipped, headers={**headers, "content-encoding": "gzip"})
        return HTMLResponse(plain, headers=headers)

    async def part(request: Request) -> Response:
        file = STATIC / request.path_params["file"]
        if file.parent != STATIC or file.suffix not in SUFFIXES or not file.is_file():
            return JSONResponse({"detail": "There is no such file."}, 404)
        # asked for again each time, and answered by the file's tag alone where it is still the same
        return FileResponse(file, media_type=SUFFIXES[file.suffix], headers={"cache-control": "no-cache"})

    server.add_route("/", front, ["GET", "HEAD"])
    server.add_route(f"{PAGE}/{{file}}", part, ["GET", "HEAD"])


def _page(name: str, texts: dict) -> tuple[bytes, bytes]:
    """A page as it is, and gzipped."""
    page = Template((STATIC / f"{name}.html").read_text()).substitute(texts).encode()
    return page, gzip.compress(page)


# ---- runs


def _add_runs(server: gr.Server, engine: Engine, gate: Gate):
    """POST {"what": a name of ``STREAMS``, "values", "session"} -> a stream of events, as ``_events``."""

    async def run(request: Request) -> Response:
        asked, address = request.scope["ddpm_hf.values"], request.scope["ddpm_hf.address"]
        what, values = asked.get("what"), asked.get("values")
        if not isinstance(what, str) or what not in STREAMS or not isinstance(values, dict):
            return JSONResponse({"detail": "The page and the server do not match: reload the page."}, 400)
        return StreamingResponse(
            _events(engine, gate, what, values, asked["session"], address),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    server.add_route(f"{PAGE}/run", run, ["POST"])


async def _events(
    engine: Engine, gate: Gate, what: str, values: dict, session: str, address: str
) -> AsyncIterator[str]:
    """Events of a run: the first value, then what changes of it, at least every second; or {"error": one line}."""
    before = {}
    try:
        with gate.journal.job(what, values, address) as entry:
            async with aclosing(STREAMS[what](engine, values, session, address)) as stream:
                async for value in stream:
                    entry.began()
                    entry.request, entry.outcome = value["run"], value["state"]
                    yield _event({key: part for key, part in value.items() if before.get(key) != part})
                    before = {**value, "frames": {}}
    except UserError as error:
        yield _event({"error": sentence(str(error))})
    except Exception:
        yield _event({"error": "The server failed on this run; the details are in its log."})
        raise


def _event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


# ---- questions with one answer each


def _add_question(server: gr.Server, engine: Engine, answer):
    async def ask(request: Request) -> JSONResponse:
        return JSONResponse(await answer(engine, request.scope["ddpm_hf.values"], request.scope["ddpm_hf.address"]))

    server.add_route(f"{PAGE}/{answer.__name__[1:]}", ask, ["POST"])


async def _model(engine: Engine, values: dict, _address: str) -> dict:
    """{"model"} -> what the controls need to know of it; loads it."""
    return await anyio.to_thread.run_sync(describe, engine, engine.models.check(values.get("model")))


async def _noise(engine: Engine, values: dict, _address: str) -> dict:
    """{"image": data URL, or "example": its number, "t", "seed", "model"} -> as ``forward_process``."""
    image = values["image"] if "image" in values else {"example": values.get("example")}
    rest = (values.get("t"), values.get("seed", 0), values.get("model"))
    return await anyio.to_thread.run_sync(forward_process, engine, image, *rest)


async def _take_away(engine: Engine, values: dict, _address: str) -> dict:
    """{"settings", "url": of the page} -> {"link", "snippets": code by kind, "settings"}."""
    url = values.get("url")
    if not isinstance(url, str) or len(url) > MAX_URL or not url.startswith(("http://", "https://")):
        raise UserError("the address of the page is not one.")
    return await anyio.to_thread.run_sync(_links, engine, _dict(values.get("settings")), url)


def _links(engine: Engine, settings: dict, url: str) -> dict:
    checked = settings_of_query(engine, query_of(settings))
    kinds = SNIPPETS_OF_STARTS if "t" in checked else SNIPPETS
    code = {kind: snippet(engine, checked, kind, url) for kind in kinds}
    # a picture is not for servers: it goes behind the name of the tab
    place = "" if "t" not in checked else "#forward"
    return {"link": f"{url}{place}?{query_of(checked)}", "snippets": code, "settings": checked}


async def _export(engine: Engine, values: dict, address: str) -> dict:
    """{"settings", "kind", "image": number of one, if not all} -> {"name", "type", "data": in base64}."""
    settings, kind = _dict(values.get("settings")), values.get("kind")
    content = await export(engine, settings, kind, values["session"], address, values.get("image"))
    seed = settings.get("seed", 0) + (values.get("image") or 0)
    name = f"{engine.models.check(settings.get('model')).rpartition('/')[2]}-{seed}.{kind}"
    return {"name": name, "type": MEDIA_TYPES[kind], "data": base64.b64encode(content).decode("ascii")}


async def _restore(engine: Engine, values: dict, _address: str) -> dict:
    """{"file": data URL of a PNG from here, or "query": of a link} -> {"settings"}."""
    if "query" in values:
        return {"settings": await anyio.to_thread.run_sync(settings_of_query, engine, values["query"])}
    return {"settings": await anyio.to_thread.run_sync(settings_of_png, engine, values.get("file"))}


def _dict(values) -> dict:
    if not isinstance(values, dict):
        raise UserError("the page and the server do not match: reload the page.")
    return values
