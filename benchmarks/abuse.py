"""What a public server has to bear: kinds of abuse, each with what is to be answered. Only ever to 127.0.0.1.

``ABUSES`` is used by the tests, one by one, and by ``space_load.py``, mixed and for an hour.

    python benchmarks/abuse.py http://127.0.0.1:7860    # two connections do their worst: how late are the others?
"""

import base64
import itertools
import json
import math
import random
import re
import socket
import struct
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from hostile.bodies import API, BODIES, FULL_PICTURE, HEADERS, JOIN, LOOP_BLOCKERS, HostileRequest

PAGE = "/page"
SECONDS = 60.0  # for an answer on a busy machine


class Seen(NamedTuple):
    """What came back. how: an HTTP status; or of a job "done", "error"; or "closed" without an answer."""

    how: int | str
    text: str = ""


class Target:
    """The server under attack, as a client of its own address: a loopback peer may name one, as a proxy does.

    Attributes:
        endpoints: arguments of the API's endpoints with their defaults, by name.
        functions: (number, number of inputs) of all endpoints.
    """

    def __init__(self, url: str, address: str | None = None):
        self.url = url.rstrip("/")
        parts = urlsplit(url)
        if parts.hostname != "127.0.0.1":
            raise ValueError("abuse is for a server of one's own: at 127.0.0.1.")
        self.place = parts.hostname, parts.port
        self.address = address or ".".join(str(random.randint(11, 99)) for _ in range(4))
        self.http = httpx.Client(base_url=self.url, headers={"X-Forwarded-For": self.address}, timeout=SECONDS)
        self.endpoints, self.functions, self._numbers = {}, [], {}

    def look(self) -> "Target":
        """Read what the server says of its functions."""
        config = self.http.get("/config").json()
        for function in config["dependencies"]:
            self.functions.append((function["id"], len(function["inputs"])))
            self._numbers[function["api_name"]] = function["id"]
        for name, about in self.http.get(f"{API}/info").json()["named_endpoints"].items():
            self.endpoints[name[1:]] = {p["parameter_name"]: p.get("parameter_default") for p in about["parameters"]}
        return self

    def like(self) -> "Target":
        """The same server, seen from another address."""
        other = Target(self.url)
        other.endpoints, other.functions, other._numbers = self.endpoints, self.functions, self._numbers
        return other

    def close(self):
        self.http.close()

    # ---- requests

    def send(self, method: str, path: str, **options) -> Seen:
        """One request. A stream is not read."""
        try:
            with self.http.stream(method, path, **options) as response:
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    return Seen(response.status_code)
                return Seen(response.status_code, line_in(response.read()))
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return Seen("closed")

    def post(self, path: str, value=None, *, body: bytes | str | None = None, kind="application/json", **headers):
        """POST a JSON value, also one that is none in other languages (NaN), or any bytes."""
        content = json.dumps(value) if body is None else body
        headers = {name.replace("_", "-"): text for name, text in headers.items()}
        return self.send("POST", path, content=content, headers={"content-type": kind, **headers})

    def join(self, number: int, data: list, session: str | None = None) -> tuple[Seen, str]:
        """Ask for a job; the answer, and the session."""
        session = session or uuid.uuid4().hex
        return self.post(f"{API}/queue/join", {"data": data, "fn_index": number, "session_hash": session}), session

    def number_of(self, endpoint: str) -> int:
        return self._numbers[endpoint]

    def data_for(self, endpoint: str, **values) -> list:
        """The arguments of an endpoint in its order."""
        return list({**self.endpoints[endpoint], **values}.values())

    def messages(self, session: str) -> Iterable[dict]:
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    def run(self, number: int, data: list, *, whole: bool = True) -> Seen:
        """Ask for a job and read it to its end, or unless ``whole`` until it yields something: it is taken, then."""
        answer, session = self.join(number, data)
        if answer.how != 200:
            return answer
        for message in self.messages(session):
            if message["msg"] == "process_generating" and message["success"] and not whole:
                return Seen("done")
            if message["msg"] == "process_completed":
                if message["success"]:
                    return Seen("done")
                return Seen("error", str(message["output"].get("error")))
            if message["msg"] == "unexpected_error":
                return Seen("error", str(message["message"]))
        return Seen("closed")

    def call(self, endpoint: str, **values) -> Seen:
        """An endpoint with these arguments, and defaults for the others."""
        return self.run(self.number_of(endpoint), self.data_for(endpoint, **values))

    # ---- as the page

    def ask(self, name: str, values, session: str = "a") -> Seen:
        """One of the page's questions."""
        return self.post(f"{PAGE}/{name}", {**values, "session": session})

    @contextmanager
    def page_run(self, what: str, values, session: str | None = None) -> Iterator[Iterator[dict]]:
        """A run as the page makes it: its events as they come. At the end of the block the connection is closed."""
        body = json.dumps({"what": what, "values": values, "session": session or uuid.uuid4().hex})
        headers = {"content-type": "application/json"}
        with self.http.stream("POST", f"{PAGE}/run", content=body, headers=headers) as response:
            if response.status_code == 200:
                lines = (line[6:] for line in response.iter_lines() if line.startswith("data: "))
                yield map(json.loads, lines)
            else:
                yield iter([{"error": line_in(response.read()), "status": response.status_code}])

    def press(self, what: str, values, *, whole: bool = True) -> Seen:
        """A run of the page read to its end, or unless ``whole`` until there is an event: it is taken, then."""
        with self.page_run(what, values) as events:
            for event in events:
                if "error" in event:
                    return Seen(event.get("status", "error"), event["error"])
                if not whole or event.get("state") == "done":
                    return Seen("done")
        return Seen("closed")

    def raw(self, *parts: bytes, seconds: float = SECONDS) -> Seen:
        """Bytes on a socket; the status of what comes back."""
        with socket.create_connection(self.place, timeout=seconds) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                answer = whole_answer(connection)
            except (ConnectionError, TimeoutError):
                return Seen("closed")
        if not answer.startswith(b"HTTP/1."):
            return Seen("closed")
        return Seen(int(answer.split()[1]), line_in(answer.partition(b"\r\n\r\n")[2]))


