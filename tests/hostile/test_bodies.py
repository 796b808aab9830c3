"""Hostile requests to a real server that has little memory to spare, and mutations of good ones."""

import asyncio
import json
import os
import resource
import time

import httpx
import pytest
from app_server import AppServer, export_tiny
from helpers import wait_until
from hostile.bodies import API, BODIES, HEADERS, JOIN, MEMORY, SECONDS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.abuse import Target, body_abuses, fault_of_line, header_abuses
from ddpm_hf.ui.attendance import Attendance
from ddpm_hf.ui.guard import Bounds, Endpoint, Gate, Guard
from ddpm_hf.ui.journal import Journal

SPARE_MEMORY = 1_000_000_000  # bytes of address space beyond that of the idle server, for all requests together
SWEEP_SECONDS = 300  # on a slow machine the sweep has fewer examples


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = export_tiny(tmp_path_factory.mktemp("models") / "shapes", conditional=True)
    server = AppServer(model, tmp_path_factory.mktemp("scratch"))
    most = memory(server, "VmSize") + SPARE_MEMORY
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (most, most))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def map_of(server):
    target = Target(server.url).look()
    yield target
    target.close()


@pytest.fixture
def target(map_of):
    """The server, from an address that it has not heard of."""
    target = map_of.like()
    yield target
    target.close()


@pytest.fixture(autouse=True)
def log_of_requests(request):
    """A test that uses the server leaves it running, and in its output only lines of the request log."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        assert server.process.poll() is None
        assert not [line for line in server.log if not line.startswith(('{"time"', "open http"))]


def memory(server, kind: str) -> int:
    """Bytes, from Linux's account of the process: "VmSize", "VmHWM" (the largest resident size so far)."""
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(kind))


# ---- the list


@pytest.mark.parametrize("kind", [*body_abuses(), *header_abuses()], ids=lambda kind: kind.name)
def test_hostile_request(kind, server, target):
    most, lines, began = memory(server, "VmHWM"), len(server.log), time.monotonic()
    seen = kind.act(target)
    assert kind.fault(seen) is None
    assert time.monotonic() - began < SECONDS
    assert memory(server, "VmHWM") - most < MEMORY
    assert len(server.log) - lines <= 1


@pytest.mark.parametrize("path", ["/", "/config"])
@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_headers_of_strangers_do_not_change_the_page(path, header, server):
    """Gradio makes some values anew for every answer, so that addresses are compared."""
    answers = [httpx.get(server.url + path, headers=dict(headers)) for headers in ((), (header,))]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].text.count(server.url) == answers[1].text.count(server.url)
    for sign in ("evil.example", "other.example", "[::1", "gopher:"):
        assert answers[1].text.count(sign) == answers[0].text.count(sign)


def test_every_refusal_is_logged_once(server, target):
    """One after the other, slowly enough that none is left out."""
    for request in BODIES[:: len(BODIES) // 12]:
        lines = len(server.log)
        next(kind for kind in body_abuses() if kind.name == request.name).act(target)
        wait_until(lambda before=lines: len(server.log) > before)
        time.sleep(0.2)
        assert len(server.log) - lines == 1, request.name
        assert json.loads(server.log[-1])["status"] in request.hows


# ---- mutations of good requests

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNiAAAABgADNjd8qAAAAABJRU5ErkJggg=="
)
VALUES = {"num_images": 1, "class_name": "any", "guidance_scale": 1.5, "sampler": "dpm", "steps": 3, "seed": 0}
TOKENS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b'"',
    b"null",
    b"NaN",
    b"1e999",
    b"-",
    b"\\",
    b"\\ud800",
    b"\x00",
    b"\xff",
]
TOKENS += [b'"path":', b'"meta":{"_type":"gradio.FileData"},', b"data:", b"file:///etc/passwd", b"[" * 50, b"9" * 5000]


