"""What can go wrong with a push, and how it ends. ``python tests/hub/faults.py`` prints the table of README.md."""

from dataclasses import dataclass, field

EVER = 10_000  # times
IN_PROGRESS = "Cannot create repo: another conflicting operation is in progress"
QUOTA = "Private repository storage limit reached, please upgrade your plan"

# requests of a push: method, regular expression of the path
CREATE, INFO, TREE = ("POST", "/api/repos/create"), ("GET", "/api/models/alice/m$"), ("GET", "/tree/")
CARD, PREUPLOAD = ("POST", "/api/validate-yaml"), ("POST", "/preupload/")
BATCH, PUT = ("POST", r"\.git/info/lfs/objects/batch"), ("PUT", "^/s3/")
XET_TOKEN, XORB, SHARD = ("GET", "xet-write-token"), ("POST", "/cas/v1/xorbs"), ("POST", "/cas/v1/shards")
COMMIT, TAG, ANY = ("POST", "/commit/main"), ("POST", "/tag/"), ("*", "")
NAMES = {
    CREATE: "create the repository",
    INFO: "look at the repository",
    TREE: "list its files",
    CARD: "check the card",
    PREUPLOAD: "ask how to upload",
    BATCH: "ask where to upload",
    PUT: "upload weights",
    XET_TOKEN: "get a token of the storage",
    XORB: "upload weights",
    SHARD: "register the upload",
    COMMIT: "commit",
    TAG: "tag",
    ANY: "all",
}
BOTH = (CREATE, INFO, TREE, CARD, PREUPLOAD, COMMIT, TAG)
OF = {"lfs": (*BOTH, BATCH, PUT), "xet": (*BOTH, XET_TOKEN, XORB, SHARD)}
SENT = (PUT, XORB)
STORED = (PUT, XORB, SHARD)

ARRIVES = "it arrives"
BUSY = "the Hub is busy (…) and was so for … tries; the same command goes on."
WAIT = "the Hub is busy (…) and asks to wait 3,600 s; the same command goes on then."
CUT = "the Hub cannot be reached or does not answer (…); the same command goes on, and sends nothing twice."
NO_TOKEN = (
    "the Hub does not accept the token (…); log in with `hf auth login`, or set HF_TOKEN to a token that is valid."
)
REFUSED = "the Hub refuses this (…); it takes a token with the role write, for an account with room."
GONE = "there is no such repository, or the token may not see it (…)."
OTHERS = "others keep changing the repository (…); the same command tries again."


@dataclass(frozen=True)
class Case:
    """A fault of one request of a push.

    requests: each is a test of its own, with every storage that has it.
    ends: ARRIVES, or what the user reads, where … is anything.
    settings: of the Hub double's ``Fault``.
    contains: part of what the user reads.
    part_size: bytes of the parts in which LFS is uploaded.
    silence: time-out of a request, in seconds.
    """

    name: str
    requests: tuple
    ends: str
    settings: dict = field(default_factory=dict)
    contains: str = ""
    part_size: int | None = None
    silence: float = 60.0


def everything(*but) -> tuple:
    return tuple(dict.fromkeys(request for requests in OF.values() for request in requests if request not in but))


CASES = [
    Case("503, twice", everything(*STORED, XET_TOKEN), ARRIVES, {"status": 503, "times": 2}),
    Case("503, once", (*STORED, XET_TOKEN), ARRIVES, {"status": 503}),
    Case("429 with Retry-After: 0", everything(), ARRIVES, {"status": 429, "headers": {"Retry-After": "0"}}),
    Case("429 with a window of 0 s", (COMMIT,), ARRIVES, {"status": 429, "headers": {"ratelimit": '"api";r=0;t=0'}}),
    Case("cut after 0 bytes sent", (CREATE, PREUPLOAD, COMMIT, *STORED), ARRIVES, {"drop_after": 0}),
    Case("cut after 1,000 bytes sent", SENT, ARRIVES, {"drop_after": 1000}),
    Case("cut after 1,000,000 bytes sent", SENT, ARRIVES, {"drop_after": 1_000_000}),
    Case("second of three parts cut", (PUT,), ARRIVES, {"drop_after": 1000, "skip": 1}, part_size=500_000),
    Case("503 for the third of three parts", (PUT,), ARRIVES, {"status": 503, "skip": 2}, part_size=500_000),
    Case("answer cut after 0 bytes", (CREATE, INFO, COMMIT, *SENT), ARRIVES, {"truncate_after": 0}),
    Case("answer cut after 20 bytes", (INFO, TREE, PREUPLOAD, COMMIT), ARRIVES, {"truncate_after": 20}),
    Case("closed without an answer", (INFO, COMMIT), ARRIVES, {"drop_after": 0, "fin": True}),
    Case("answer lost", everything(XET_TOKEN, BATCH), ARRIVES, {"lose_response": True}),
    Case("answer after the time-out", (CREATE, COMMIT), ARRIVES, {"delay": 4.0}, silence=2.0),
    Case("0.1 s late", (ANY,), ARRIVES, {"delay": 0.1, "times": EVER}),
    Case("409: in progress", (CREATE,), ARRIVES, {"status": 409, "message": IN_PROGRESS}),
    Case("409", (COMMIT,), ARRIVES, {"status": 409}),
    Case("412: a commit in between", (COMMIT,), ARRIVES, {"status": 412}),
    Case("503, for ever", (CREATE, TREE, COMMIT, TAG, *STORED), BUSY, {"status": 503, "times": EVER}),
    Case("429, for ever", (INFO, *SENT), BUSY, {"status": 429, "times": EVER}),
    Case(
        "429 with Retry-After: 3600",
        (CREATE, COMMIT, PUT),
        WAIT,
        {"status": 429, "headers": {"Retry-After": "3600"}, "times": EVER},
    ),
    Case("cut, for ever", (CREATE, COMMIT, *SENT), CUT, {"drop_after": 0, "times": EVER}),
    Case("never an answer", (CREATE, COMMIT, *SENT), CUT, {"delay": 30.0, "times": EVER}, silence=1.0),
    Case("401", (CREATE, PREUPLOAD, COMMIT, *SENT), NO_TOKEN, {"status": 401}),
    Case("403", (CREATE, PREUPLOAD, COMMIT, *SENT), REFUSED, {"status": 403}),
    Case(
        "403: quota",
        (BATCH, COMMIT, XET_TOKEN),
        REFUSED,
        {"status": 403, "message": QUOTA, "times": 3},  # the Hub says it as often as it is asked
        contains=QUOTA,
    ),
    Case("403: quota", (XORB, SHARD), REFUSED, {"status": 403, "message": QUOTA}, contains="no room left"),
    Case("404", (TREE, PREUPLOAD, COMMIT, *SENT), GONE, {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}),
    Case("409: in progress, for ever", (CREATE,), OTHERS, {"status": 409, "message": IN_PROGRESS, "times": EVER}),
    Case("409, for ever", (COMMIT,), OTHERS, {"status": 409, "times": EVER}),
    Case("412, for ever", (COMMIT,), OTHERS, {"status": 412, "times": EVER}),
]


def table() -> str:
    """The cases as Markdown."""
    lines = ["| fault | request | storage | how a push ends |", "|---|---|---|---|"]
    for case in CASES:
        storages = [storage for storage in OF if any(r in (*OF[storage], ANY) for r in case.requests)]
        requests = ", ".join(dict.fromkeys(NAMES[request] for request in case.requests))
        lines.append(f"| {case.name} | {requests} | {' and '.join(storages)} | {case.ends} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
