"""The door of the server: what a request may be before it is answered, and what an answer may say.

A middleware below Gradio. It knows the routes of the page and of the API, and closes all others; it reads a body
itself, within a size and a time, and looks into it before it hands it on; it counts what every address has open.
A refused request gets a one-line answer, ``{"detail": ..., "error": ...}``.
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

from ddpm_hf.ui.addresses import address_of, checked_headers
from ddpm_hf.ui.attendance import Attendance, Call
from ddpm_hf.ui.bodies import BodyBounds, Gone, Refused, claimed, json_value, read, replayed
from ddpm_hf.ui.intake import MAX_FILE_BYTES
from ddpm_hf.ui.journal import Journal
from ddpm_hf.ui.limits import DISK_FULL, is_disk_full

logger = logging.getLogger(__name__)

PAGE = "/page"
API = "/gradio_api"
START = f"{API}/startup-events"  # starts Gradio's queue

READ = {
    *("/", "/config", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *(f"{API}/{name}" for name in ("app_id", "info", "openapi.json", "queue/data", "queue/status", "startup-events")),
}
READ_BELOW = (f"{PAGE}/", *(f"{API}/{name}" for name in ("call/", "heartbeat/", "mcp")))
SEND = {f"{API}/{name}" for name in ("cancel", "queue/join", "reset")}
SEND_BELOW = (f"{PAGE}/", *(f"{API}/{name}" for name in ("call/", "mcp")))
DELETE_BELOW = (f"{API}/mcp",)  # how a client ends its MCP session

# where a body may be large, for one picture as a data URL
TAKES_PICTURE = {
    *(f"{API}/{name}" for name in ("call/page_run", "queue/join")),
    *(f"{API}/call{version}/{name}" for version in ("", "/v2") for name in ("noise", "vary")),
    *(f"{PAGE}/{name}" for name in ("run", "noise", "restore", "take_away", "export")),
}

SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Bounds(BodyBounds):
    """What one request, and what one address, may take. A classroom has one address."""

    json_bytes: int = MAX_FILE_BYTES * 4 // 3 + 65_536  # a picture as a data URL
    small_json_bytes: int = 16_384
    stall_seconds: float = 10.0  # how long a reader may leave its stream unread
    open_of_address: int = 128  # requests and streams
    buffered_bytes: int = 64_000_000
    buffered_bytes_of_address: int = 16_000_000
    asked: int = 64  # questions of the page, at once
    asked_of_address: int = 32
    posts_a_second: float = 150.0
    posts_in_a_burst: float = 600.0


@dataclass
class Gate:
    """What the middleware shares with the process around it.

    endpoints: of the API by Gradio's number; known once it is there.
    """

    attendance: Attendance
    journal: Journal
    bounds: Bounds = field(default_factory=Bounds)
    endpoints: "dict[int, Endpoint]" = field(default_factory=dict)
    awake: bool = False
    closing: bool = False
    streams: int = 0
    started: float = field(default_factory=time.monotonic)

    def close(self):
        """From now on new jobs are refused, and /healthz says so."""
        self.closing = True

    def health(self) -> dict:
        """What /healthz answers."""
        return {
            "status": "closing" if self.closing else "ok",
            "uptime_seconds": round(time.monotonic() - self.started),
            "jobs": len(self.attendance.calls),
            "readers": self.streams,
        }


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of the API: parameters are (name, whether it has a default)."""

    name: str
    parameters: tuple[tuple[str, bool], ...]