def good_requests(generate: int, noise: int) -> list[tuple[str, bytes]]:
    """(path, body) of requests that the server takes, given the numbers of two functions."""
    images, noisy = list(VALUES.values()), {"image": PIXEL, "t": 5, "seed": 1}
    session = {"session_hash": "abc"}
    requests = [
        (JOIN, {**session, "data": images, "fn_index": generate, "event_data": None, "trigger_id": 3}),
        (JOIN, {**session, "data": list(noisy.values()), "fn_index": noise}),
        (f"{API}/call/generate", {"data": images}),
        (f"{API}/call/v2/generate", VALUES),
        (f"{API}/cancel", {**session, "fn_index": generate, "event_id": "abc"}),
        (f"{API}/reset", {"event_id": "abc"}),
        ("/page/noise", {"session": "abc", **noisy}),
        ("/page/run", {"session": "abc", "what": "generate", "values": VALUES}),
    ]
    return [(path, json.dumps(body).encode()) for path, body in requests]


@st.composite
def mutations(draw, most: int = 4) -> list[tuple[float, float, bytes]]:
    """Cuts: where (as a share of the body), how much of it, and what is put there."""
    place = st.floats(0, 1)
    length = st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.5])
    piece = st.sampled_from([b"", *TOKENS]) | st.binary(max_size=3)
    return draw(st.lists(st.tuples(place, length, piece), min_size=1, max_size=most))


def mutated(body: bytes, cuts: list[tuple[float, float, bytes]]) -> bytes:
    for place, length, piece in cuts:
        start = round(place * len(body))
        body = body[:start] + piece + body[start + round(length * len(body)) :]
    return body


def options(examples: int) -> settings:
    checks, phases = list(HealthCheck), (Phase.generate,)
    return settings(max_examples=examples, deadline=None, derandomize=True, phases=phases, suppress_health_check=checks)


@pytest.fixture(scope="module")
def door():
    """A guard before an application that takes whatever passes; good requests; and when the tests with it began."""

    async def taken(scope, receive, send):
        values = scope["ddpm_hf.values"]
        assert isinstance(values, dict)
        if not scope["path"].startswith("/page"):
            assert isinstance(json.loads((await receive())["body"]), dict)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    endpoints = {
        0: Endpoint("generate", tuple((name, True) for name in VALUES)),
        1: Endpoint("noise", tuple((name, True) for name in ("image", "t", "seed"))),
    }
    bounds = Bounds(posts_a_second=1e9, posts_in_a_burst=1e9)
    guard = Guard(taken, Gate(Attendance(lambda session: None), Journal(), bounds, endpoints, awake=True))
    return guard, good_requests(0, 1), time.monotonic()


def answer_of(guard, path: str, body: bytes) -> tuple[int, bytes]:
    """The status and the body of the answer to a POST of JSON."""
    sent, parts = [], [{"type": "http.request", "body": body}]
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}

    async def receive():
        return parts.pop() if parts else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    asyncio.run(guard({**scope, "client": ("9.9.9.9", 1)}, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_good_requests_pass(door):
    guard, requests, _ = door
    assert [answer_of(guard, *request)[0] for request in requests] == [200] * len(requests)


@options(10_000 if os.environ.get("CI") else 1000)
@given(st.integers(0, 7), mutations())
def test_mutations_pass_the_guard_or_get_one_line(door, number, cuts):
    guard, requests, began = door
    if time.monotonic() > began + SWEEP_SECONDS:
        return
    path, body = requests[number]
    status, answer = answer_of(guard, path, mutated(body, cuts))
    assert status in (200, 400, 404, 413), (status, answer)
    if status != 200:
        assert fault_of_line(json.loads(answer)["detail"]) is None


@options(100)
@given(st.integers(0, 7), mutations(most=2))
def test_mutations_are_served_or_get_one_line(server, map_of, number, cuts):
    """By the real server: the guard and what is behind it."""
    numbers = [map_of.number_of(name) for name in ("generate", "noise")]
    path, body = good_requests(*numbers)[number]
    target = map_of.like()
    seen = target.post(path, body=mutated(body, cuts))
    target.close()
    assert seen.how in (200, 400, 404, 413, 422, 429, 503), seen
    if seen.how != 200:
        assert fault_of_line(seen.text) is None
