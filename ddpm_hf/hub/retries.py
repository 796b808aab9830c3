"""Calls to the Hub, repeated where that can help; otherwise the error is one line.

The client retries single requests of uploads itself, but not those that create a repository, ask for information,
commit, or fetch a plain file. Everything here is called again as a whole, so it must find out by itself what has
arrived already.
"""

import email.utils
import json
import random
import re
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.reading import parse_json

T = TypeVar("T")
BUSY = {408, 425, 429, 500, 502, 503, 504}
MOVED_ON = {409, 412}  # somebody committed in between: what to commit must be found out anew
LARGEST_ANSWER = 64 * 2**20  # bytes
NOT_A_HUB = "the answer is not one of the Hub; is there a proxy, or a page to log in to the network?"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token"


@dataclass(frozen=True)
class RetryLimits:
    """How long to try. Times are in seconds.

    Args:
        silence: time-out of connecting, and of waiting for the next bytes of an answer.
        attempts: most calls, the first included.
        patience: no call is begun that would have to wait longer than this after the first one began.
        first_wait: largest pause after the first failure; it doubles with every further one.
        longest_wait: largest pause that we choose ourselves.
        answer: time-out of a whole answer, from the last bytes of the request.
    """

    silence: float = 60.0
    attempts: int = 6
    patience: float = 240.0
    first_wait: float = 1.0
    longest_wait: float = 30.0
    answer: float = 300.0


USUAL = RetryLimits()


def again(call: Callable[[], T], limits: RetryLimits = USUAL, also: set[int] = frozenset()) -> T:
    """Call until it returns, fails for good, or ``limits`` are reached; raises what the last call raised.

    Between the calls is a random pause that grows, or the one that the server asks for, plus a random part of the
    first: those that were sent away together do not come back together.

    Args:
        also: statuses worth another call besides those of a busy server.
    """
    jitter = wait_random_exponential(multiplier=limits.first_wait, max=limits.longest_wait)

    def wait(state: RetryCallState) -> float:
        asked = asked_to_wait(getattr(_cause(state.outcome.exception()), "response", None))
        return jitter(state) if asked is None else asked + random.uniform(0, limits.first_wait)

    return Retrying(
        retry=retry_if_exception(lambda error: is_passing(error, also)),
        wait=wait,
        stop=stop_after_attempt(limits.attempts) | stop_before_delay(limits.patience),
        reraise=True,
    )(call)


def look_at(repo_id: str, revision: str | None = None, token: str | None = None, limits: RetryLimits = USUAL):
    """Ask for a model, and read no more of the answer, and for no longer, than one of the Hub takes.

    What the client asks afterwards it reads whole, for as long as bytes come: a proxy or a page to log in is noticed
    here.

    Raises:
        UserError: if the answer is no Hub's.
        HFValidationError: if ``repo_id`` is no id.
        HfHubHTTPError: if the Hub refuses; and what the HTTP library raises.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

    validate_repo_id(repo_id)
    path = repo_id if revision is None else f"{repo_id}/revision/{quote(revision, safe='')}"
    url, body, deadline = f"{constants.ENDPOINT}/api/models/{path}", bytearray(), time.monotonic() + limits.answer
    headers = build_hf_headers(token=token)
    with get_session().stream("GET", url, headers=headers, timeout=limits.silence) as response:
        for piece in response.iter_bytes():
            body += piece
            if len(body) > LARGEST_ANSWER:
                raise UserError(f"{NOT_A_HUB} It is larger than {LARGEST_ANSWER // 2**20} MB.")
            if time.monotonic() > deadline:
                raise http_library().ReadTimeout(f"an answer was not whole after {limits.answer:.0f} s")
        hf_raise_for_status(response)
    try:
        values = parse_json(body.decode())
    except ValueError:
        values = None
    if not isinstance(values, dict) or not re.fullmatch(r"[0-9a-f]{40}", str(values.get("sha"))):
        raise UserError(NOT_A_HUB)


def cut_off() -> bool:
    """Whether the address of the Hub cannot be looked up here, where no proxy would do it: asking again is no use."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies().keys() - {"no"}:
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
        return False
    except OSError:
        return True


