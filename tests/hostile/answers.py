"""Answers of a Hub, of a proxy or of a page to log in, as data: which request gets which, and what must happen."""

import json
from dataclasses import dataclass, field

from hostile.cases import ESCAPES, MEMORY

PUSH = ("push", "model", "--repo-id", "alice/m")
TAG = (*PUSH, "--tag", "v1")
SAMPLE = ("sample", "alice/there", "--num-images", "1", "--steps", "1", "--output", "x.png")
DEPLOY = ("deploy-space", "--space-id", "alice/s", "--model", "alice/there")
INFO, TREE, COMMIT = ("GET", "/api/models/alice/m$"), ("GET", "/tree/"), ("POST", "/commit/main")
CARD, PREUPLOAD, BATCH = ("POST", "/api/validate-yaml"), ("POST", "/preupload/"), ("POST", "objects/batch")
CREATE, REFS, TAGGED, PUT = ("POST", "/api/repos/create"), ("GET", "/refs"), ("POST", "/tag/"), ("PUT", "^/s3/")
THERE, RESOLVED = ("GET", "/api/models/alice/there"), ("GET", "/alice/there/resolve/.*config.json")
NO_HUB = "the answer is not one of the Hub"
QUICK = ("look: other types", "tree: never ends", "commit: other types", "commit: refused in words")
QUICK += ("a redirect to a file", "compressed", "model: never ends", "model: files outside", "space: other types")
LATE = "does not answer|no whole answer"


def answer(body, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Head and body of an answer; JSON of what is no bytes."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Content-Type: application/json", "Connection: close"]).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Answered:
    """What one request of a command is answered, and the right outcome.

    Attributes:
        request: method, and regular expression of the path.
        raw: bytes of the answer; more: what follows again and again, after ``pause`` seconds each.
        words: of the one-line error, a regular expression; None where it must work.
        seconds, memory: that the command may take.
    """

    name: str
    request: tuple[str, str]
    raw: bytes = field(repr=False)
    words: str | None = NO_HUB
    command: tuple[str, ...] = PUSH
    more: bytes = field(default=b"", repr=False)
    pause: float = 0.0
    seconds: float = 60.0
    memory: int = MEMORY

    @property
    def slow(self) -> bool:
        """Whether it is among the slow tests."""
        return self.name not in QUICK


ENDLESS = {  # raw, more, pause, words
    "drips": (answer(b"", length=10**6), b" ", 0.2, LATE),
    "drips headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.2, LATE),
    "100 Continue for ever": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.2, LATE),
    "never ends": (answer(b"[", length=10**11), b'{"a": 1},' * 10**5, 0.0, f"{NO_HUB}.*larger than 64 MB"),
    "chunks that never end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"100000\r\n" + b" " * 2**20 + b"\r\n",
        0.0,
        f"{NO_HUB}.*larger than 64 MB",
    ),
}
SHAPES = {
    "a page": b"<html>Please log in</html>",
    "nothing": b"",
    "a list": [],
    "a number": 5,
    "null": None,
    "an empty object": {},
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "other types": {"id": 5, "sha": ["x"], "siblings": 3, "commitOid": 5, "files": 5, "objects": 5, "tags": 5},
    "escapes": {"id": ESCAPES, "sha": ESCAPES, "siblings": [{"rfilename": ESCAPES}], "commitOid": ESCAPES},
}
# requests whose answer a push has to understand
UNDERSTOOD = {"look": INFO, "tree": TREE, "ask how": PREUPLOAD, "ask where": BATCH, "commit": COMMIT}


def _redirect(place: str) -> bytes:
    return answer(b"", f"Location: {place}", status="307 Temporary Redirect")


