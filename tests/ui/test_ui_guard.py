"""The parts of the guard, each alone; test_ui_hostile.py has them all in a real server."""

import asyncio
import contextlib
import errno
import json
import logging
import threading

import pytest
from hostile.bodies import HEADERS

from ddpm_hf.errors import UserError
from ddpm_hf.ui import attendance
from ddpm_hf.ui.addresses import address_of, checked_headers, trusted_proxies
from ddpm_hf.ui.attendance import MAX_CALLS_OF_ADDRESS, MAX_CALLS_OF_SESSION, Attendance
from ddpm_hf.ui.bodies import Refused, json_value, parsed
from ddpm_hf.ui.guard import API, Allowances, Answer, Bounds, Gate, Guard, Shares, check_route, line_of
from ddpm_hf.ui.journal import REFUSALS_A_SECOND, Journal
from ddpm_hf.ui.limits import DISK_FULL, STOPPED

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


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.5", ("9.9.9.9",), "9.9.9.9"),
        ("10.0.0.5", ("9.9.9.9, 192.168.1.7",), "192.168.1.7"),  # of the inside: the left one came with the request
        ("10.0.0.5", ("1.1.1.1, 9.9.9.9, 203.0.113.8",), "9.9.9.9"),  # through two proxies
        ("192.168.1.7", ("9.9.9.9",), "192.168.1.7"),  # nobody's proxy
        ("127.0.0.1", ("9.9.9.9",), "9.9.9.9"),
        ("10.0.0.5", (), "10.0.0.5"),
    ],
)
def test_proxies_that_are_named(peer, forwarded, address, monkeypatch):
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, 203.0.113.8")
    assert seen_from(peer, *forwarded) == address


def test_proxies_that_are_none_are_one_line(monkeypatch):
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8,nginx")
    with pytest.raises(UserError, match="must be addresses or networks"):
        trusted_proxies()


def test_no_request_renames_the_server(monkeypatch):
    monkeypatch.delenv("SPACE_HOST", raising=False)
    kept = [(b"host", b"example.org"), (b"x-forwarded-for", b"9.9.9.9"), (b"accept", b"*/*")]
    for name, value in HEADERS:
        changed = [*kept, (name.lower().encode(), value.encode())]
        assert [pair for pair in checked_headers({"headers": changed}) if pair in kept] == kept
        assert not [pair for pair in checked_headers({"headers": changed}) if b"host" in pair[0] and pair not in kept]
    assert (b"x-forwarded-proto", b"https") in checked_headers({"headers": [(b"x-forwarded-proto", b"https")]})
    monkeypatch.setenv("SPACE_HOST", "someone-space.hf.space")
    found = checked_headers({"headers": [(b"x-forwarded-host", b"evil"), (b"x-forwarded-proto", b"http")]})
    assert found == [(b"x-forwarded-host", b"someone-space.hf.space"), (b"x-forwarded-proto", b"https")]


# ---- routes and bodies


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", path) for path in ("/", "/config", "/page/main.js", f"{API}/queue/data", f"{API}/call/generate/1")],
        *[
            ("HEAD", "/"),
            ("POST", f"{API}/queue/join"),
            ("POST", f"{API}/call/generate"),
            ("POST", "/page/run"),
            ("OPTIONS", f"{API}/queue/join"),
        ],
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
        *[(method, f"{API}/upload", 404) for method in ("GET", "POST", "OPTIONS")],
        ("GET", f"{API}/upload_progress", 404),
        ("POST", f"{API}/run/generate", 404),
        ("POST", f"{API}/api/generate", 404),
        *[("GET", f"{API}/file={name}", 404) for name in ("HTTP://x", "file:///etc/passwd", "/uploads/picture.png")],
        *[("GET", f"/{name}/index.js", 404) for name in ("assets", "static", "svelte")],
        ("POST", f"{API}/component_server", 404),
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
    for body in (b"", b"{", b"\xff", b"9" * 5000):
        with pytest.raises(Refused, match="not JSON"):
            parsed(body, bounds)


