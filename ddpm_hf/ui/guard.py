"""The door of the server: what a request may be before Gradio sees it, and what an answer may say.

A middleware below Gradio. It knows the routes that the page and the clients use and closes all others; it reads a
body itself, within a size and a time, and looks into it before it hands it on; it counts what every address has open.
Whatever it or Gradio refuses is answered with one line, ``{"detail": ..., "error": ...}``.
"""

import asyncio
import json
import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import anyio
import gradio as gr
from starlette.middleware import Middleware

from ddpm_hf.ui.addresses import address_of
from ddpm_hf.ui.attendance import AttendedQueue
from ddpm_hf.ui.intake import MAX_FILE_BYTES
from ddpm_hf.ui.journal import Journal
from ddpm_hf.ui.sweep import sweep_for_ever

logger = logging.getLogger(__name__)

API = "/gradio_api"

READ = {
    *("/", "/config", "/favicon.ico", "/manifest.json", "/pwa_icon", "/robots.txt", "/theme.css"),
    *(f"{API}/{name}" for name in ("app_id", "info", "openapi.json", "queue/data", "queue/status")),
    *(f"{API}/{name}" for name in ("startup-events", "theme.css", "upload_progress")),
}
READ_BELOW = (
    *("/assets/", "/static/", "/svelte/", "/pwa_icon/"),
    *(f"{API}/{name}" for name in ("call/", "file=", "heartbeat/", "mcp")),
)
SEND = {f"{API}/{name}" for name in ("cancel", "component_server", "queue/join", "reset", "upload")}
SEND_BELOW = tuple(f"{API}/{name}" for name in ("api/", "call/", "mcp", "run/"))
DELETE_BELOW = (f"{API}/mcp",)  # how a client ends its MCP session

SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Bounds:
    """What one request, and what one address, may take."""

    upload_bytes: int = MAX_FILE_BYTES + 65_536
    upload_files: int = 4
    json_bytes: int = MAX_FILE_BYTES * 4 // 3 + 65_536  # a picture as a data URL
    small_json_bytes: int = 16_384
    json_depth: int = 16
    json_values: int = 20_000
    body_seconds: float = 60.0
    body_pause_seconds: float = 10.0
    stall_seconds: float = 10.0  # how long a reader may leave its stream unread
    open_of_address: int = 64  # requests and streams
    buffered_bytes: int = 64_000_000
    buffered_bytes_of_address: int = 16_000_000
    calls: int = 32  # of functions outside the queue, at once
    calls_of_address: int = 8
    posts_a_second: float = 50.0
    posts_in_a_burst: float = 300.0


