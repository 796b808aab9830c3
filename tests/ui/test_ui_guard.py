"""The parts of the guard, each alone; test_ui_hostile.py has them all in a real server."""

import asyncio
import json
import logging
import os

import fastapi
import gradio as gr
import pytest
from gradio.data_classes import PredictBodyInternal

from ddpm_hf.ui.addresses import address_of
from ddpm_hf.ui.attendance import AttendedQueue
from ddpm_hf.ui.guard import API, Allowances, Answer, Bounds, Refused, Shares, check_route, line_of, parsed
from ddpm_hf.ui.journal import REFUSALS_A_SECOND, Journal
from ddpm_hf.ui.limits import MAX_JOBS_OF_SESSION
from ddpm_hf.ui.sweep import sweep

# ---- addresses


def seen_from(peer: str | None, *forwarded: str) -> str:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    return address_of({"client": peer and (peer, 1), "headers": headers})


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("8.8.8.8", (), "8.8.8.8"),
        ("8.8.8.8", ("9.9.9.9",), "8.8.8.8"),  # nobody's proxy: what it says of itself is not believed
        ("127.0.0.1", ("9.9.9.9",), "9.9.9.9"),
        ("127.0.0.1", ("1.1.1.1, 9.9.9.9",), "9.9.9.9"),  # the left one came with the request
        ("127.0.0.1", ("1.1.1.1", "9.9.9.9, 10.0.0.7"), "9.9.9.9"),  # the right one is a proxy of the inside
        ("127.0.0.1", ("nonsense, , \xff",), "127.0.0.1"),
        ("127.0.0.1", ("9.9.9.9:4711",), "9.9.9.9"),
        ("127.0.0.1", ("[2a00:1450:4001:81b::200e]:443",), "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81b::200e", (), "2a00:1450:4001:81b::/64"),
        ("::ffff:8.8.8.8", (), "8.8.8.8"),
        ("10.0.0.5", ("9.9.9.9",), "10.0.0.5"),
        (None, ("9.9.9.9",), ""),
        ("testclient", (), ""),
    ],
)
def test_address(peer, forwarded, address):
    assert seen_from(peer, *forwarded) == address


def test_on_a_space_every_peer_is_a_proxy(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/space")
    assert seen_from("10.0.0.5", "1.1.1.1, 9.9.9.9, 10.1.2.3") == "9.9.9.9"
    assert seen_from("10.0.0.5", "192.168.0.1") == "10.0.0.5"


# ---- routes and bodies


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", path) for path in ("/", "/config", "/assets/x.js", f"{API}/queue/data", f"{API}/call/generate/1")],
        *[("HEAD", "/"), ("POST", f"{API}/queue/join"), ("POST", f"{API}/call/generate"), ("OPTIONS", f"{API}/upload")],
        ("GET", f"{API}/file=/uploads/picture.png"),
    ],
)
def test_open_routes(method, path):
    check_route(method, path)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/monitoring", 404),
        ("GET", f"{API}/proxy=http://x", 404),
        ("GET", "/config/../monitoring", 404),
        ("GET", f"{API}/call/../run", 404),
        ("POST", "/", 404),
        ("POST", f"{API}/deep_link", 404),
        ("GET", f"{API}/file=HTTP://x", 403),
        ("GET", f"{API}/file=file:///etc/passwd", 403),
        ("GET", f"{API}/heartbeat/a b", 400),
        ("PUT", "/", 405),
        ("CONNECT", "/", 405),
    ],
)
def test_closed_routes(method, path, status):
    with pytest.raises(Refused) as caught:
        check_route(method, path)
    assert caught.value.status == status


def test_json_of_bounded_depth_and_size():
    bounds = Bounds(json_depth=3, json_values=5)
    assert parsed(b'{"a": [NaN, {}]}', bounds)["a"][1] == {}
    for body in (b"[[[[]]]]", b'{"a": {"b": {"c": {}}}}', b"[1,2,3,4,5,6]", b"[[1,2],[3,4,5]]"):
        with pytest.raises(Refused, match="nested"):
            parsed(body, bounds)
    for body in (b"", b"{", b"\xff", b"[" * 10**5, b"9" * 5000):
        with pytest.raises(Refused, match="not JSON"):
            parsed(body, bounds)


