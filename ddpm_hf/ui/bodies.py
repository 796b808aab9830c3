"""The bodies of requests: bounded in size and time, and counted before they are parsed.

Nothing here knows Gradio. A server has one event loop: whatever keeps it busy for long stops every visitor, so a body
whose parsing would take long is refused unparsed, and a large one is parsed in a thread.
"""

import json
import re
import time
from dataclasses import dataclass

import anyio
from anyio.to_thread import run_sync


class Refused(Exception):
    """A request that is not let through. The message is for the visitor."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Gone(Exception):
    """The other side has left, or no longer reads."""


@dataclass(frozen=True)
class BodyBounds:
    """What one body may take. A larger one than ``plain_json_bytes`` must be a picture, with few values around it."""

    plain_json_bytes: int = 131_072
    json_depth: int = 16
    json_values: int = 20_000
    json_values_of_picture: int = 256
    body_seconds: float = 60.0
    body_pause_seconds: float = 10.0


_parsing = anyio.CapacityLimiter(1)


def claimed(headers: dict[bytes, bytes], limit: int) -> int:
    """The number of bytes that the headers announce, or ``limit`` if they announce a body of unknown length.

    Raises:
        Refused: if it is above ``limit`` or the body is compressed.
    """
    if b"content-encoding" in headers:
        raise Refused(415, "Send the body as it is, not compressed.")
    length = headers.get(b"content-length")
    if length is None:
        return limit if b"transfer-encoding" in headers else 0
    if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > limit:
        raise too_large(limit)
    return int(length)


async def read(receive, limit: int, bounds: BodyBounds) -> bytes:
    """A whole body.

    Raises:
        Refused: if it is larger than ``limit`` or comes too slowly. Gone: if the client leaves.
    """
    body, deadline = bytearray(), time.monotonic() + bounds.body_seconds
    while True:
        patience = min(bounds.body_pause_seconds, deadline - time.monotonic())
        try:
            with anyio.fail_after(max(patience, 0.01)):
                message = await receive()
        except TimeoutError:
            raise Refused(408, "The request came too slowly: send it again.") from None
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large(limit)
        if not message.get("more_body"):
            return bytes(body)


def too_large(limit: int) -> Refused:
    size = f"{limit / 1e6:.1f} MB" if limit >= 1e6 else f"{limit / 1e3:.0f} kB"
    return Refused(413, f"The request is too large: at most {size} are allowed, make it smaller.")


def replayed(body: bytes, receive):
    """A ``receive`` that gives ``body`` and then what comes after it."""
    sent = False

    async def replay():
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def json_value(body: bytes, bounds: BodyBounds):
    """``parsed(body, bounds)`` without blocking the event loop for longer than a small body takes."""
    if len(body) <= bounds.plain_json_bytes:
        return parsed(body, bounds)
    return await run_sync(parsed, body, bounds, limiter=_parsing)


def parsed(body: bytes, bounds: BodyBounds):
    """A JSON value of bounded depth and number of parts, which names no file.

    Raises:
        Refused: for anything else. A body of too many values is refused before it is parsed.
    """
    large = len(body) > bounds.plain_json_bytes
    most = bounds.json_values_of_picture if large else bounds.json_values
    too_many = Refused(
        400, f"This is not JSON for this server: too many values (more than {most}), or nested deeper than "
        f"{bounds.json_depth}."
    )  # fmt: skip
    if len(body) - len(body.translate(None, b",[{")) > most:  # one of these precedes every value but the first
        raise too_many
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON.") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > bounds.json_depth:
            raise too_many
        inside = []
        for part in level:
            if isinstance(part, dict):
                check_no_file(part)
                inside += part.values()
            elif isinstance(part, list):
                inside += part
            elif large and isinstance(part, str) and len(part) > bounds.plain_json_bytes:
                check_data_url(part)
        level = inside
    return value


def check_data_url(text: str):
    head = text[:200].partition(",")[0]
    if not head.startswith("data:") or not head.endswith(";base64"):
        raise Refused(400, "A text this long must be a picture, as a data URL in base64.")


def check_no_file(part: dict):
    """Gradio fetches a file from the address in such a dict, or reads it from the server's disk."""
    meta, where = part.get("meta"), part.get("path")
    is_file = isinstance(meta, dict) and "_type" in meta
    if is_file or (isinstance(where, str) and re.match(r"\s*(?!data:)[a-z][a-z0-9+.-]*:", where, re.IGNORECASE)):
        raise Refused(400, "Send the picture itself, as a data URL, not its address or its path.")