def whole_answer(connection: socket.socket) -> bytes:
    """Head and body of the first answer: they may come one after the other."""
    answer = connection.recv(65_536)
    while answer and len(answer) < 65_536:
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if b"\r\n\r\n" in answer and len(body) >= int(length[1] if length else 0):
            break
        piece = connection.recv(65_536)
        if not piece:
            break
        answer += piece
    return answer


def line_in(body: bytes) -> str:
    """The message of an error's JSON, or the body itself."""
    try:
        said = json.loads(body)
    except ValueError:
        return body[:500].decode("utf-8", "replace")
    return str(said["detail"]) if isinstance(said, dict) and "detail" in said else body[:500].decode("utf-8", "replace")


@dataclass(frozen=True)
class Abuse:
    """One kind. act does it; hows are the outcomes that are right, words a part of the message that is."""

    name: str
    act: Callable[[Target], Seen] = field(repr=False)
    hows: tuple = (400,)
    words: str = ""
    slow: bool = False

    def fault(self, seen: Seen) -> str | None:
        """What is wrong with an outcome, None if nothing is."""
        if seen.how not in self.hows:
            return f"{self.name}: {seen.how} instead of {self.hows}: {seen.text[:200]}"
        if self.words not in seen.text:
            return f"{self.name}: the message lacks {self.words!r}: {seen.text[:200]}"
        return (
            fault_of_line(seen.text) if seen.how == "error" or (isinstance(seen.how, int) and seen.how >= 400) else None
        )


def fault_of_line(text: str) -> str | None:
    """What a message to a stranger must not be."""
    if not text or text == "None":
        return "no message"
    if "\n" in text or len(text) > 300:
        return f"not one line: {text[:200]!r}"
    for sign in ("Traceback", ".py", "site-packages", "/home", "/tmp", "/root", "<script", "Error:", "Exception"):
        if sign in text:
            return f"{sign!r} in a message: {text[:200]!r}"
    return None


