"""Requests that a public server must refuse, as data: the tests send each alone, ``benchmarks/abuse.py`` all mixed."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

API = "/gradio_api"
JOIN = f"{API}/queue/join"
CANCEL = f"{API}/cancel"
PICTURE_ROUTES = (JOIN, "/page/noise", "/page/run", "/page/restore", f"{API}/call/noise", f"{API}/call/v2/noise")
FORM = "multipart/form-data; boundary=x"
LIMIT = 6_700_000  # bytes that a picture may take as a data URL
MEMORY = 100_000_000  # bytes by which one request may raise the most that the server has ever taken
SECONDS = 60.0  # that one answer may take, on a busy machine


@dataclass(frozen=True)
class HostileRequest:
    """One request and its right outcome.

    Attributes:
        body: the bytes; or a function that makes them, where they are large; or the fields in which a join for images
            differs from a good one, as a dict.
        hows: the right statuses. words: part of the message.
    """

    name: str
    body: bytes | dict | Callable[[], bytes] = field(repr=False)
    path: str = JOIN
    hows: tuple[int, ...] = (400,)
    words: str = ""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"

    def content(self, good: dict) -> bytes:
        """The bytes to send. good: a join that the server takes."""
        if isinstance(self.body, dict):
            return json.dumps({**good, **self.body}).encode()
        return self.body() if callable(self.body) else self.body


def _filled(start: bytes, unit: bytes, end: bytes, size: int = LIMIT) -> Callable[[], bytes]:
    return lambda: start + unit * ((size - len(start) - len(end)) // len(unit)) + end


def _form(*heads: bytes) -> bytes:
    """A form with an empty file for each head, which is what follows ``Content-Disposition:``."""
    parts = [b"--x\r\nContent-Disposition: " + head + b"\r\n\r\n" for head in heads]
    return b"\r\n".join(parts) + b"\r\n--x--\r\n"


JSON = [
    HostileRequest("JSON of 8 MB", _filled(b'{"data": ["', b"x", b'"]}', 8_000_013), hows=(413,), words="6.7 MB"),
    HostileRequest("deep JSON", b'{"data": ' + b"[" * 100 + b"]" * 100 + b"}", words="nested"),
    HostileRequest("deeper JSON", b"[" * 200_000, words="not JSON"),
    HostileRequest("a hundred thousand values", json.dumps({"data": [0] * 100_000}).encode(), words="too many values"),
    HostileRequest("not JSON", b"hello", words="not JSON"),
    HostileRequest("nothing", b"", words="not JSON"),
    HostileRequest("half a JSON", b'{"data": [', words="not JSON"),
    HostileRequest("JSON list", b"[1, 2]", words="JSON object"),
    HostileRequest("JSON null", b"null", words="JSON object"),
    HostileRequest("UTF-16", '{"data": "\\ud800"}'.encode("utf-16-be")),
    HostileRequest("broken UTF-8", b'{"data": "\xff\xfe"}', words="not JSON"),
    HostileRequest("number of 10,000 digits", b'{"data": [' + b"9" * 10_000 + b"]}", words="not JSON"),
    HostileRequest(
        "a form", b"data=1", hows=(415,), words="JSON", kind="application/x-www-form-urlencoded"
    ),
    HostileRequest("XML", b"<a/>", hows=(415,), words="JSON", kind="text/xml"),
    HostileRequest(
        "gzip", lambda: zlib.compress(b"x" * 10**7), hows=(415,), words="compressed",
        headers={"Content-Encoding": "gzip"},
    ),
]  # fmt: skip

# Each took the event loop for seconds, or for a second of every two, when it was parsed first and counted afterwards.
LOOP_BLOCKERS = [
    *(
        HostileRequest(f"6.7 MB of lists to {path}", _filled(b'{"data":[', b"[],", b"1]}"), path, (400,), "too many")
        for path in PICTURE_ROUTES
    ),
    HostileRequest("6.7 MB of objects", _filled(b'{"data":[', b"{},", b"1]}"), words="too many values"),
    HostileRequest("6.7 MB of pairs", _filled(b'{"data":{', b'"a":0,', b'"b":1}}'), words="too many values"),
    HostileRequest("6.7 MB of numbers", _filled(b'{"data":[', b"1,", b"1]}"), words="too many values"),
    HostileRequest("6.7 MB of short texts", _filled(b'{"data":[', b'"",', b"1]}"), words="too many values"),
    HostileRequest("6.7 MB of commas in a text", _filled(b'{"data":["', b",", b'"]}'), words="too many values"),
    HostileRequest("6.7 MB of brackets", _filled(b"", b"[", b""), words="too many values"),
    HostileRequest("a text of 6.7 MB", _filled(b'{"data":["', b"x", b'"]}'), words="must be a picture"),
    HostileRequest("a key of 6.7 MB", _filled(b'{"', b"x", b'":1}'), words="session_hash is missing"),
    HostileRequest("escapes of 6.7 MB", _filled(b'{"data":["', b"\\n", b'"]}'), words="must be a picture"),
    HostileRequest(
        "6.7 MB where no picture belongs", _filled(b'{"data":["', b"x", b'"]}'), f"{API}/call/generate", (413,), "131"
    ),
    HostileRequest("lists to cancel", _filled(b"[", b"[],", b"1]"), CANCEL, (413,), "16 kB"),
]  # fmt: skip

# The largest picture that the server takes: no picture, but that is found only after it has been decoded.
FULL_PICTURE = "data:image/png;base64," + "AAAA" * 1_660_000

FIELDS = [
    HostileRequest("unknown function", {"fn_index": 10**9}, hows=(404,), words="no such function"),
    HostileRequest("negative function", {"fn_index": -1}, hows=(404,), words="no such function"),
    HostileRequest("function true", {"fn_index": True}, words="whole number"),
    HostileRequest("function as text", {"fn_index": "0"}, words="whole number"),
    HostileRequest("function missing", {"fn_index": None}, words="whole number"),
    HostileRequest("session missing", {"session_hash": None}, words="session_hash is missing"),
    HostileRequest("session as list", {"session_hash": ["a"]}, words="session_hash must be"),
    HostileRequest("session of 10,000 letters", {"session_hash": "a" * 10_000}, words="session_hash must be"),
    HostileRequest("session with a path", {"session_hash": "../../etc"}, words="session_hash must be"),
    HostileRequest("session with markup", {"session_hash": "<script>"}, words="session_hash must be"),
    HostileRequest("data null", {"data": None}, words="must be a list"),
    HostileRequest("data object", {"data": {"0": 1}}, words="must be a list"),
    HostileRequest("too few data", {"data": []}, words="values, not 0"),
    HostileRequest("too many data", {"data": [1] * 50}, words="values, not 50"),
    HostileRequest("batched", {"batched": True}, words="not taken"),
    HostileRequest("simple_format", {"simple_format": True}, words="not taken"),
    HostileRequest("oauth_token", {"oauth_token": "hf_stolen"}, words="not taken"),
    HostileRequest("unknown endpoint", b'{"data": []}', f"{API}/call/magic", (404,), "no such function"),
    HostileRequest("endpoint with dots", b'{"data": []}', f"{API}/call/..%2f..%2frun", (404,)),
    HostileRequest("unknown argument", b'{"magic": 1}', f"{API}/call/v2/generate", (400,), "argument"),
    HostileRequest("around the queue", {}, f"{API}/run/generate", (404,), "nothing at this"),
    HostileRequest("around the queue by its old name", {}, f"{API}/api/generate", (404,), "nothing at this"),
    HostileRequest("a component's method", b'{"data": 1}', f"{API}/component_server", (404,), "nothing at this"),
    HostileRequest("a session for a call", {"session_hash": "a"}, f"{API}/call/generate", words="not taken"),
    HostileRequest("no such question", b'{"session": "a"}', "/page/magic", (404, 405)),
    HostileRequest("a question without a session", b"{}", "/page/noise", words="field session must be"),
    HostileRequest("a question of a path", b'{"session": "../a"}', "/page/noise", words="field session must be"),
    HostileRequest("no such run", b'{"session": "a", "what": "x", "values": {}}', "/page/run", words="eload the page"),
    HostileRequest("a run of a list", b'{"session": "a", "what": [], "values": []}', "/page/run", words="eload"),
    HostileRequest("cancel nothing", b'{"session_hash": "a", "fn_index": -5, "event_id": "x"}', CANCEL, (404,)),
    HostileRequest(
        "cancel with 1 MB", b'{"session_hash": "' + b"a" * 10**6 + b'"}', CANCEL, (413,), "at most 16 kB"
    ),
    HostileRequest("reset without event", b"{}", f"{API}/reset", (422,), "lacks a field"),
]  # fmt: skip

_GRADIO = {"_type": "gradio.FileData"}
_FILES = {
    "of another server": {"path": "http://127.0.0.1:1/x.png", "meta": _GRADIO},
    "of the metadata service": {"path": "http://169.254.169.254/latest", "meta": _GRADIO},
    "by file:": {"path": "file:///etc/passwd", "meta": _GRADIO},
    "of the server": {"path": "/etc/passwd", "meta": _GRADIO},
    "without a path": {"meta": _GRADIO},
    "by its address alone": {"path": "x", "url": "http://127.0.0.1:1/x.png", "meta": _GRADIO},
    "of a kind that is not known": {"path": "x", "meta": {"_type": None}},
}
FILES = [
    *(HostileRequest(f"file {name}", {"data": [file]}, words="not its address") for name, file in _FILES.items()),
    HostileRequest(
        "file in the middle of settings", {"data": [{"a": [_FILES["of the server"]]}]}, words="not its address"
    ),
]

_FILE = b'form-data; name="files"; filename="a.png"'

# The page sends pictures in JSON: Gradio's uploads kept what they were sent, on the disk and in memory.
UPLOADS = [
    HostileRequest(name, body, f"{API}/upload{query}", (404,), "nothing at this address", kind)
    for name, body, query, kind in [
        ("a file", _form(_FILE), "", FORM),
        ("a file of 6 MB", _filled(b"", b"x", b"", 6_000_000), "", FORM),
        ("a thousand files", _form(*[_FILE] * 1000), "", FORM),
        ("one file and 950 FILES", _form(_FILE, *[b'form-data; name="files"; FILENAME="b"'] * 950), "", FORM),
        ("filename*0", _form(_FILE, b'form-data; name="files"; filename*0="b"'), "", FORM),
        ("an escaped file name", _form(_FILE, b'form-data; name="files"; f\\ilename="b"'), "", FORM),
        ("an upload_id of 50 kB", _form(_FILE), "?upload_id=" + "a" * 50_000, FORM),
        ("no file", b"", "", FORM),
        ("an upload of JSON", b"{}", "", "application/json"),
        ("a form without boundary", b"filename=a", "", "multipart/form-data"),
        ("a form cut short", b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n', "", FORM),
        ("a file name with a path", _form(b'form-data; name="files"; filename="../../../x.png"'), "", FORM),
        ("a file name of 5000 letters", _form(b'form-data; name="files"; filename="' + b"a" * 5000 + b'"'), "", FORM),
    ]
] + [
    HostileRequest("progress of an upload", b"", f"{API}/upload_progress?upload_id=a", (404,), "nothing", method="GET"),
    HostileRequest("a form to a question", _form(b'form-data; name="a"; FILENAME="a"'), PICTURE_ROUTES[1], (415,),
                   "Send JSON", FORM),
]  # fmt: skip

BODIES = [*JSON, *LOOP_BLOCKERS, *FIELDS, *FILES, *UPLOADS]

# (header, value): the page must be the same with and without
HEADERS = [
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Host", "[::1"),
    ("X-Forwarded-Host", "a:b:c"),
    ("X-Forwarded-Host", "<script>"),
    ("X-Forwarded-Host", "evil.example, other.example"),
    ("X-Gradio-Server", "http://evil.example"),
    ("X-Gradio-Server", "[::1"),
    ("X-Direct-Url", "http://evil.example"),
    ("Forwarded", "host=evil.example;proto=https"),
    ("X-Forwarded-Proto", "gopher"),
    ("X-Forwarded-Proto", "https, evil"),
    ("X-Forwarded-Prefix", "/evil"),
    ("X-Original-Url", "/evil"),
    ("X-Rewrite-Url", "/evil"),
]