class Refused(Exception):
    """A request that is not let through. The message is the visitor's."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Gone(Exception):
    """The other side has left, or no longer reads."""


@dataclass
class Gate:
    """What the middleware shares with the process around it."""

    queue: AttendedQueue
    journal: Journal
    bounds: Bounds = field(default_factory=Bounds)
    closing: bool = False
    started: float = field(default_factory=time.monotonic)

    def launch_options(self) -> dict:
        """For ``Blocks.launch``: the middleware, and the tidying that goes on while the server runs."""
        return {"app_kwargs": {"middleware": [Middleware(Guard, gate=self)], "lifespan": self._lifespan}}

    def close(self):
        """From now on new jobs are refused, and /healthz says so."""
        self.closing = self.queue.closing = True

    def health(self) -> dict:
        """What /healthz answers."""
        return {
            "status": "closing" if self.closing else "ok",
            "uptime_seconds": round(time.monotonic() - self.started),
            "jobs": len(self.queue.jobs()),
            "readers": sum(self.queue.readers.values()),
        }

    @asynccontextmanager
    async def _lifespan(self, _app):
        tasks = [asyncio.create_task(work) for work in (self.queue.tidy_for_ever(), sweep_for_ever())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


class Guard:
    """The ASGI middleware."""

    def __init__(self, app, gate: Gate):
        self.app, self.gate, self.bounds = app, gate, gate.bounds
        self.open = Counter()
        self.buffers = Shares(gate.bounds.buffered_bytes, gate.bounds.buffered_bytes_of_address)
        self.calls = Shares(gate.bounds.calls, gate.bounds.calls_of_address)
        self.allowances = Allowances(gate.bounds.posts_a_second, gate.bounds.posts_in_a_burst)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope, receive, send):
        request_id = uuid.uuid4().hex
        address = scope["ddpm_hf.address"] = address_of(scope)
        answer = Answer(scope, send, request_id, self.bounds.stall_seconds)
        self.open[address] += 1
        try:
            await self._admit(scope, receive, answer, address)
        except Refused as refusal:
            await answer.refuse(refusal.status, refusal.message)
        except Gone:
            pass
        except Exception:
            logger.exception("request %s failed", request_id)
            await answer.refuse(500, f"The server failed on this request; its number in the log is {request_id}.")
        finally:
            self.open[address] -= 1
            if not self.open[address]:
                del self.open[address]
            if answer.refusal:
                status, message = answer.refusal
                self.gate.journal.refusal(request_id, status, scope["method"], scope["path"], message, address)

    async def _admit(self, scope, receive, answer: "Answer", address: str):
        path = scope["path"].rstrip("/") or "/"
        method = scope["method"]
        if path == "/healthz" and method in ("GET", "HEAD"):
            await answer.json(503 if self.gate.closing else 200, self.gate.health())
            return
        check_route(method, path)
        if self.open[address] > self.bounds.open_of_address and not path.startswith(("/assets", "/static", "/svelte")):
            raise Refused(429, f"Your address has {self.bounds.open_of_address} connections open: close some first.")
        if method == "POST":
            if not self.allowances.take(address):
                raise Refused(429, "Your address sends too many requests: wait a few seconds.")
            async with self._body(scope, receive, path, address) as replay:
                if path == f"{API}/component_server":
                    with self.calls.held(address, 1):
                        await self._while_there(scope, receive, replay, answer)
                else:
                    await self.app(scope, replay, answer.send)
        elif session := self._session_of_stream(scope, path):
            await self._stream(scope, receive, answer, session)
        else:
            await self.app(scope, receive, answer.send)

    async def _while_there(self, scope, receive, replay, answer: "Answer"):
        """Answer a call, and give it up when the caller leaves: it may be waiting for the model."""

        async def watch():
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await self.app(scope, replay, answer.send)
            group.cancel_scope.cancel()

    # ---- streams

    def _session_of_stream(self, scope, path: str) -> str | None:
        """The session whose job messages this request is going to read; None if it is not such a request."""
        queue = self.gate.queue
        if path == f"{API}/queue/data":
            session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[-1]
            known = session in queue.pending_messages_per_session
        elif path.startswith(f"{API}/call/"):
            session = queue.session_of(path.rpartition("/")[2])
            known = session is not None
        else:
            return None
        if not known:
            raise Refused(404, "There is no such request, or its answer has been fetched: send it again.")
        return session

    async def _stream(self, scope, receive, answer: "Answer", session: str):
        queue = self.gate.queue
        queue.opened(session)
        try:
            await self.app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if not answer.stalled:
                raise
        except KeyError:  # Gradio forgets a session at each of its readers that leaves, and stumbles at the second
            logger.debug("a stream ended twice")
        finally:
            await queue.closed(session, ended=answer.ended)

    # ---- bodies

    @asynccontextmanager
    async def _body(self, scope, receive, path: str, address: str) -> AsyncIterator:
        """A ``receive`` that gives out a body which has been read whole and looked into."""
        headers = dict(scope["headers"])
        limit = self._limit(path)
        with self.buffers.held(address, self._claimed(headers, limit)):
            body = await self._read(receive, limit)
            check_body(path, headers.get(b"content-type", b""), body, self.bounds, self.gate.queue.blocks)
            yield replayed(body, receive)

    def _limit(self, path: str) -> int:
        if path == f"{API}/upload":
            return self.bounds.upload_bytes
        return self.bounds.small_json_bytes if path in (f"{API}/cancel", f"{API}/reset") else self.bounds.json_bytes

    def _claimed(self, headers: dict, limit: int) -> int:
        """How many bytes the body is said to have, or the most it may have."""
        if b"content-encoding" in headers:
            raise Refused(415, "Send the body as it is, not compressed.")
        length = headers.get(b"content-length")
        if length is None:
            return limit if b"transfer-encoding" in headers else 0
        if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > limit:
            raise too_large(limit)
        return int(length)

    async def _read(self, receive, limit: int) -> bytes:
        body, deadline = bytearray(), time.monotonic() + self.bounds.body_seconds
        while True:
            patience = min(self.bounds.body_pause_seconds, deadline - time.monotonic())
            try:
                with anyio.fail_after(max(patience, 0.01)):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, "The request came too slowly: send it again.") from None
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_large(limit)
            if not message.get("more_body"):
                return bytes(body)


def too_large(limit: int) -> Refused:
    size = f"{limit / 1e6:.1f} MB" if limit >= 1e6 else f"{limit / 1e3:.0f} kB"
    return Refused(413, f"The request is too large: at most {size} are allowed, make it smaller.")


def replayed(body: bytes, receive):
    """A ``receive`` that gives ``body`` and then what comes after it."""
    sent = False

    async def replay():
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


# ---- checks that look only at the request


def check_route(method: str, path: str):
    """Refuse what neither the page nor a client asks for."""
    exact, below = {
        "GET": (READ, READ_BELOW),
        "HEAD": (READ, READ_BELOW),
        "POST": (SEND, SEND_BELOW),
        "DELETE": (frozenset(), DELETE_BELOW),
        "OPTIONS": (READ | SEND, READ_BELOW + SEND_BELOW),
    }.get(method, (None, ()))
    if exact is None:
        raise Refused(405, "There is no such method here: use GET or POST.")
    if (path not in exact and not path.startswith(below)) or "/../" in path:
        raise Refused(404, "There is nothing at this address: the page is at /, its API at /?view=api.")
    if path.startswith(f"{API}/file=") and re.match(r"[a-z][a-z0-9+.-]*:", path[len(f"{API}/file=") :], re.IGNORECASE):
        raise Refused(403, "Files of other servers are not fetched.")
    if path.startswith(f"{API}/heartbeat/") and not SESSION.fullmatch(path.rpartition("/")[2]):
        raise Refused(400, "A session is named by up to 64 letters, digits, - and _.")


def check_body(path: str, content_type: bytes, body: bytes, bounds: Bounds, page: gr.Blocks):
    """Refuse a body that Gradio would stumble over, or that would make it fetch or keep something."""
    kind = content_type.split(b";")[0].strip().lower()
    if path == f"{API}/upload":
        if kind != b"multipart/form-data":
            raise Refused(415, "Send a file as multipart/form-data.")
        files = len(re.findall(rb"filename\*?\s*=", body))
        if not 1 <= files <= bounds.upload_files:
            raise Refused(400, f"Send 1 to {bounds.upload_files} files at a time, not {files}.")
        return
    if path.startswith(f"{API}/mcp"):
        parsed(body, bounds)
        return
    if kind != b"application/json":
        raise Refused(415, "Send JSON, with the header 'Content-Type: application/json'.")
    values = parsed(body, bounds)
    if not isinstance(values, dict):
        raise Refused(400, 'The body must be a JSON object, such as {"data": [4]}.')
    if path == f"{API}/component_server":
        check_component_call(values, page)
        return
    check_fields(path, values)
    if path == f"{API}/reset":
        return
    function = function_of(path, values, page)
    if path.startswith(f"{API}/call/v2/"):
        endpoints = page.get_api_info()["named_endpoints"]
        check_arguments(values, endpoints.get(f"/{function.api_name}", {}).get("parameters", []))
    elif path != f"{API}/cancel":
        check_number_of_data(values.get("data"), function)


def parsed(body: bytes, bounds: Bounds):
    """A JSON value of bounded depth and number of parts, none of which makes Gradio fetch a file from elsewhere."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON.") from None
    level, depth, count = [value], 0, 0
    while level:
        depth += 1
        inside = []
        for part in level:
            if isinstance(part, dict):
                check_file(part)
                inside += part.values()
            elif isinstance(part, list):
                inside += part
        count += len(inside)
        if depth > bounds.json_depth or count > bounds.json_values:
            raise Refused(400, f"The JSON is nested deeper than {bounds.json_depth}, or of too many values.")
        level = inside
    return value