# ---- values

NAN, INF = math.nan, math.inf
WORDS = {
    "steps": "teps must be a whole number",
    "num_images": "umber of images must be a whole number",
    "seed": "eed must be a whole number",
    "guidance_scale": "uidance scale must be a number",
    "guidance_interval": "uidance interval must",
    "sampler": "ampler",
    "class_name": "lass",
}
VALUES = {
    "steps": [NAN, INF, None, True, 2.5, "5", [5], {}, 0, -1, 1001, 10**30, 1e300, [[1]], "NaN"],
    "num_images": [NAN, None, False, 1.5, "4", [4], 0, 65, -(10**18)],
    "seed": [NAN, None, True, 0.5, "0", [0], -1, 2**32],
    "guidance_scale": [NAN, -INF, None, True, "1", [1], 21, -0.5],
    "guidance_interval": [None, True, 5, "0,400", [5], [5, 1], [0, 1001], [0, None], {}],
    "sampler": [None, True, 1, "magic", ["dpm"], "../../etc/passwd", "<script>alert(1)</script>", "x" * 100_000],
    "class_name": [None, True, 1.5, "hat", ["circle"], {"a": 1}, "<img src=x onerror=alert(1)>", "\x00\u202e"],
}


def value_abuses() -> list[Abuse]:
    def act(name, value):
        return lambda target: target.call("generate", **{name: value})

    found = []
    for name, values in VALUES.items():
        for value in values:
            title = f"{name} {str(value)[:20]!r} ({type(value).__name__})"
            found.append(Abuse(title, act(name, value), ("error",), WORDS[name]))
    work = lambda target: target.call("generate", num_images=64, steps=1000)  # noqa: E731
    return [*found, Abuse("too much work", work, ("error",), "too much work")]


# ---- bodies


def sent(request: HostileRequest) -> Callable[[Target], Seen]:
    def act(target: Target) -> Seen:
        good = {"data": target.data_for("generate"), "fn_index": target.number_of("generate"), "session_hash": "a"}
        headers = {"content-type": request.kind, **request.headers}
        return target.send(request.method, request.path, content=request.content(good), headers=headers)

    return act


def body_abuses() -> list[Abuse]:
    return [Abuse(request.name, sent(request), request.hows, request.words) for request in BODIES]


def header_abuses() -> list[Abuse]:
    def act(name: str, value: str):
        return lambda target: target.send("GET", "/config", headers={name: value})

    return [Abuse(f"{name}: {value}", act(name, value), (200,)) for name, value in HEADERS]


# ---- addresses and methods