@pytest.mark.parametrize("path", ["http://x/y", "HTTPS://x", " ftp://x", "file:///etc/passwd", "javascript:alert(1)"])
def test_files_of_other_servers_are_refused(path):
    with pytest.raises(Refused, match="itself"):
        parsed(json.dumps({"data": [{"path": path}]}).encode(), Bounds())
    parsed(b'{"path": "/uploads/x.png", "url": "http://127.0.0.1/gradio_api/file=/uploads/x.png"}', Bounds())


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (503, b'{"detail": "3 requests are waiting."}', "3 requests are waiting."),
        (400, b'{"detail": "no such file: /home/x"}', None),
        (400, b'{"detail": "KeyError: 7"}', None),
        (422, b'{"detail": [{"loc": ["body", "data"], "input": "<script>"}]}', None),
        (500, b"Internal Server Error", None),
        (403, b'{"detail": "File not allowed: /etc/passwd."}', None),
        (404, b"\xff\xfe", None),
        (400, b'{"detail": "two\\nlines"}', None),
    ],
)
def test_errors_of_gradio_become_one_line(status, body, line):
    found = line_of(status, body)
    assert found == line if line else found.endswith((".", "view=api.")) and not set("<>\n") & set(found)
    assert "home" not in found and "etc" not in found and "KeyError" not in found


# ---- amounts