def check_file(part: dict):
    """Gradio downloads the file of a dict with an address for a path."""
    where = part.get("path")
    if isinstance(where, str) and re.match(r"\s*(?!data:)[a-z][a-z0-9+.-]*:", where, re.IGNORECASE):
        raise Refused(400, "Send the picture itself, not its address.")


def check_fields(path: str, values: dict):
    """The fields around the data. The data themselves are checked by the handlers, see limits.py."""
    check_session(values.get("session_hash"), needed=path in (f"{API}/queue/join", f"{API}/cancel"))
    for name in ("batched", "simple_format", "oauth_token", "request"):
        if values.get(name):
            raise Refused(400, f"The field {name} is not taken here.")


def check_session(session, *, needed: bool):
    if session is None and needed:
        raise Refused(400, "The field session_hash is missing.")
    if session is not None and not (isinstance(session, str) and SESSION.fullmatch(session)):
        raise Refused(400, "session_hash must be a text of up to 64 letters, digits, - and _.")


def function_of(path: str, values: dict, page: gr.Blocks):
    """The function of the page that a request calls or cancels."""
    name = path.rpartition("/")[2]
    number = values.get("fn_index")
    if number is None and path not in (f"{API}/queue/join", f"{API}/cancel"):
        found = [function for function in page.fns.values() if function.api_name == name]
    elif isinstance(number, int) and not isinstance(number, bool):
        found = [page.fns[number]] if number in page.fns else []
    else:
        raise Refused(400, "fn_index must be a whole number, the number of a function of the page.")
    if not found or found[0].fn is None:
        raise Refused(404, "There is no such function: see /?view=api for those there are.")
    return found[0]


