"""A real server under attack: every kind of abuse gets the right answer, and honest visitors are served meanwhile."""

import base64
import io
import json
import resource
import signal
import uuid
from pathlib import Path

import httpx
import pytest
from app_server import ROOT, AppServer, export_tiny
from helpers import wait_until
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks import abuse
from benchmarks.abuse import (
    ABUSES,
    API,
    Seen,
    Target,
    body_abuses,
    fault_of_line,
    header_abuses,
    picture_abuses,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own: what happens to it is nobody else's."""
    model = export_tiny(tmp_path_factory.mktemp("models") / "shapes", conditional=True)
    server = AppServer(model, tmp_path_factory.mktemp("scratch"))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def map_of(server):
    target = Target(server.url).look()
    yield target
    target.close()


@pytest.fixture(scope="module", autouse=True)
def before(map_of):
    """Two images from before anything has happened."""
    return images_of(map_of.like(), num_images=2, steps=3, seed=8)


@pytest.fixture
def target(map_of):
    """The server, from an address that it has not heard of."""
    target = map_of.like()
    yield target
    target.close()


@pytest.fixture(autouse=True)
def _alive(server):
    """Whatever a test has done: the process lives, and its output is the request log alone."""
    yield
    assert server.process.poll() is None
    assert not [line for line in server.log if not line.startswith(('{"time"', "open http"))]


def entries(server, outcome=None) -> list[dict]:
    """The lines of the request log for jobs."""
    found = [json.loads(line) for line in server.log if line.startswith('{"time"')]
    return [entry for entry in found if entry["event"] == "job" and outcome in (None, entry["outcome"])]


# ---- the list


def test_there_are_many_kinds():
    assert len({kind.name for kind in ABUSES}) == len(ABUSES) >= 60


ELSEWHERE = {kind.name for kind in (*body_abuses(), *header_abuses())}  # tests/hostile


@pytest.mark.parametrize(
    "kind", [kind for kind in ABUSES if not kind.slow and kind.name not in ELSEWHERE], ids=lambda kind: kind.name
)
def test_abuse(kind, target):
    seen = kind.act(target)
    assert kind.fault(seen) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ABUSES if kind.slow], ids=lambda kind: kind.name)
def test_slow_abuse(kind, target):
    assert kind.fault(kind.act(target)) is None


@pytest.mark.parametrize("kind", picture_abuses(), ids=lambda kind: kind.name)
def test_pictures(kind, target):
    if "noise" not in target.endpoints:
        pytest.skip("this server has no endpoint that takes a picture")
    assert kind.fault(kind.act(target)) is None


def test_no_answer_names_a_folder(server, target):
    paths = [
        "/",
        "/?view=api",
        "/config",
        "/manifest.json",
        f"{API}/info",
        f"{API}/openapi.json",
        f"{API}/startup-events",
    ]
    for path in [*paths, f"{API}/app_id", f"{API}/queue/status", "/healthz", f"{API}/file={server.scratch}/x"]:
        text = httpx.get(server.url + path).text
        assert str(server.scratch) not in text and str(ROOT) not in text and str(Path.home()) not in text, path


def lateness_of(server, *, seconds: int, attempts: int, **goals):
    """In one of the attempts all goals are met: a machine that is busy with other things may be late by itself."""
    for _ in range(attempts):
        late = abuse.lateness(server.url, seconds=seconds)
        if late["sent"] >= 10 and all(late[name] <= goal for name, goal in goals.items()):
            return
    raise AssertionError(late)


def test_two_connections_do_their_worst(server):
    """Before bodies were counted unparsed, both were beyond five seconds."""
    lateness_of(server, seconds=3, attempts=5, healthz=2000, frames=2000)


@pytest.mark.slow
def test_two_connections_do_their_worst_on_a_quiet_machine(server):
    lateness_of(server, seconds=15, attempts=1, healthz=100, frames=250)