def test_values_are_counted_before_parsing(monkeypatch):
    monkeypatch.setattr("json.loads", lambda _: pytest.fail("the body was parsed"))
    bounds = Bounds()
    for unit in (b"[],", b"{},", b"1,", b"[", b'{"a":'):
        for size in (100_000, 6_000_000):
            with pytest.raises(Refused, match="too many values"):
                parsed(b'{"data":[' + unit * (size // len(unit)), bounds)


def test_a_large_body_is_one_picture():
    bounds = Bounds(plain_json_bytes=1000, json_values_of_picture=8)
    picture = "data:image/png;base64," + "A" * 2000
    assert parsed(json.dumps({"data": [{"image": picture, "t": 1}]}).encode(), bounds)["data"][0]["t"] == 1
    for values in (["x" * 2000], [{"a": "data:,text" + "x" * 2000}], [picture, "data:;" + "A" * 2000]):
        with pytest.raises(Refused, match="must be a picture"):
            parsed(json.dumps(values).encode(), bounds)
    with pytest.raises(Refused, match="more than 8"):
        parsed(json.dumps([picture, *range(8)]).encode(), bounds)


def test_a_large_body_is_parsed_beside_the_event_loop(monkeypatch):
    threads = []
    monkeypatch.setattr("json.loads", lambda _: threads.append(threading.current_thread()))
    for size in (100, 1000):
        asyncio.run(json_value(b" " * size, Bounds(plain_json_bytes=500)))
    assert threads[0] is threading.main_thread() and threads[1] is not threading.main_thread()


@pytest.mark.parametrize("path", ["http://x/y", "HTTPS://x", " ftp://x", "file:///etc/passwd", "javascript:alert(1)"])
def test_files_of_other_servers_are_refused(path):
    with pytest.raises(Refused, match="itself"):
        parsed(json.dumps({"data": [{"path": path}]}).encode(), Bounds())
    with pytest.raises(Refused, match="itself"):
        parsed(b'{"path": "/uploads/x.png", "meta": {"_type": "gradio.FileData"}}', Bounds())
    assert parsed(b'{"path": "dpm", "meta": "none"}', Bounds())


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


def guarded(app, ask: bool) -> list[dict]:
    """What comes back from ``app`` behind the guard: for a file, or for a question of the page."""
    body = b'{"session": "a"}' if ask else b""
    path, method = ("/page/noise", "POST") if ask else ("/config", "GET")
    sent = []

    bodies = [{"type": "http.request", "body": body}]

    async def receive():
        return bodies.pop() if bodies else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def go():
        gate = Gate(Attendance(lambda session: None), Journal())
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        await Guard(app, gate)({**scope, "client": ("9.9.9.9", 1)}, receive, send)

    asyncio.run(go())
    return sent


@pytest.mark.parametrize("ask", [False, True])
def test_a_full_disk_is_one_line(ask, entries, caplog):
    async def app(scope, receive, send):
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/place")

    start, body = guarded(app, ask)
    assert start["status"] == 507 and json.loads(body["body"])["detail"] == DISK_FULL
    assert [entry["status"] for entry in entries()] == [507] and "secret" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


# ---- the log


@pytest.fixture
def entries(caplog):
    caplog.set_level(logging.INFO, logger="ddpm_hf.requests")
    logging.getLogger("ddpm_hf.requests").propagate = True
    return lambda: [json.loads(record.getMessage()) for record in caplog.records if record.name == "ddpm_hf.requests"]


def job(journal: Journal, settings=None, address="9.9.9.9", error=None):
    told = contextlib.suppress(UserError, asyncio.CancelledError)
    with told, journal.job("generate", settings or {"steps": 5}, address) as entry:
        entry.request = "7"
        entry.began()
        if error:
            raise error


def test_a_job_is_one_line(entries):
    job(Journal())
    (entry,) = entries()
    assert 0 <= entry.pop("first") <= entry.pop("seconds") < 1
    assert {**entry, "time": "", "who": ""} == {
        "time": "",
        "event": "job",
        "request": "7",
        "endpoint": "generate",
        "settings": {"steps": 5},
        "outcome": "done",
        "message": None,
        "who": "",
    }


def test_how_a_job_ended(entries):
    for error in (UserError("steps must be many."), UserError(STOPPED), asyncio.CancelledError()):
        job(Journal(), error=error)
    with pytest.raises(ZeroDivisionError):
        job(Journal(), error=ZeroDivisionError())
    ends = [(entry["outcome"], entry["message"]) for entry in entries()]
    assert ends == [("refused", "steps must be many."), ("stopped", None), ("left", None), ("failed", None)]


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


# ---- calls of the API


def test_calls_are_counted_at_the_door():
    calls = Attendance(lambda session: None)
    for _ in range(MAX_CALLS_OF_SESSION):
        calls.admit("generate", "a", "9.9.9.9")
    with pytest.raises(Refused, match="requests of yours") as caught:
        calls.admit("generate", "a", "8.8.8.8")
    assert caught.value.status == 429
    for number in range(MAX_CALLS_OF_ADDRESS - MAX_CALLS_OF_SESSION):
        calls.admit("generate", str(number), "9.9.9.9")
    with pytest.raises(Refused, match="from your address"):
        calls.admit("generate", "b", "9.9.9.9")
    calls.named(calls.calls[0], None)  # Gradio has not taken it
    calls.admit("generate", "a", "9.9.9.9")


def test_a_full_server_lets_go_of_the_unread(monkeypatch):
    monkeypatch.setattr(attendance, "MAX_CALLS", 2)
    freed = []
    calls = Attendance(freed.append)
    for session in "ab":
        calls.named(calls.admit("generate", session, ""), session)
    calls.opened("a")
    with pytest.raises(Refused, match="more than is good"):
        calls.admit("generate", "c", "")
    for call in calls.calls:
        call.since -= attendance.SCARCE_SECONDS + 1
    calls.admit("generate", "c", "")
    assert [call.session for call in calls.calls] == ["a", "c"] and freed == ["b"]


def test_a_call_waits_for_its_reader_and_ends_with_it():
    async def conversation() -> list:
        freed = []
        calls = Attendance(freed.append)
        calls.named(calls.admit("generate", None, ""), "abc")
        assert calls.knows("abc") and not calls.knows("x")
        waiting = asyncio.ensure_future(calls.attended("abc", "generate").__aenter__())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        calls.opened("abc")
        call = await waiting
        assert not calls.cancel("abc", "noise", "abc") and not calls.cancel("x", "generate", "abc") and call.end is None
        calls.closed("abc", ended=False)
        return [call.end, freed]

    assert asyncio.run(conversation()) == ["left", ["abc"]]


def test_a_call_that_nobody_reads_has_an_end(monkeypatch):
    monkeypatch.setattr(attendance, "UNREAD_SECONDS", 0.05)

    async def unread() -> str:
        calls = Attendance(lambda session: None)
        calls.named(calls.admit("generate", None, ""), "abc")
        async with calls.attended("abc", "generate") as call:
            assert calls.calls == [call]
        assert calls.calls == []
        return call.end

    assert asyncio.run(unread()) == "unread"