def path_abuses() -> list[Abuse]:
    def get(path, method="GET", **options):
        return lambda target: target.send(method, path, **options)

    closed = ["/monitoring", "/monitoring/summary", "/login", "/user", f"{API}/deep_link?session_hash=a"]
    closed += [f"{API}/{name}" for name in ("proxy=http://127.0.0.1:1/", "runs", "run-history/buckets", "vibe-code")]
    closed += ["/assets/index.js", "/static/img/logo.svg", "/svelte/x.js", "/theme.css", "/docs", "/openapi.json"]
    closed += [
        f"{API}/stream/a/b/1/playlist-file",
        f"{API}/profiling/traces",
        f"{API}/dev/reload",
        "/.env",
        "/admin.php",
    ]
    files = [
        "/etc/passwd",
        "../../../etc/passwd",
        "app.py",
        ".env",
        "~/.ssh/id_rsa",
        "C:\\Windows\\win.ini",
        "",
        "\x01",
    ]
    return [
        *(Abuse(f"closed: {path[:40]}", get(path), (404,), "nothing at this address") for path in closed),
        *(Abuse(f"file {path!r}", get(f"{API}/file={path}" if "\x01" not in path else f"{API}/file=%00%01"),
                (404, 400)) for path in files),
        Abuse("file of a web server", get(f"{API}/file=http://127.0.0.1:1/x"), (404,), "nothing at this address"),
        Abuse("parts above", get(f"{PAGE}/..%2f..%2fapp.py"), (404,)),
        Abuse("a part that is not there", get(f"{PAGE}/server.py"), (404,)),
        Abuse("assets above", get("/assets/..%2f..%2f..%2fetc%2fpasswd"), (403, 404)),
        Abuse("static above", get("/static/..%2f..%2fapp.py"), (403, 404)),
        Abuse("theme above", get("/svelte/..%2f..%2fapp.py"), (403, 404)),
        Abuse("heartbeat of a path", get(f"{API}/heartbeat/..%2fa"), (400, 404)),
        Abuse("stream of nobody", get(f"{API}/queue/data?session_hash=nobody"), (404,), "no such request"),
        Abuse("stream without a name", get(f"{API}/queue/data"), (404,), "no such request"),
        Abuse("answer to nothing", get(f"{API}/call/generate/nothing"), (404,), "no such request"),
        Abuse("PUT", get("/", "PUT"), (405,), "method"),
        Abuse("DELETE", get("/config", "DELETE"), (404,)),
        Abuse("TRACE", get("/", "TRACE"), (405,), "method"),
        Abuse("BREW", get("/", "BREW"), (400, 405)),
        Abuse("POST to the page", get("/", "POST", json={}), (404,)),
        Abuse("GET of a function", get(f"{API}/queue/join"), (404,)),
        Abuse("address of 30,000 letters", get("/" + "a" * 30_000), (400, 404, "closed")),
        Abuse("query of 30,000 letters", get(f"{API}/queue/data?session_hash=" + "a" * 30_000), (400, 404, "closed")),
    ]  # fmt: skip


# ---- bytes