def test_a_crowd_of_silent_connections(server, target):
    """Of one address: whoever comes after them is served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    silent = []
    try:
        for _ in range(1500):
            silent.append(abuse.socket.create_connection(target.place, timeout=300))
        for _ in range(20):
            assert httpx.get(f"{server.url}/healthz", timeout=300).status_code == 200
        assert target.call("generate", num_images=1, steps=1).how == "done"
    finally:
        for connection in silent:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def images_of(target: Target, **values) -> list[dict]:
    answer, session = target.join(target.number_of("generate"), target.data_for("generate", **values))
    assert answer.how == 200, answer
    done = next(message for message in target.messages(session) if message["msg"] == "process_completed")
    return done["output"]["data"][0]["images"]


def test_honest_after_all(before, target):
    """The same picture as before all that, asked for in another way, so that no cache knows it."""
    (image,) = images_of(target, num_images=1, steps=3, seed=9)
    assert image == before[1]
    assert Image.open(io.BytesIO(base64.b64decode(image["png"]))).size == (14, 14)


# ---- whatever can be sent

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.sampled_from(["data:,", "any"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "phases": (Phase.generate,),
    "suppress_health_check": list(HealthCheck),
}


def check(seen: Seen):
    assert seen.how in ("done", "error", 400, 413, 429), seen
    if seen.how != "done":
        assert fault_of_line(seen.text) is None


@settings(**SETTINGS)
@given(st.data())
def test_any_data_to_any_function(map_of, data):
    target = map_of.like()
    number, count = data.draw(st.sampled_from(target.functions))
    check(target.run(number, data.draw(st.lists(ANYTHING, min_size=count, max_size=count)), whole=False))
    target.close()


@settings(**SETTINGS)
@given(st.data())
def test_any_fields_to_any_run_of_the_page(map_of, data):
    """Objects with the right names and odd values."""
    target = map_of.like()
    what = data.draw(st.sampled_from(["generate", "compare"]) | ANYTHING)
    names = ["num_images", "class_name", "guidance_scale", "sampler", "steps", "seed", "model", "lanes", "t", "image"]
    value = st.dictionaries(st.sampled_from([*names, "example", "kind", "extra", "query"]), ANYTHING, max_size=6)
    check(target.press(what, data.draw(value | ANYTHING), whole=False))
    target.close()


@settings(**SETTINGS)
@given(
    st.sampled_from(
        [f"{API}/{name}" for name in ("queue/join", "call/generate", "call/v2/generate", "cancel", "reset")]
        + [f"/page/{name}" for name in ("run", "noise", "take_away", "export", "restore", "model")]
    ),
    ANYTHING,
)
def test_any_json_to_any_address(map_of, path, value):
    target = map_of.like()
    seen = target.post(path, value)
    assert seen.how in (200, 400, 404, 422, 429), seen
    target.close()


@settings(**SETTINGS)
@given(st.binary(max_size=300))
def test_any_bytes(map_of, content):
    target = map_of.like()
    for seen in (target.raw(content + b"\r\n\r\n", seconds=1), target.post(f"{API}/queue/join", body=content)):
        assert seen.how in (200, 400, 404, 405, 415, "closed"), seen
    target.close()


@settings(**SETTINGS)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_path(map_of, text):
    target = map_of.like()
    for start in ("/", f"{API}/", f"{API}/file=", "/page/"):
        try:
            seen = target.send("GET", httpx.URL(target.url).copy_with(path=start + text).path)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            continue
        assert seen.how in (200, 400, 403, 404), seen
        if seen.how >= 400:
            assert fault_of_line(seen.text) is None
    target.close()


FIELDS = ["model", "image", "example", "t", "seed", "settings", "url", "kind", "query", "file", "extra"]


@settings(**SETTINGS)
@given(st.data())
def test_any_value_to_any_question_of_the_page(map_of, data):
    target = map_of.like()
    name = data.draw(st.sampled_from(["model", "noise", "take_away", "export", "restore"]))
    names = st.sampled_from(["num_images", "steps", "seed", "sampler", "model", "x"])
    fields = st.dictionaries(st.sampled_from(FIELDS), ANYTHING | st.dictionaries(names, ANYTHING), max_size=6)
    seen = target.ask(name, data.draw(fields))
    assert seen.how == 200 or (seen.how in (400, 429) and fault_of_line(seen.text) is None), seen
    if seen.text.startswith('{"error"'):
        assert fault_of_line(json.loads(seen.text)["error"]) is None
    target.close()


# ---- visitors who leave: the model is free again at once


def running(target: Target, session: str | None = None):
    """A long run that has shown its first frames; (session, event, stream of messages)."""
    answer, session = abuse._join_long(target, session)
    assert answer.how == 200, answer
    stream = target.messages(session)
    for message in stream:
        if message["msg"] == "process_generating":
            break
    return session, json.loads(answer.text)["event_id"], stream


def left_as(server, event: str, outcome: str):
    """A run that was left before its end; how soon is measured in test_ui_leaving.py, where nobody else computes."""
    wait_until(lambda: any(entry["request"] == event for entry in entries(server)))
    assert next(entry for entry in entries(server) if entry["request"] == event)["outcome"] == outcome


def test_a_closed_tab_frees_the_model(server, target):
    with target.page_run("generate", {**abuse.LONG, "seed": 77}) as events:
        run = next(events)["run"]
        next(event for event in events if event.get("frames"))
    left_as(server, run, "left")
    assert target.press("generate", {"num_images": 1, "steps": 1}).how == "done"


def test_a_program_that_leaves_frees_the_model(server, target):
    _, event, stream = running(target)
    stream.close()
    left_as(server, event, "left")
    assert target.call("generate", num_images=1, steps=1).how == "done"


def test_cancel_frees_the_model(server, target):
    session, event, stream = running(target)
    number = target.number_of("generate")
    body = {"session_hash": session, "fn_index": number, "event_id": event}
    assert target.post(f"{API}/cancel", body).how == 200
    left_as(server, event, "stopped")
    stream.close()


def ends_of(stream) -> list[tuple]:
    return [(m["event_id"], m["success"]) for m in stream if m["msg"] == "process_completed"]


@pytest.mark.parametrize("event", ["x", "", None, 5, "another's"])
def test_cancel_of_any_event_leaves_the_stream(server, target, event):
    """Only a job that is there, of that session and function, is cancelled."""
    session, own, stream = running(target)
    other = target.like()
    other_session, others, other_stream = running(other)
    body = {"session_hash": session, "fn_index": target.number_of("generate")}
    seen = target.post(f"{API}/cancel", {**body, "event_id": others if event == "another's" else event})
    assert seen.how == 200 and json.loads(seen.text) == {"success": False}
    for goes_on in (stream, other_stream):
        assert next(message["msg"] for message in goes_on if message["msg"] != "heartbeat") == "process_generating"
    assert target.post(f"{API}/cancel", {**body, "event_id": own}).how == 200
    assert ends_of(stream) == [(own, True)]
    assert other.post(f"{API}/cancel", {**body, "session_hash": other_session, "event_id": others}).how == 200
    assert ends_of(other_stream) == [(others, True)]
    left_as(server, own, "stopped")
    left_as(server, others, "stopped")
    other.close()


def test_cancel_of_one_job_leaves_the_other(server, target):
    """Gradio would cancel every job of that session and function, and tell of one."""
    session, first, stream = running(target)
    answer, _ = abuse._join_long(target, session)
    second = json.loads(answer.text)["event_id"]
    next(m for m in stream if m["msg"] == "process_starts" and m["event_id"] == second)
    body = {"session_hash": session, "fn_index": target.number_of("generate"), "event_id": first}
    assert target.post(f"{API}/cancel", body).how == 200
    seen = []
    for message in stream:
        seen.append((message["msg"], message.get("event_id")))
        if seen.count(("process_generating", second)) > 3 and ("process_completed", first) in seen:
            break
    assert target.post(f"{API}/cancel", {**body, "event_id": second}).how == 200
    assert ends_of(stream) == [(second, True)]


def test_an_unread_join_never_holds_the_model(server, target):
    answer, session = abuse._join_long(target)
    event = json.loads(answer.text)["event_id"]
    for _ in range(3):
        assert target.call("generate", num_images=1, steps=1).how == "done"
    assert not [entry for entry in entries(server) if entry["request"] == event]
    # and it runs as soon as somebody reads
    stream = target.messages(session)
    assert next(m for m in stream if m["msg"] == "process_generating")
    stream.close()
    left_as(server, event, "left")


def test_a_connection_dropped_before_the_first_frame(server, target):
    answer, session = abuse._join_long(target)
    event = json.loads(answer.text)["event_id"]
    with target.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}):
        pass
    wait_until(lambda: httpx.get(f"{server.url}/healthz").json()["readers"] == 0)
    assert target.call("generate", num_images=1, steps=1).how == "done"
    assert not [entry for entry in entries(server, "done") if entry["request"] == event]


def test_a_reset_connection(server, target):
    """No polite end: the cable is cut."""
    answer, session = abuse._join_long(target)
    event = json.loads(answer.text)["event_id"]
    connection = abuse.socket.create_connection(target.place)
    option = abuse.struct.pack("ii", 1, 0)
    connection.setsockopt(abuse.socket.SOL_SOCKET, abuse.socket.SO_LINGER, option)
    connection.sendall(abuse.http(f"GET {API}/queue/data?session_hash={session}"))
    received = b""
    while b"process_generating" not in received:
        received += connection.recv(65_536)
    connection.close()
    left_as(server, event, "left")


@pytest.mark.slow
def test_a_stream_that_is_not_taken(server, target):
    """The reader is there and its window is shut: after a while it counts as gone."""
    answer, session = abuse._join_long(target)
    event = json.loads(answer.text)["event_id"]
    connection = abuse.socket.socket()
    connection.setsockopt(abuse.socket.SOL_SOCKET, abuse.socket.SO_RCVBUF, 2048)
    connection.connect(target.place)
    connection.sendall(abuse.http(f"GET {API}/queue/data?session_hash={session}"))
    wait_until(lambda: any(entry["request"] == event for entry in entries(server)), 120)
    assert not [entry for entry in entries(server, "done") if entry["request"] == event]
    connection.close()


# ---- the rest of what the door does


def test_a_session_may_go_on_after_its_limit(server, target):
    session = uuid.uuid4().hex
    streams = [abuse._join_long(target, session)[0].how for _ in range(4)]
    assert streams == [200, 200, 200, 429]
    with target.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}):
        pass
    wait_until(lambda: abuse._join_long(target, session)[0].how == 200)


def test_health(server):
    answer = httpx.get(f"{server.url}/healthz")
    assert answer.status_code == 200 and answer.json()["status"] == "ok"
    assert httpx.head(f"{server.url}/healthz").status_code == 200


def test_the_log_has_the_request(server, target):
    seen = target.call("generate", num_images=1, steps=2, seed=123456)
    assert seen.how == "done"
    wait_until(lambda: any(entry["settings"].get("seed") == 123456 for entry in entries(server, "done")))
    entry = next(entry for entry in entries(server, "done") if entry["settings"].get("seed") == 123456)
    assert entry["endpoint"] == "generate" and entry["settings"]["steps"] == 2 and entry["first"] <= entry["seconds"]
    assert target.address not in "".join(server.log)


def test_nothing_is_left_on_the_disk(server, target):
    assert target.call("generate", num_images=2, steps=2).how == "done"
    assert not [path for path in server.scratch.rglob("*") if path.is_file()]


def test_all_readers_are_counted_down(server):
    wait_until(lambda: httpx.get(f"{server.url}/healthz").json()["readers"] == 0)


# ---- the end


@pytest.mark.slow
def test_sigterm_in_the_middle_of_everything(tmp_path):
    server = AppServer(export_tiny(tmp_path / "shapes", conditional=True), tmp_path / "scratch")
    try:
        target = Target(server.url).look()
        _, event, stream = running(target)
        waiting = [abuse._join_long(target.like())[0].how for _ in range(3)]
        half = abuse.socket.create_connection(target.place)
        half.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n")
        server.process.send_signal(signal.SIGTERM)
        said = [message for message in stream if message["msg"] != "heartbeat"]
        assert server.process.wait(120) == 0
        assert waiting == [200] * 3 and said[-1]["msg"] in ("process_completed", "close_stream", "unexpected_error")
        ends = [(entry["request"], entry["outcome"]) for entry in entries(server)]
        assert ends[:1] == [(event, "stopped")]
        assert "leaving all the same" not in "".join(server.log)
        assert "Traceback" not in "".join(server.log)
        half.close()
    finally:
        server.process.kill()