class Guard:
    """The ASGI middleware."""

    def __init__(self, app, gate: Gate):
        self.app, self.gate, self.bounds = app, gate, gate.bounds
        self.open = Counter()
        self.buffers = Shares(gate.bounds.buffered_bytes, gate.bounds.buffered_bytes_of_address)
        self.asked = Shares(gate.bounds.asked, gate.bounds.asked_of_address)
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
        scope["headers"] = checked_headers(scope)
        answer = Answer(scope, send, request_id, self.bounds.stall_seconds)
        self.open[address] += 1
        try:
            await self._admit(scope, receive, answer, address)
        except Refused as refusal:
            await answer.refuse(refusal.status, refusal.message)
        except Gone:
            pass
        except Exception as error:
            if is_disk_full(error):
                await answer.refuse(507, DISK_FULL)
            else:
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
        if path == START:
            await answer.json(200, True)  # the launch asks for it; see _wake
            return
        if self.open[address] > self.bounds.open_of_address and not (method == "GET" and path.startswith(PAGE)):
            raise Refused(429, f"Your address has {self.bounds.open_of_address} connections open: close some first.")
        if method == "POST":
            if not self.allowances.take(address):
                raise Refused(429, "Your address sends too many requests: wait a few seconds.")
            async with self._body(scope, receive, path, address) as (values, replay):
                scope["ddpm_hf.values"] = values
                await self._post(scope, replay, answer, path, values, address)
        elif session := self._session_of_stream(scope, path):
            with self._reading():
                await self._stream(scope, receive, answer, session)
        else:
            await self.app(scope, receive, answer.send)

    async def _post(self, scope, replay, answer: "Answer", path: str, values, address: str):
        if path == f"{PAGE}/run":
            self._check_open()
            with self._reading():
                await self._while_there(scope, replay, answer)
        elif path.startswith(PAGE):
            with self.asked.held(address, 1):
                await self._while_there(scope, replay, answer)
        elif path == f"{API}/cancel":
            endpoint = endpoint_of(path, values, self.gate.endpoints)
            ended = self.gate.attendance.cancel(values["session_hash"], endpoint.name, values.get("event_id"))
            await answer.json(200, {"success": ended})
        elif path == f"{API}/queue/join" or path.startswith(f"{API}/call/"):
            self._check_open()
            endpoint = endpoint_of(path, values, self.gate.endpoints)
            session = values["session_hash"] if path == f"{API}/queue/join" else None
            call = self.gate.attendance.admit(endpoint.name, session, address)
            await self._join(scope, replay, answer, call)
        else:
            await self.app(scope, replay, answer.send)

    def _check_open(self):
        if self.gate.closing:
            raise Refused(503, "The server is stopping: try again in a minute.")

    async def _wake(self, scope):
        """Start Gradio's queue, at the first call: from then on it looks for work a thousand times a second."""
        if self.gate.awake:
            return
        self.gate.awake = True

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(_message):
            pass

        start = {"method": "GET", "path": START, "raw_path": START.encode(), "headers": [], "query_string": b""}
        await self.app({**scope, **start}, receive, send)

    async def _join(self, scope, replay, answer: "Answer", call: Call):
        """Hand a call to Gradio, and note the id that it answers with before it goes out."""
        await self._wake(scope)
        body, event = b"", None

        async def send(message):
            nonlocal body, event
            if message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body") and (found := re.search(rb'"event_id": *"([0-9a-f]{1,64})"', body)):
                    event = found[1].decode()
                    self.gate.attendance.named(call, event)
            await answer.send(message)

        try:
            await self.app(scope, replay, send)
        finally:
            if event is None:
                self.gate.attendance.named(call, None)

    @contextmanager
    def _reading(self):
        self.gate.streams += 1
        try:
            yield
        finally:
            self.gate.streams -= 1

    async def _while_there(self, scope, receive, answer: "Answer"):
        """Answer a request, and give it up when the caller leaves: it may be waiting for the model."""

        async def watch():
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async def nothing():  # more to receive: its values are in the scope, and ``watch`` sees it leave
            await anyio.sleep_forever()

        failure = None
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                await self.app(scope, nothing, answer.send)
            except Exception as error:  # the group would wrap it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    # ---- streams of the API

    def _session_of_stream(self, scope, path: str) -> str | None:
        """The session whose answers this request is going to read; None if it is not such a request."""
        if path == f"{API}/queue/data":
            session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[-1]
        elif path.startswith(f"{API}/call/"):
            session = path.rpartition("/")[2]
        else:
            return None
        if not self.gate.attendance.knows(session):
            raise Refused(404, "There is no such request, or its answer has been fetched: send it again.")
        return session

    async def _stream(self, scope, receive, answer: "Answer", session: str):
        self.gate.attendance.opened(session)
        try:
            await self.app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if not answer.stalled:
                raise
        except KeyError:  # Gradio forgets a session at each of its readers that leaves, and stumbles at the second
            logger.debug("a stream ended twice")
        finally:
            self.gate.attendance.closed(session, ended=answer.ended)

    # ---- bodies

    @asynccontextmanager
    async def _body(self, scope, receive, path: str, address: str) -> AsyncIterator:
        """The values of a body that has been read whole and checked, and a ``receive`` that gives it out again."""
        headers = dict(scope["headers"])
        limit = self._limit(path)
        with self.buffers.held(address, claimed(headers, limit)):
            body = await read(receive, limit, self.bounds)
            check_kind(path, headers.get(b"content-type", b""))
            values = await json_value(body, self.bounds)
            check_values(path, values, self.gate.endpoints)
        yield values, receive if path.startswith(PAGE) else replayed(body, receive)

    def _limit(self, path: str) -> int:
        if path in TAKES_PICTURE or path.startswith(f"{API}/mcp"):
            return self.bounds.json_bytes
        if path in (f"{API}/cancel", f"{API}/reset"):
            return self.bounds.small_json_bytes
        return self.bounds.plain_json_bytes


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
    if path.startswith(f"{API}/heartbeat/") and not SESSION.fullmatch(path.rpartition("/")[2]):
        raise Refused(400, "A session is named by up to 64 letters, digits, - and _.")


