"""Calls of the API through Gradio's queue, from the door to their end.

Gradio itself starts a job whether or not its answer is ever read, lets one visitor fill its queue, and cannot tell a
job of a visitor from another's. Here a call is counted when it comes, starts when somebody reads its stream, and ends
when nobody does.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ddpm_hf.ui.bodies import Refused

# calls that wait or run
MAX_CALLS = 40
MAX_CALLS_OF_ADDRESS = 8
MAX_CALLS_OF_SESSION = 3

UNREAD_SECONDS = 30.0  # how long a call waits for its reader
SCARCE_SECONDS = 3.0  # ... when there are too many
POLL_SECONDS = 0.02


@dataclass(eq=False)
class Call:
    """A call of an endpoint.

    session: whose stream carries the answer; None until Gradio has named it after the event. event: Gradio's id of it.
    taken: its function has begun. end: "stopped", "left" or "unread" if it is to end early.
    """

    endpoint: str
    session: str | None
    address: str
    event: str | None = None
    since: float = field(default_factory=time.monotonic)
    taken: bool = False
    end: str | None = None


class Attendance:
    """The calls that wait or run, and who reads.

    Args:
        free: ``free(event)`` ends what the model computes for a call.
    """

    def __init__(self, free: Callable[[str], None]):
        self.calls: list[Call] = []
        self.readers: Counter[str] = Counter()  # open streams by session
        self._free = free

    # ---- at the door

    def admit(self, endpoint: str, session: str | None, address: str) -> Call:
        """Count a call in.

        Raises:
            Refused: if there are too many.
        """
        if len(self.calls) >= MAX_CALLS:
            self._drop_unread(SCARCE_SECONDS)
        if session and sum(call.session == session for call in self.calls) >= MAX_CALLS_OF_SESSION:
            raise Refused(429, f"{MAX_CALLS_OF_SESSION} requests of yours are waiting: let one of them end first.")
        if address and sum(call.address == address for call in self.calls) >= MAX_CALLS_OF_ADDRESS:
            raise Refused(
                429, f"{MAX_CALLS_OF_ADDRESS} requests from your address are waiting: let one of them end first."
            )
        if len(self.calls) >= MAX_CALLS:
            raise Refused(503, f"{len(self.calls)} requests are waiting, more than is good: try again in a minute.")
        call = Call(endpoint, session, address)
        self.calls.append(call)
        return call

    def named(self, call: Call, event: str | None):
        """Gradio has taken the call in under this id; None if it has not."""
        if event is None:
            self._forget(call)
        else:
            call.event, call.session = event, call.session or event

    def cancel(self, session: str, endpoint: str, event) -> bool:
        """End the call with this event, if it is one of that session and endpoint."""
        for call in self.calls if isinstance(event, str) else ():
            if call.event == event and call.session == session and call.endpoint == endpoint:
                self._end(call, "stopped")
                return True
        return False

    # ---- streams

    def knows(self, session: str) -> bool:
        """Whether a stream of ``session`` has anything to carry."""
        return any(call.session == session for call in self.calls)

    def opened(self, session: str):
        """Somebody reads the stream of ``session`` now."""
        self.readers[session] += 1

    def closed(self, session: str, *, ended: bool):
        """Somebody no longer does. ended: the stream had come to its end, so that nothing is left to do."""
        self.readers[session] -= 1
        if self.readers[session] > 0:
            return
        del self.readers[session]
        if not ended:
            for call in [call for call in self.calls if call.session == session]:
                self._end(call, "left")

    # ---- in the endpoint's function

    @asynccontextmanager
    async def attended(self, session: str, endpoint: str) -> AsyncIterator[Call]:
        """The call that a function of ``endpoint`` answers, once somebody reads its answer or it is to end."""
        call = await self._oldest(session, endpoint)
        call.taken = True
        try:
            while not self.readers[session] and call.end is None:
                if time.monotonic() - call.since > UNREAD_SECONDS:
                    call.end = "unread"
                await asyncio.sleep(POLL_SECONDS)
            yield call
        finally:
            self._forget(call)

    async def _oldest(self, session: str, endpoint: str) -> Call:
        """The door learns an event's id when Gradio answers, which may be after Gradio has begun with it."""
        for _ in range(250):
            for call in self.calls:
                if not call.taken and call.session == session and call.endpoint == endpoint:
                    return call
            await asyncio.sleep(POLL_SECONDS)
        return Call(endpoint, session, "", end="left")

    def _drop_unread(self, seconds: float):
        """Let go of the calls that have waited for longer than this without a reader."""
        now = time.monotonic()
        for call in list(self.calls):
            if not self.readers[call.session] and now - call.since > seconds:
                self._end(call, "unread")
                self._forget(call)

    def _end(self, call: Call, how: str):
        call.end = call.end or how
        if call.event:
            self._free(call.event)
        if not call.taken:
            self._forget(call)

    def _forget(self, call: Call):
        if call in self.calls:
            self.calls.remove(call)