def check_number_of_data(data, function):
    if not isinstance(data, list):
        raise Refused(400, "The field data must be a list with one value for every input.")
    wanted = {len(function.inputs), sum(not block.skip_api for block in function.inputs)}
    if len(data) not in wanted:
        raise Refused(400, f"The field data must have {min(wanted)} values, not {len(data)}: see /?view=api.")


def check_arguments(values: dict, parameters: list[dict]):
    """Of a call with an object of named arguments."""
    known = [parameter["parameter_name"] for parameter in parameters]
    for name in values:
        if name not in known:
            raise Refused(400, f"There is an argument that this endpoint does not take; it takes {', '.join(known)}.")
    for parameter in parameters:
        if not parameter["parameter_has_default"] and parameter["parameter_name"] not in values:
            raise Refused(400, f"The argument {parameter['parameter_name']} is missing.")


def check_component_call(values: dict, page: gr.Blocks):
    """A call of a component's own method on the server."""
    check_session(values.get("session_hash"), needed=True)
    number, name = values.get("component_id"), values.get("fn_name")
    component = page.blocks.get(number) if isinstance(number, int) else None
    if not isinstance(name, str) or not getattr(getattr(component, name, None), "_is_server_fn", False):
        raise Refused(404, "There is no such function of a component.")


# ---- answers