def test_allowances_fill_up_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    allowances = Allowances(a_second=2, burst=4)
    assert [allowances.take("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert allowances.take("b")
    now[0] = 1.0
    assert [allowances.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 1000.0
    assert [allowances.take("a") for _ in range(5)] == [True] * 4 + [False]


def test_allowances_forget_the_quiet():
    allowances = Allowances(1, 1)
    for i in range(10_500):
        allowances.take(str(i))
    assert len(allowances._left) == 10_000


def test_shares_are_given_back():
    shares = Shares(total=10, each=6)
    with shares.held("a", 6):
        for address, amount in [("a", 1), ("b", 5)]:
            with pytest.raises(Refused), shares.held(address, amount):
                pass
        with shares.held("b", 4):
            pass
    with pytest.raises(ZeroDivisionError), shares.held("a", 6):
        raise ZeroDivisionError
    assert not shares._held


# ---- answers


def answered(*messages, method="GET", stall=5.0, send=None) -> tuple[Answer, list]:
    sent = []

    async def collect(message):
        sent.append(message)

    async def go():
        answer = Answer({"method": method}, send or collect, "7", stall)
        for message in messages:
            await answer.send(message)
        return answer

    return asyncio.run(go()), sent


def test_good_answers_pass_with_headers():
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
    body = {"type": "http.response.body", "body": b"hello"}
    answer, sent = answered(start, body)
    headers = dict(sent[0]["headers"])
    assert headers[b"x-request-id"] == b"7" and headers[b"x-content-type-options"] == b"nosniff"
    assert b"frame-ancestors 'self'" in headers[b"content-security-policy"]
    assert sent[1] == body and answer.ended and answer.refusal is None


def test_a_space_may_be_shown_in_a_frame(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/space")
    _, sent = answered({"type": "http.response.start", "status": 200, "headers": []})
    assert b"frame-ancestors" not in dict(sent[0]["headers"])[b"content-security-policy"]
    assert b"x-frame-options" not in dict(sent[0]["headers"])


def test_errors_are_rewritten():
    start = {"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"9")]}
    parts = [{"type": "http.response.body", "body": b"secret /", "more_body": True}]
    answer, sent = answered(start, *parts, {"type": "http.response.body", "body": b"home"})
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    said = json.loads(sent[1]["body"])
    assert said["detail"] == said["error"] and "secret" not in said["error"]
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[1]["body"])).encode()
    assert answer.refusal == (500, said["error"])


def test_a_reader_who_does_not_read_ends_the_task():
    async def never(_):
        await asyncio.sleep(60)

    async def stalls():
        answer = Answer({"method": "GET"}, never, "7", 0.05)
        with pytest.raises(asyncio.CancelledError):
            await answer.send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(30)
        assert answer.stalled and not answer.ended
        await answer.send({"type": "http.response.body"})  # no longer waits

    asyncio.run(asyncio.wait_for(stalls(), 20))


# ---- the log


@pytest.fixture
def entries(caplog):
    caplog.set_level(logging.INFO, logger="ddpm_hf.requests")
    logging.getLogger("ddpm_hf.requests").propagate = True
    return lambda: [json.loads(record.getMessage()) for record in caplog.records if record.name == "ddpm_hf.requests"]


def job(journal: Journal, **changes):
    about = {"settings": {"steps": 5}, "seconds": 1.23456, "first": 0.5, "outcome": "done", "message": None}
    journal.job("7", "generate", **{**about, "address": "9.9.9.9", **changes})


def test_a_job_is_one_line(entries):
    job(Journal())
    (entry,) = entries()
    assert {**entry, "time": "", "who": ""} == {
        "time": "",
        "event": "job",
        "request": "7",
        "endpoint": "generate",
        "settings": {"steps": 5},
        "seconds": 1.235,
        "first": 0.5,
        "outcome": "done",
        "message": None,
        "who": "",
    }


def test_the_log_names_nobody(entries):
    journal = Journal()
    job(journal)
    job(journal)
    job(journal, address="8.8.8.8")
    job(Journal())
    who = [entry["who"] for entry in entries()]
    assert who[0] == who[1] and len(set(who)) == 3 and all(len(name) == 12 for name in who)
    assert "9.9.9.9" not in json.dumps(entries())


def test_what_strangers_send_stays_small_in_the_log(entries):
    settings = {
        "picture": "data:image/png;base64,AAAA",
        "text": "x" * 10**6,
        "nan": float("nan"),
        "big": 10**400,
        "line": "a\nb\x1b[31m",
        "list": [1] * 100,
        "lanes": [{"sampler": "dpm", "steps": 5}],
    }
    job(Journal(), settings=settings)
    job(Journal(), settings={str(i): "y" * 50 for i in range(500)})
    first, second = entries()
    assert first["settings"] == {
        "picture": "26 characters",
        "text": "1000000 characters",
        "nan": "nan",
        "big": "a large number",
        "line": "a?b?[31m",
        "list": "list",
        "lanes": [{"sampler": "dpm", "steps": 5}],
    }
    assert second["settings"].endswith("characters")


def test_a_flood_of_refusals_is_counted(entries, monkeypatch):
    now = [5.5]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    journal = Journal()
    for _ in range(100):
        journal.refusal("7", 404, "GET", "/x", "no", "9.9.9.9")
    now[0] = 6.5
    journal.refusal("8", 404, "GET", "/x", "no", "9.9.9.9")
    assert len(entries()) == REFUSALS_A_SECOND + 1
    assert entries()[-1]["left_out"] == 100 - REFUSALS_A_SECOND


# ---- the disk


def aged(path, seconds: float, size: int = 10):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (1e6 - seconds, 1e6 - seconds))
    return path


def test_sweep_takes_what_is_old(tmp_path):
    old, new = aged(tmp_path / "a" / "b" / "old.png", 700), aged(tmp_path / "c" / "new.png", 10)
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    for folder in (tmp_path / "empty" / "inner", tmp_path / "empty"):
        os.utime(folder, (1e6 - 100, 1e6 - 100))
    (tmp_path / "just made").mkdir()
    os.utime(tmp_path / "just made", (1e6, 1e6))
    assert sweep(tmp_path, now=1e6) == 1
    assert not old.exists() and not old.parent.exists() and new.exists()
    assert not (tmp_path / "empty" / "inner").exists() and (tmp_path / "just made").exists()
    sweep(tmp_path, now=2e9)
    sweep(tmp_path, now=2e9)
    assert tmp_path.exists() and not any(path.is_file() for path in tmp_path.rglob("*"))


def test_sweep_bounds_the_bytes(tmp_path):
    files = [aged(tmp_path / str(i) / "x.png", i, 100) for i in range(10)]
    assert sweep(tmp_path, now=1e6, kept_bytes=450) == 4
    assert [path.exists() for path in files] == [True] * 4 + [False] * 6


def test_sweep_of_no_folder(tmp_path):
    assert sweep(tmp_path / "not there", now=1e6) == 0


# ---- jobs


def test_jobs_that_come_at_once_are_counted_one_by_one():
    """Gradio waits for a lock between the question and the answer whether a session has jobs: all would find none."""

    async def outcomes() -> list:
        def same(x: int) -> int:
            return x

        with gr.Blocks() as page:
            gr.api(same, api_name="same")
        page.queue()
        queue = AttendedQueue.take_over(page, Journal())
        request = fastapi.Request({"type": "http", "ddpm_hf.address": "9.9.9.9"})
        bodies = [PredictBodyInternal(session_hash="a", data=[1], fn_index=0) for _ in range(6)]
        async with queue.pending_message_lock:
            jobs = [asyncio.ensure_future(queue.push(body, request, None)) for body in bodies]
            await asyncio.sleep(0.05)
        return await asyncio.gather(*jobs, return_exceptions=True)

    taken = [isinstance(outcome, tuple) and outcome[0] for outcome in asyncio.run(outcomes())]
    assert taken.count(True) == MAX_JOBS_OF_SESSION