def check_kind(path: str, content_type: bytes):
    if content_type.split(b";")[0].strip().lower() != b"application/json" and not path.startswith(f"{API}/mcp"):
        raise Refused(415, "Send JSON, with the header 'Content-Type: application/json'.")


def check_values(path: str, values, endpoints: "dict[int, Endpoint]"):
    """Refuse a body that Gradio would stumble over, or that would make it fetch or keep something."""
    if path.startswith(f"{API}/mcp"):
        return
    if not isinstance(values, dict):
        raise Refused(400, 'The body must be a JSON object, such as {"data": [4]}.')
    if path.startswith(PAGE):
        if not (isinstance(values.get("session"), str) and SESSION.fullmatch(values["session"])):
            raise Refused(400, "The field session must be a text of up to 64 letters, digits, - and _.")
        return
    check_fields(path, values)
    if path == f"{API}/reset":
        return
    endpoint = endpoint_of(path, values, endpoints)
    if path.startswith(f"{API}/call/v2/"):
        check_arguments(values, endpoint)
    elif path != f"{API}/cancel":
        check_number_of_data(values.get("data"), endpoint)


def check_fields(path: str, values: dict):
    """The fields around the data. The data themselves are checked by the handlers, see limits.py."""
    refused = ["batched", "simple_format", "oauth_token", "request"]
    if path.startswith(f"{API}/call/"):
        refused.append("session_hash")  # Gradio names the session after the event
    else:
        check_session(values.get("session_hash"), needed=path in (f"{API}/queue/join", f"{API}/cancel"))
    for name in refused:
        if values.get(name):
            raise Refused(400, f"The field {name} is not taken here.")


def check_session(session, *, needed: bool):
    if session is None and needed:
        raise Refused(400, "The field session_hash is missing.")
    if session is not None and not (isinstance(session, str) and SESSION.fullmatch(session)):
        raise Refused(400, "session_hash must be a text of up to 64 letters, digits, - and _.")


def endpoint_of(path: str, values: dict, endpoints: "dict[int, Endpoint]") -> "Endpoint":
    """The endpoint that a request calls or cancels."""
    number = values.get("fn_index")
    if number is None and path.startswith(f"{API}/call/"):
        name = path.rpartition("/")[2]
        found = next((endpoint for endpoint in endpoints.values() if endpoint.name == name), None)
    elif isinstance(number, int) and not isinstance(number, bool):
        found = endpoints.get(number)
    else:
        raise Refused(400, "fn_index must be a whole number, the number of a function of the API.")
    if found is None:
        raise Refused(404, "There is no such function: see /?view=api for those there are.")
    return found


def check_number_of_data(data, endpoint: "Endpoint"):
    if not isinstance(data, list):
        raise Refused(400, "The field data must be a list with one value for every input.")
    if len(data) != len(endpoint.parameters):
        raise Refused(
            400, f"The field data must have {len(endpoint.parameters)} values, not {len(data)}: see /?view=api."
        )


def check_arguments(values: dict, endpoint: "Endpoint"):
    """Of a call with an object of named arguments."""
    known = [name for name, _ in endpoint.parameters]
    for name in values:
        if name not in known:
            raise Refused(400, f"There is an argument that this endpoint does not take; it takes {', '.join(known)}.")
    for name, has_default in endpoint.parameters:
        if not has_default and name not in values:
            raise Refused(400, f"The argument {name} is missing.")


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

    async def json(self, status: int, value, headers=()):
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
    507: DISK_FULL,
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