class Answer:
    """What goes back. An error of whatever origin becomes one line; a stream that nobody reads comes to an end.

    Attributes:
        ended: the answer has been sent whole. stalled: it was not taken, and the task is cancelled.
        refusal: the status and the line of an answer that was an error.
    """

    def __init__(self, scope, send, request_id: str, stall_seconds: float):
        self._scope, self._send, self._request_id, self._stall_seconds = scope, send, request_id, stall_seconds
        self._started, self._held, self._held_body = False, None, b""
        self._task = asyncio.current_task()
        self.ended, self.stalled, self.refusal = False, False, None

    async def send(self, message):
        """The ``send`` that Gradio gets."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._held = message
                return
            self._started = True
            await self._pass({**message, "headers": [*message["headers"], *self._headers()]})
        elif self._held is not None:
            self._held_body = (self._held_body + message.get("body", b""))[:65_536]
            if not message.get("more_body"):
                await self.refuse(self._held["status"], line_of(self._held["status"], self._held_body))
        else:
            await self._pass(message)
            self.ended = not message.get("more_body")

    async def _pass(self, message):
        if self.stalled:
            return
        try:
            with anyio.fail_after(self._stall_seconds):
                await self._send(message)
        except TimeoutError:
            self.stalled = True
            self._task.cancel()

    async def refuse(self, status: int, message: str):
        """One line instead of an answer, unless one has begun."""
        if self._started:
            return
        self.refusal = status, message
        more = [(b"connection", b"close")] if status == 408 else []
        if status in (429, 503):
            more.append((b"retry-after", b"5"))
        await self.json(status, {"detail": message, "error": message}, more)

    async def json(self, status: int, value: dict, headers=()):
        self._started = True
        body = json.dumps(value).encode()
        described = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        start = {"status": status, "headers": [*described, (b"cache-control", b"no-store"), *headers, *self._headers()]}
        await self._pass({"type": "http.response.start", **start})
        content = b"" if self._scope["method"] == "HEAD" else body
        await self._pass({"type": "http.response.body", "body": content, "more_body": False})
        self.ended = True

    def _headers(self) -> list[tuple[bytes, bytes]]:
        """A page of a Space is shown inside one of huggingface.co, and of others: only elsewhere are frames refused."""
        policy = b"object-src 'none'; base-uri 'self'; form-action 'self'"
        if not os.environ.get("SPACE_ID"):
            policy += b"; frame-ancestors 'self'"
        return [
            (b"x-request-id", self._request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"strict-origin-when-cross-origin"),
            (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
            (b"content-security-policy", policy),
        ]


LINES = {
    400: "The server cannot read this request.",
    401: "This needs a login, which there is none for.",
    403: "This file is not for visitors.",
    404: "There is nothing at this address: the page is at /, its API at /?view=api.",
    405: "This address does not take such a request: see /?view=api.",
    413: "The request is too large.",
    422: "The request lacks a field or has one of the wrong type: see /?view=api.",
    503: "The server is busy: try again in a minute.",
}


def line_of(status: int, body: bytes) -> str:
    """What an error of Gradio's may tell: its own line, if that is one and names no place on the server."""
    try:
        said = json.loads(body)
        said = said.get("detail") or said.get("error") if isinstance(said, dict) else None
    except ValueError:
        said = None
    is_line = isinstance(said, str) and 0 < len(said) <= 300 and said.isprintable()
    if is_line and status in (400, 429, 503) and not re.search(r"[/\\<>]|\.py|Error\b", said):
        return said
    return LINES.get(status, "The server failed on this request." if status >= 500 else LINES[400])


class Shares:
    """An amount that all addresses together may hold, and how much of it each."""

    def __init__(self, total: int, each: int):
        self._total, self._each = total, each
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, address: str, amount: int):
        """Hold ``amount`` for a while, or raise Refused."""
        if self._held.total() + amount > self._total or self._held[address] + amount > self._each:
            raise Refused(429, "Too many requests of this kind at once: send one after the other.")
        self._held[address] += amount
        try:
            yield
        finally:
            self._held[address] -= amount
            if not self._held[address]:
                del self._held[address]


class Allowances:
    """A number of requests for each address that fills up again with time (a token bucket)."""

    def __init__(self, a_second: float, burst: float):
        self._a_second, self._burst = a_second, burst
        self._left: dict[str, tuple[float, float]] = {}  # address -> (left, at)

    def take(self, address: str) -> bool:
        """Whether this address may send one more."""
        now = time.monotonic()
        left, at = self._left.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._a_second)
        self._left[address] = (max(left - 1, 0.0), now)
        if len(self._left) > 10_000:
            del self._left[next(iter(self._left))]  # the one that has been quiet for longest
        return left >= 1