def is_passing(error: BaseException, also: set[int] = frozenset()) -> bool:
    """Whether the same call may succeed later: the server was busy, or the connection broke."""
    error = _cause(error)
    status = status_of(error)
    return is_cut(error) if status is None else status in BUSY | also


def _cause(error: BaseException) -> BaseException:
    """What the client has wrapped: an upload that fails is a RuntimeError from the failure."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_cut(error: BaseException) -> bool:
    """Whether a connection could not be made, broke, or stayed silent."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    # ConnectionErrors are those of the Xet client
    cut = isinstance(error, (http_library().TransportError, ConnectionError))
    return cut and not isinstance(error, OfflineModeIsEnabled)


def http_library():
    """The HTTP library of the client, which has changed its name once: it is that of the class its errors build on."""
    from huggingface_hub.errors import HfHubHTTPError

    return sys.modules[HfHubHTTPError.__mro__[1].__module__.split(".")[0]]


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an answer that was an error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and isinstance(error, ConnectionError):
        said = re.search(r"HTTP status \w+ error \((\d{3})", str(error))  # all that the Xet client tells
        status = int(said[1]) if said else None
    return status


def is_refusal(error: BaseException) -> bool:
    """Whether the Hub has said no: what was asked for has not been done."""
    status = status_of(_cause(error))
    return status is not None and 400 <= status < 500 and status not in BUSY


def without_reason(error: BaseException) -> bool:
    """Whether it is a refusal by the Xet storage, whose client tells the status of an answer, not its words."""
    error = _cause(error)
    return status_of(error) == 403 and getattr(error, "response", None) is None


def asked_to_wait(response) -> float | None:
    """Seconds >= 0 that an answer asks to wait: Retry-After (RFC 9110), or the window of a rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(response, "headers", {})
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    if value:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            return None
    limit = parse_ratelimit_headers(headers) if getattr(response, "status_code", None) == 429 else None
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None


def explained(error: Exception, limits: RetryLimits = USUAL) -> str:
    """One line: why a call to the Hub failed, and what to do."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    error = _cause(error)
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token for the Hub; {LOG_IN} with the role write."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to reach the Hub."
    if (status := status_of(error)) is not None:
        return _of_status(error, status, limits)
    if is_cut(error):
        return (
            f"the Hub cannot be reached or does not answer ({one_line(error).rstrip('.')}); "
            f"the same command goes on, and sends nothing twice."
        )
    if isinstance(error, (UserError, HFValidationError)):
        return one_line(error)
    if isinstance(error, (KeyError, IndexError, TypeError, AttributeError, json.JSONDecodeError)):
        return NOT_A_HUB  # the client takes the shape of an answer for granted
    return " ".join(str(error).split()) or type(error).__name__


def _of_status(error: Exception, status: int, limits: RetryLimits) -> str:
    said = " ".join((getattr(error, "server_message", None) or "").split()).rstrip(".")
    said = f": {said}" if said else ""
    if without_reason(error):
        said = ", its storage does not say why; often there is no room left in the account, or in the organisation"
    if status == 401 and _without_token(error):
        return f"there is no token for the Hub (401{said}); {LOG_IN} with the role write."
    if status == 401:
        return f"the Hub does not accept the token (401{said}); {LOG_IN} that is valid."
    if status == 403:
        return f"the Hub refuses this (403{said}); it takes a token with the role write, for an account with room."
    if status == 404:
        return f"there is no such repository, or the token may not see it (404{said})."
    asked = asked_to_wait(getattr(error, "response", None))
    if asked is not None and asked > limits.patience:
        return f"the Hub is busy ({status}) and asks to wait {asked:,.0f} s; the same command goes on then."
    if status in BUSY:
        return f"the Hub is busy ({status}{said}) and was so for {limits.attempts} tries; the same command goes on."
    if status in MOVED_ON:
        return f"others keep changing the repository ({status}{said}); the same command tries again."
    return f"the Hub refuses this ({status}{said})."


def _without_token(error: Exception) -> bool:
    """Whether nobody is logged in, and the refused request brought no token of its own."""
    from huggingface_hub import get_token

    try:
        brought = "authorization" in error.response.request.headers
    except (AttributeError, RuntimeError):  # of one that httpx did not make
        brought = False
    return not brought and get_token() is None
