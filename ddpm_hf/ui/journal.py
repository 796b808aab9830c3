"""The request log: one line of JSON for every job and every refusal, without anything that names a person."""

import asyncio
import hmac
import json
import logging
import math
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone

from ddpm_hf.errors import UserError
from ddpm_hf.ui.limits import STOPPED

logger = logging.getLogger("ddpm_hf.requests")

REFUSALS_A_SECOND = 10  # more are counted and not written: a flood must not fill the disk


@dataclass
class Entry:
    """A job on its way. outcome: "done", "refused", "failed", "stopped", "left" (its reader went away) or "unread"."""

    since: float = field(default_factory=time.monotonic)
    first: float | None = None
    outcome: str = "done"
    request: str = ""

    def began(self):
        """Its first value is there."""
        self.first = self.first or time.monotonic() - self.since


class Journal:
    """Writes the log. An address is in it as a hash, salted anew at every start, so that one cannot be looked up."""

    def __init__(self):
        self._salt = secrets.token_bytes(16)
        self._second, self._written, self._left_out = 0, 0, 0

    def who(self, address: str) -> str:
        """A visitor's address as the log shows it: the same one at every request, until the next start."""
        return hmac.digest(self._salt, address.encode("utf-8", "replace"), "sha256").hex()[:12] if address else ""

    @contextmanager
    def job(self, endpoint: str, settings: dict, address: str) -> Iterator[Entry]:
        """Write a line at the end of the block, which does a job; whoever does it may set the outcome.

        Args:
            settings: what was asked for. Of pictures and of long texts only the length is written.
        """
        entry, message = Entry(), None
        try:
            yield entry
        except UserError as error:
            entry.outcome = "stopped" if str(error) == STOPPED else "refused"
            message = str(error) if entry.outcome == "refused" else None
            raise
        except (GeneratorExit, asyncio.CancelledError):
            entry.outcome = "left"
            raise
        except BaseException:
            entry.outcome = "failed"
            raise
        finally:
            self._write(
                event="job",
                request=entry.request,
                endpoint=endpoint,
                settings=_bounded({_short(name): _short(value) for name, value in settings.items()}),
                seconds=round(time.monotonic() - entry.since, 3),
                first=None if entry.first is None else round(entry.first, 3),
                outcome=entry.outcome,
                message=None if message is None else _short(message, 200),
                who=self.who(address),
            )

    def refusal(self, request_id: str, status: int, method: str, path: str, message: str, address: str):
        """A request that went no further than the door."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= REFUSALS_A_SECOND:
            self._left_out += 1
            return
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        self._write(
            event="refusal",
            request=request_id,
            status=status,
            method=_short(method),
            path=_short(path),
            message=message,
            who=self.who(address),
            **({"left_out": left_out} if left_out else {}),
        )

    def _write(self, **entry):
        time_now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        logger.info(json.dumps({"time": time_now, **entry}))


def log_to_stdout():
    """Send the request log to standard output, where a Space shows it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _bounded(settings: dict) -> dict | str:
    length = len(json.dumps(settings))
    return settings if length <= 2000 else f"{length} characters"


def _short(value, length: int = 60):
    """A value that is safe and small in a line of JSON."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 10**20 else "a large number"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        if len(value) > length or value.startswith("data:"):
            return f"{len(value)} characters"
        return "".join(c if c.isprintable() else "?" for c in value)
    if isinstance(value, list) and len(value) <= 4:
        return [_short(item, length) for item in value]
    if isinstance(value, dict) and len(value) <= 12 and all(isinstance(name, str) for name in value):
        return {_short(name): _short(item, length) for name, item in value.items()}
    return type(value).__name__
