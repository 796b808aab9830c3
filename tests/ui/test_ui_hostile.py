"""A real server under attack: every kind of abuse gets the right answer, and honest visitors are served meanwhile."""

import base64
import io
import json
import os
import signal
import time
import uuid

import httpx
import pytest
from app_server import AppServer, export_tiny
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks import abuse
from benchmarks.abuse import ABUSES, API, Seen, Target, fault_of_line, picture_abuses


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own: what happens to it is nobody else's."""
    model = export_tiny(tmp_path_factory.mktemp("models") / "shapes", conditional=True)
    server = AppServer(model, tmp_path_factory.mktemp("scratch"))
    yield server
    server.stop()


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
    """Whatever a test has done: the process lives, and no exception has reached its log."""
    yield
    assert server.process.poll() is None
    log = "".join(server.log)
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


def entries(server, outcome=None) -> list[dict]:
    """The lines of the request log for jobs."""
    found = [json.loads(line) for line in server.log if line.startswith('{"time"')]
    return [entry for entry in found if entry["event"] == "job" and outcome in (None, entry["outcome"])]


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- the list


def test_there_are_many_kinds():
    assert len({kind.name for kind in ABUSES}) == len(ABUSES) >= 60


@pytest.mark.parametrize("kind", [kind for kind in ABUSES if not kind.slow], ids=lambda kind: kind.name)
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
    "max_examples": 40,
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
    """Also to those of the page, whose controls would not send it."""
    target = map_of.like()
    number, count = data.draw(st.sampled_from(target.functions))
    check(target.run(number, data.draw(st.lists(ANYTHING, min_size=count, max_size=count)), whole=False))
    target.close()


@settings(**SETTINGS)
@given(st.data())
def test_any_fields_to_any_function(map_of, data):
    """Objects with the right names and odd values: what the parts of the page send."""
    target = map_of.like()
    number, count = data.draw(st.sampled_from(target.functions))
    names = ["num_images", "class_name", "guidance_scale", "sampler", "steps", "seed", "model", "lanes", "t", "image"]
    value = st.dictionaries(st.sampled_from([*names, "example", "kind", "extra", "query"]), ANYTHING, max_size=6)
    check(target.run(number, data.draw(st.lists(value, min_size=count, max_size=count)), whole=False))
    target.close()


@settings(**SETTINGS)
@given(
    st.sampled_from(["queue/join", "call/generate", "call/v2/generate", "cancel", "reset", "component_server"]),
    ANYTHING,
)
def test_any_json_to_any_address(map_of, path, value):
    target = map_of.like()
    seen = target.post(f"{API}/{path}", value)
    assert seen.how in (200, 400, 404, 422, 429), seen
    target.close()


@settings(**SETTINGS)
@given(st.binary(max_size=300))
def test_any_bytes(map_of, content):
    target = map_of.like()
    for seen in (target.raw(content + b"\r\n\r\n"), target.post(f"{API}/queue/join", body=content)):
        assert seen.how in (200, 400, 404, 405, 415, "closed"), seen
    target.close()


@settings(**SETTINGS)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_path(map_of, text):
    target = map_of.like()
    for start in ("/", f"{API}/", f"{API}/file=", "/assets/"):
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
def test_any_value_to_any_function_beside_the_queue(map_of, data):
    target = map_of.like()
    component, name = data.draw(st.sampled_from(target.calls))
    names = st.sampled_from(["num_images", "steps", "seed", "sampler", "model", "x"])
    fields = st.dictionaries(st.sampled_from(FIELDS), ANYTHING | st.dictionaries(names, ANYTHING), max_size=6)
    body = {"component_id": component, "fn_name": name, "session_hash": "a", "data": data.draw(ANYTHING | fields)}
    seen = target.post(f"{API}/component_server", body)
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


def left_within(server, event: str, outcome: str, seconds=5.0):
    """One second on a machine of its own; here others compute too. The run itself would take much longer."""
    wait_until(lambda: any(entry["request"] == event for entry in entries(server, outcome)), seconds)
    assert next(entry for entry in entries(server) if entry["request"] == event)["outcome"] == outcome


def test_a_closed_tab_frees_the_model(server, target):
    _, event, stream = running(target)
    stream.close()
    left_within(server, event, "left")
    assert target.call("generate", num_images=1, steps=1).how == "done"


def test_cancel_frees_the_model(server, target):
    session, event, stream = running(target)
    number = target.number_of("generate")
    body = {"session_hash": session, "fn_index": number, "event_id": event}
    assert target.post(f"{API}/cancel", body).how == 200
    left_within(server, event, "stopped")
    stream.close()


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
    left_within(server, event, "left")


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
    left_within(server, event, "left")


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
    """But for what was uploaded in the last minutes; see sweep."""
    assert target.call("generate", num_images=2, steps=2).how == "done"
    files = [path for path in server.scratch.rglob("*") if path.is_file()]
    assert all(path.stat().st_size <= 5_000_000 for path in files)
    assert not [path for path in files if path.suffix in (".webp", ".gif", ".mp4")]


def test_all_readers_are_counted_down(server):
    wait_until(lambda: httpx.get(f"{server.url}/healthz").json()["readers"] == 0)


# ---- the end


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
        assert server.process.wait(30) == 0
        assert waiting == [200] * 3 and said[-1]["msg"] in ("process_completed", "close_stream", "unexpected_error")
        ends = [(entry["request"], entry["outcome"]) for entry in entries(server)]
        assert ends[:1] == [(event, "stopped")]
        assert "leaving all the same" not in "".join(server.log)
        assert "Traceback" not in "".join(server.log)
        half.close()
    finally:
        server.process.kill()


def test_its_own_folder_is_gone_at_the_end(tmp_path):
    model = export_tiny(tmp_path / "shapes", conditional=True)
    server = AppServer(model, tmp_path, GRADIO_TEMP_DIR="", TMPDIR=str(tmp_path))
    try:
        target = Target(server.url)
        (path,) = json.loads(abuse.upload(("a.png", b"x"))(target).text)
        assert os.path.isfile(path) and path.startswith(f"{tmp_path}/ddpm_hf-")
        assert server.stop() == 0
        assert not os.path.exists(path) and not list(tmp_path.glob("ddpm_hf-*"))
    finally:
        server.process.kill()
