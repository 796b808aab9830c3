"""What the page's script asks of the server in between the runs: small questions with one answer each.

Gradio calls these functions outside its queue, and shows no errors of theirs: a mistake is an answer, ``{"error"}``.
"""

import base64
import functools
from collections.abc import Awaitable, Callable

import anyio.to_thread
import gradio as gr

from ddpm_hf.errors import UserError
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.exports import export, settings_of_png
from ddpm_hf.ui.forward import forward_process
from ddpm_hf.ui.links import SNIPPETS, query_of, settings_of_query, snippet
from ddpm_hf.ui.runs import Engine, one_line_errors

MEDIA_TYPES = {"png": "image/png", "gif": "image/gif", "webp": "image/webp", "mp4": "video/mp4"}
MAX_URL = 500  # characters


def page_functions(engine: Engine) -> list[Callable[[dict], Awaitable[dict]]]:
    """The functions for ``gr.HTML(server_functions=...)``; the script calls them by their names."""

    @_answering
    async def describe_model(values: dict) -> dict:
        """{"model"} -> what the controls need to know of it; loads it."""
        with one_line_errors():
            name = engine.models.check(values.get("model"))
        return await anyio.to_thread.run_sync(describe, engine, name)

    @_answering
    async def noise(values: dict) -> dict:
        """{"image": data URL, or "example": its number, "t", "seed", "model"} -> as ``forward_process``."""
        image = values["image"] if "image" in values else {"example": values.get("example")}
        rest = (values.get("t"), values.get("seed", 0), values.get("model"))
        return await anyio.to_thread.run_sync(forward_process, engine, image, *rest)

    @_answering
    async def take_away(values: dict) -> dict:
        """{"settings", "url": of the page} -> {"link", "snippets": code by kind, "settings"}."""
        url, settings = _url(values.get("url")), values.get("settings")
        return await anyio.to_thread.run_sync(_links, engine, settings, url)

    @_answering
    async def export_run(values: dict, request: gr.Request) -> dict:
        """{"settings", "kind", "image": number of one, if not all} -> {"name", "type", "data": in base64}."""
        settings, kind = _dict(values.get("settings")), values.get("kind")
        part = {} if values.get("image") is None else {"image": values["image"]}
        content = await export(engine, {**settings, **part}, kind, await _session_of_call(request))
        seed = settings.get("seed", 0) + (values.get("image") or 0)
        name = f"{engine.models.check(settings.get('model')).rpartition('/')[2]}-{seed}.{kind}"
        return {"name": name, "type": MEDIA_TYPES[kind], "data": base64.b64encode(content).decode("ascii")}

    @_answering
    async def restore(values: dict) -> dict:
        """{"file": data URL of a PNG from here, or "query": of a link} -> {"settings"}."""
        if "query" in values:
            return {"settings": await anyio.to_thread.run_sync(settings_of_query, engine, values["query"])}
        return {"settings": await anyio.to_thread.run_sync(settings_of_png, engine, values.get("file"))}

    @_answering
    async def frames(values: dict) -> dict:
        """{"run": id, "lane", "indices"} -> {"frames": by index}: of a finished run, as many as one answer may hold."""
        return {"frames": engine.frames(values.get("run"), values.get("lane"), values.get("indices"))}

    return [describe_model, noise, take_away, export_run, restore, frames]


def _answering(function):
    """``function`` whose mistakes of the visitor's are answers; what it is given may be of any type."""

    @functools.wraps(function)
    async def answer(values, *request):
        try:
            with one_line_errors():
                return await function(_dict(values), *request)
        except gr.Error as error:
            return {"error": error.message}

    return answer


async def _session_of_call(request) -> str:
    """Who asks. Gradio hands such a function the bare request, which has been read and remembers its body."""
    return str((await request.json()).get("session_hash") or "")


def _dict(values) -> dict:
    if not isinstance(values, dict):
        raise UserError("the page and the server do not understand each other: reload the page.")
    return values


def _url(url) -> str:
    if not isinstance(url, str) or len(url) > MAX_URL or not url.startswith(("http://", "https://")):
        raise UserError("the address of the page is not one.")
    return url


def _links(engine: Engine, settings, url: str) -> dict:
    query = query_of(_dict(settings))
    checked = settings_of_query(engine, query)
    code = {kind: snippet(engine, checked, kind, url) for kind in SNIPPETS}
    return {"link": f"{url}?{query_of(checked)}", "snippets": code, "settings": checked}