def answer_cases() -> list[Answered]:
    """Answers to a push, and to what loads or shows a model of the Hub."""
    cases = []
    for name, request in UNDERSTOOD.items():
        for kind, (raw, more, pause, words) in ENDLESS.items():
            cases.append(Answered(f"{name}: {kind}", request, raw, words, more=more, pause=pause))
        for kind, value in SHAPES.items():
            cases.append(Answered(f"{name}: {kind}", request, answer(value), ""))
    said = f"{ESCAPES}{'x' * 10_000}".encode("unicode_escape").decode()
    refused = answer({"error": ESCAPES * 1000}, f"X-Error-Message: {said}", status="403 Forbidden")
    cases += [
        Answered(f"{name}: refused in words", request, refused, "refuses this")
        for name, request in (("create", CREATE), ("commit", COMMIT))
    ]
    cases += [
        Answered("card: errors of other types", CARD, answer({"errors": 5}, status="400 Bad Request"), ""),
        Answered(
            "card: errors with escapes",
            CARD,
            answer({"errors": [{"message": ESCAPES * 1000}]}, status="400 Bad Request"),
            "README.md",
        ),
        Answered("refs: a list", REFS, answer([]), "", TAG),
        Answered("tag: a page", TAGGED, answer(b"<html>"), None, TAG),
        Answered("redirects in a circle", INFO, _redirect("/api/models/alice/m"), ""),
        Answered("a redirect to a file", INFO, _redirect("file:///etc/passwd"), ""),
        Answered("a redirect to nowhere", INFO, _redirect("http://127.0.0.1:1/"), ""),
        Answered("a redirect to nothing", INFO, _redirect(""), ""),
        Answered("a redirect that is not one", INFO, _redirect("http://[::1"), ""),
        Answered("compressed", INFO, answer(b"x", "Content-Encoding: gzip"), f"{NO_HUB}.*compressed"),
        Answered("more than was said", TREE, answer(b"[]" + b"x" * 1000, length=2), ""),
        Answered("less than was said", TREE, answer(b"[]", length=1000), ""),
        Answered(
            "a tree of paths outside",
            TREE,
            answer([{"type": "file", "path": "../../x", "size": 1, "oid": "0" * 40}]),
            "",
        ),
        Answered(
            "a tree of other sizes",
            TREE,
            answer([{"type": "file", "path": "model_index.json", "size": "x", "oid": 5}]),
            "",
        ),
        Answered(
            "a tree of a million files",
            TREE,
            answer([{"type": "file", "path": f"{i}", "size": 1, "oid": "0" * 40} for i in range(200_000)]),
            "",
        ),
        Answered(
            "uploads elsewhere",
            BATCH,
            answer({"objects": [{"oid": "x", "size": 1, "actions": {"upload": {"href": "file:///etc/passwd"}}}]}),
            "",
        ),
        Answered("a store that is a page", PUT, answer(b"<html>"), None),
        # loading
        *(
            Answered(f"model: {kind}", THERE, raw, "", SAMPLE, more=more, pause=pause)
            for kind, (raw, more, pause, words) in ENDLESS.items()
        ),
        *(Answered(f"model: {kind}", THERE, answer(value), "", SAMPLE) for kind, value in SHAPES.items()),
        Answered(
            "model: files outside",
            THERE,
            answer({"id": "alice/there", "sha": "a" * 40, "siblings": [{"rfilename": "../../../x.py"}]}),
            "",
            SAMPLE,
        ),
        Answered(
            "model: settings that never end",
            RESOLVED,
            answer(b"", length=10**11),
            "",
            SAMPLE,
            more=b" " * 10**6,
        ),
        Answered("model: settings of a page", RESOLVED, answer(b"<html>"), "", SAMPLE),
        Answered("model: a redirect to a file", RESOLVED, _redirect("file:///etc/passwd"), "", SAMPLE),
        *(Answered(f"space: {kind}", THERE, answer(value), "", DEPLOY) for kind, value in SHAPES.items()),
        Answered("space: settings of a page", RESOLVED, answer(b"<html>"), "", DEPLOY),
    ]
    return cases