def http(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1") + body


def socket_abuses() -> list[Abuse]:
    def raw(*parts, **options):
        return lambda target: target.raw(*parts, **options)

    post = f"POST {API}/queue/join"
    json_kind = "Content-Type: application/json"
    refused = (400, 404, 413, 415, 422, 431, "closed")
    return [
        Abuse("no HTTP", raw(b"\x00\x01\x02\x03" * 100 + b"\r\n\r\n"), (400, "closed")),
        Abuse("TLS", raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)), (400, "closed")),
        Abuse("HTTP/2", raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (400, 404, 405, "closed")),
        Abuse("HTTP/9.9", raw(b"GET / HTTP/9.9\r\n\r\n"), (400, "closed")),
        Abuse("a head of 1 MB", raw(b"GET / HTTP/1.1\r\nA: " + b"a" * 1_000_000), refused),
        Abuse("100,000 headers", raw(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000 + b"\r\n"), refused),
        Abuse("negative length", raw(http(post, json_kind, "Content-Length: -1")), refused),
        Abuse("100 MB, announced", raw(http(post, json_kind, "Content-Length: 100000000")), (413,), "at most 6.7 MB"),
        Abuse("length in words", raw(http(post, json_kind, "Content-Length: many")), refused),
        Abuse("two lengths", raw(http(post, json_kind, "Content-Length: 2", "Content-Length: 9", body=b"{}")), refused),
        Abuse("length of 10^30", raw(http(post, json_kind, "Content-Length: 1" + "0" * 30)), refused),
        Abuse("length and chunks", raw(http(post, json_kind, "Content-Length: 5", "Transfer-Encoding: chunked",
                                            body=b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n")), refused),
        Abuse("broken chunks", raw(http(post, json_kind, "Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n")), refused),
        Abuse("chunks without end", endless_chunks, refused),
        Abuse("header with a control", raw(b"GET / HTTP/1.1\r\nA\x00: b\r\n\r\n"), (400, "closed")),
        Abuse("web socket", raw(http(f"GET {API}/queue/join", "Connection: Upgrade", "Upgrade: websocket",
                                     "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + "a" * 22 + "==")),
              (403, 404, 400)),
        Abuse("fifty requests at once", raw(http("GET /healthz") * 50), (200,)),
        Abuse("left in the middle of a body", left_in_body, ("closed",)),
        Abuse("reset at once", reset_at_once, ("closed",)),
        Abuse("a body that never comes", raw(http(post, json_kind, "Content-Length: 9")), (408, "closed"), slow=True),
        Abuse("a head that is never sent", raw(b"GET / HTTP/1.1\r\nA:"), ("closed",), slow=True),
        Abuse("silence", raw(b""), ("closed",), slow=True),
    ]  # fmt: skip


def endless_chunks(target: Target) -> Seen:
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    head = http(f"POST {API}/queue/join", "Content-Type: application/json", "Transfer-Encoding: chunked")
    return target.raw(head, *[chunk] * 200)


def left_in_body(target: Target) -> Seen:
    with socket.create_connection(target.place, timeout=SECONDS) as connection:
        head = http(f"POST {API}/queue/join", "Content-Type: application/json", "Content-Length: 4000000")
        connection.sendall(head + b"x" * 100_000)
    return Seen("closed")


def reset_at_once(target: Target) -> Seen:
    connection = socket.create_connection(target.place, timeout=SECONDS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(http("GET /config"))
    connection.close()
    return Seen("closed")


# ---- visitors who do not behave

LONG = {"num_images": 16, "sampler": "ddpm", "steps": 1000}


def behaviour_abuses() -> list[Abuse]:
    return [
        Abuse("joins that are never read", unread_joins, (200,)),
        Abuse("six jobs of one session at once", jobs_of_one_session, (429,), "requests of yours are waiting"),
        Abuse("nine tabs", jobs_of_one_address, (429,), "from your address"),
        Abuse("a tab closed while it runs", tab_closed, ("done",)),
        Abuse("a tab closed before the first frame", tab_closed_at_once, ("done",)),
        Abuse("a program that leaves while it runs", program_left, (200,)),
        Abuse("six runs of one tab at once", runs_of_one_tab, ("error",), "of your requests are waiting already"),
        Abuse("cancelled before the first frame", cancelled_at_once, (200,)),
        Abuse("cancelled ten times", cancelled_often, (200,)),
        Abuse("two readers of one stream", two_readers, (200,)),
        Abuse("150 heartbeats", many_heartbeats, (429,), "connections open"),
        Abuse("a flood of requests", flood, (200, 429)),  # 200: too slow a machine for one
    ]


def _join_long(target: Target, session=None):
    return target.join(target.number_of("generate"), target.data_for("generate", **LONG, seed=_seed()), session)


def _seed() -> int:
    return random.randrange(2**32)


def unread_joins(target: Target) -> Seen:
    return [_join_long(target)[0] for _ in range(3)][-1]


def _refusals(target: Target, asked: int, most: int, one_session: bool) -> list[Seen]:
    """What so many jobs at once are refused with; [] if more than ``most`` were taken. Where the queue is full, an
    unread job may be let go after three seconds, and makes room for another: answers that took longer tell nothing,
    and are asked for again."""
    for _ in range(5):
        session, began = uuid.uuid4().hex if one_session else None, time.monotonic()
        with ThreadPoolExecutor(asked) as pool:
            answers = list(pool.map(lambda _, session=session: _join_long(target, session)[0], range(asked)))
        refusals = [answer for answer in answers if answer.how != 200]
        if len(refusals) >= asked - most:
            return refusals
        if time.monotonic() - began < 3:
            break
    return []


def jobs_of_one_session(target: Target) -> Seen:
    """Three are taken."""
    refusals = _refusals(target, 6, 3, one_session=True) or [Seen(200, "more than 3 jobs of one session were taken")]
    return next((answer for answer in refusals if answer.how != 429), refusals[-1])


def jobs_of_one_address(target: Target) -> Seen:
    """Eight are taken, each of a session of its own; a full queue may refuse some before the address refuses the
    ninth."""
    refusals = _refusals(target, 9, 8, one_session=False) or [Seen(200, "9 jobs of one address were taken")]
    return next((answer for answer in refusals if answer.how == 429), refusals[-1])


def _first(target: Target, session: str, kind: str):
    stream = target.messages(session)
    try:
        for message in stream:
            if message["msg"] in (kind, "process_completed"):
                return
    finally:
        stream.close()


def program_left(target: Target) -> Seen:
    answer, session = _join_long(target)
    if answer.how == 200:
        _first(target, session, "process_generating")
    return answer


def tab_closed(target: Target) -> Seen:
    return target.press("generate", {**LONG, "seed": _seed()}, whole=False)


def tab_closed_at_once(target: Target) -> Seen:
    with target.page_run("generate", {**LONG, "seed": _seed()}):
        return Seen("done")


def runs_of_one_tab(target: Target) -> Seen:
    """Four are taken, and the others told why not."""
    session = uuid.uuid4().hex
    with ExitStack() as stack:
        for _ in range(6):
            values = {**LONG, "seed": _seed()}
            event = next(stack.enter_context(target.page_run("generate", values, session)))
            if "error" in event:
                return Seen(event.get("status", "error"), event["error"])
    return Seen(200, "more than four runs of one tab were taken")


def cancelled_at_once(target: Target, times: int = 1) -> Seen:
    answer, session = _join_long(target)
    if answer.how != 200:
        return answer
    event = json.loads(answer.text)["event_id"]
    with target.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}):
        body = {"session_hash": session, "fn_index": target.number_of("generate"), "event_id": event}
        return [target.like().post(f"{API}/cancel", body) for _ in range(times)][-1]


def cancelled_often(target: Target) -> Seen:
    return cancelled_at_once(target, times=10)


def two_readers(target: Target) -> Seen:
    answer, session = _join_long(target)
    if answer.how == 200:
        other = target.like()
        with other.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}):
            _first(target, session, "process_generating")
    return answer


def many_heartbeats(target: Target) -> Seen:
    head = http(f"GET {API}/heartbeat/{uuid.uuid4().hex}", f"X-Forwarded-For: {target.address}")
    open_ones = []
    try:
        for _ in range(150):
            connection = socket.create_connection(target.place, timeout=SECONDS)
            connection.sendall(head)
            open_ones.append(connection)
        return target.send("GET", "/config")
    finally:
        for connection in open_ones:
            connection.close()


def flood(target: Target) -> Seen:
    """Many more than a second allows, several to a packet."""
    body = b'{"event_id": "x"}'
    one = http(
        f"POST {API}/reset",
        f"X-Forwarded-For: {target.address}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        body=body,
    )
    with socket.create_connection(target.place, timeout=SECONDS) as connection:
        answer = b""
        for _ in range(100):
            connection.sendall(one * 10)
            while answer.count(b"HTTP/1.1") < 10 and b" 429 " not in answer:
                piece = connection.recv(65_536)
                if not piece:
                    return Seen("closed")
                answer += piece
            if b" 429 " in answer:
                return target.post(f"{API}/reset", {"event_id": "x"})
            answer = b""
    return Seen(200)


# ---- pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *more: bytes) -> bytes:
    """A gray PNG that says it has this size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    )


GIF_BOMB = b"GIF89a\xff\xff\xff\xff\x80" + bytes(8) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
PICTURES = {
    "a PNG bomb": (lambda: png(13_000, 13_000, bytes(13_001 * 13_000)), "pixels"),
    "a PNG of 50,000 x 50,000": (lambda: png(50_000, 50_000, b""), "pixels"),
    "an SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "SVG"),
    "a GIF of 65,535 x 65,535": (lambda: GIF_BOMB, "pixels"),
    "a PDF": (lambda: b"%PDF-1.7", "document"),
    "a PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0", "document"),
    "a cut PNG": (lambda: png(64, 64, random.Random(0).randbytes(65 * 64))[:2000], "damaged"),
    "a text bomb": (lambda: png(4, 4, bytes(20), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9))), "damaged"),
    "one pixel": (lambda: png(1, 1, bytes(2)), "at least 2 x 2"),
    "no picture": (lambda: b"hello", "no picture"),
}  # fmt: skip


def picture_abuses() -> list[Abuse]:
    """Pictures for /noise, where the server has it."""

    def act(make):
        return lambda target: target.call("noise", t=1, image=as_url(make()))

    odd = {
        "a path": "/etc/passwd",
        "an address": "http://127.0.0.1:1/x.png",
        "broken base64": "data:image/png;base64,@",
    }
    return [
        *(Abuse(name, act(make), ("error",), words) for name, (make, words) in PICTURES.items()),
        *(
            Abuse(
                f"{name} for a picture", lambda target, image=image: target.call("noise", t=1, image=image), ("error",)
            )
            for name, image in odd.items()
        ),
    ]


def as_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


ABUSES = [
    *value_abuses(),
    *body_abuses(),
    *header_abuses(),
    *path_abuses(),
    *socket_abuses(),
    *behaviour_abuses(),
]


# ---- how late everybody else is


def lateness(url: str, seconds: float = 10.0, connections: int = 2) -> dict[str, float]:
    """What others notice while ``connections`` repeat the requests that take the server the most time.

    Returns:
        In milliseconds: "healthz", the 99th percentile of its answers; "frames", the longest pause between two values
        of a running job, beyond the longest of the same job when the server is left alone. And "sent": the number of
        requests of the attack.
    """
    base = Target(url).look()
    alone = _longest_pause(base, seconds)
    stop, sent_requests = threading.Event(), []
    attack = [(kind.path, kind.content({})) for kind in LOOP_BLOCKERS] + _full_pictures(base)

    def attacker(number: int):
        target, rng = base.like(), random.Random(number)
        while not stop.is_set():
            path, body = rng.choice(attack)
            sent_requests.append(target.post(path, body=body))
        target.close()

    def visitor() -> list[float]:
        waits, target = [], base.like()
        while not stop.is_set():
            began = time.monotonic()
            target.http.get("/healthz").raise_for_status()
            waits.append(time.monotonic() - began)
            time.sleep(0.02)
        return waits

    with ThreadPoolExecutor(connections + 1) as pool:
        attackers = [pool.submit(attacker, number) for number in range(connections)]
        waits = pool.submit(visitor)
        try:
            pause = _longest_pause(base, seconds)
        finally:
            stop.set()
        for future in attackers:
            future.result()
    ordered = sorted(waits.result())
    slowest = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return {"healthz": 1000 * slowest, "frames": 1000 * max(0.0, pause - alone), "sent": len(sent_requests)}


def _full_pictures(target: Target) -> list[tuple[str, bytes]]:
    """Requests that pass the door: a question of the page, and a job."""
    values = {"image": FULL_PICTURE, "t": 1}
    job = {"data": target.data_for("noise", **values), "fn_index": target.number_of("noise"), "session_hash": "a"}
    return [(f"{PAGE}/noise", json.dumps({**values, "session": "a"}).encode()), (JOIN, json.dumps(job).encode())]


def _longest_pause(base: Target, seconds: float) -> float:
    """Between two values of a long run, in seconds."""
    target = base.like()
    answer, session = _join_long(target)
    if answer.how != 200:
        raise RuntimeError(f"the server takes no job: {answer}")
    stream, times = target.messages(session), []
    for message in stream:
        if message["msg"] == "process_generating":
            times.append(time.monotonic())
        if message["msg"] == "process_completed" or (times and times[-1] - times[0] > seconds):
            break
    stream.close()
    target.close()
    return max(after - before for before, after in itertools.pairwise(times))


if __name__ == "__main__":
    for name, value in lateness(sys.argv[1]).items():
        print(f"{name:8} {value:8.0f}" + (" ms" if name != "sent" else " requests"))
