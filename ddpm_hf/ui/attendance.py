"""Gradio's queue, for a public server: a job starts when somebody is there to watch it, and ends when nobody is.

Gradio itself starts a job whether or not its answer is ever read, lets one visitor fill the queue, and keeps for
thousands of sessions what nobody fetched.
"""

import asyncio
import time
from collections import Counter

import gradio as gr
from fastapi import HTTPException
from gradio.queueing import Event, Queue
from gradio.server_messages import ProcessCompletedMessage, ProcessGeneratingMessage

from ddpm_hf.ui.journal import Journal
from ddpm_hf.ui.limits import MAX_JOBS, MAX_JOBS_OF_ADDRESS, MAX_JOBS_OF_SESSION, STOPPED

UNREAD_SECONDS = 30.0  # how long a job waits for its reader
SCARCE_SECONDS = 3.0  # ... when the queue is full
KEPT_ANALYTICS = 100


class AttendedQueue(Queue):
    """The queue of a page, after ``take_over``."""

    journal: Journal
    readers: Counter  # open streams by session
    closing: bool
    admission: asyncio.Lock  # jobs are counted and taken in one by one

    @classmethod
    def take_over(cls, page: gr.Blocks, journal: Journal) -> "AttendedQueue":
        """Make the queue of ``page`` one of these; before the launch, and after ``page.queue()``."""
        queue = page._queue
        queue.__class__ = cls
        queue.journal, queue.readers, queue.closing = journal, Counter(), False
        queue.ANALYTICS_MAX_EVENTS = KEPT_ANALYTICS
        queue.sleep_when_free = 0.005  # Gradio looks a thousand times a second
        queue._idle_sessions, queue.admission = set(), asyncio.Lock()
        return queue

    # ---- who is there

    def opened(self, session: str):
        """Somebody reads the stream of ``session`` now."""
        self.readers[session] += 1

    async def closed(self, session: str, *, ended: bool):
        """Somebody no longer does. ended: the stream had come to its end, so that nothing is left to do."""
        self.readers[session] -= 1
        if self.readers[session] <= 0:
            del self.readers[session]
            if not ended:
                await self.clean_events(session_hash=session)

    def session_of(self, event_id: str) -> str | None:
        """The session whose stream carries the answer to a job, also of one that has ended unread."""
        if event := self.event_ids_to_events.get(event_id):
            return event.session_hash
        sessions = (session for session, ids in self.pending_event_ids_session.items() if event_id in ids)
        return next(sessions, None)

    def jobs(self) -> list[Event]:
        """All jobs that wait or run."""
        return list(self.event_ids_to_events.values())

    # ---- what Gradio calls

    async def push(self, body, request, username):
        """Take a job in, or say why not."""
        if self.closing:
            raise HTTPException(503, "The server is stopping: try again in a minute.")
        address = request.scope.get("ddpm_hf.address", "")
        async with self.admission:
            await self._check_number_of_jobs(body.session_hash, address)
            answer = await super().push(body, request, username)
            if event := self.event_ids_to_events.get(answer[1] if answer[0] else None):
                event.address, event.outcome, event.first = address, None, None
            return answer

    async def _check_number_of_jobs(self, session: str | None, address: str):
        if len(self.jobs()) >= MAX_JOBS or (self.max_size and len(self) >= self.max_size):
            await self.drop_unread(SCARCE_SECONDS)
        jobs = self.jobs()
        if session and sum(job.session_hash == session for job in jobs) >= MAX_JOBS_OF_SESSION:
            raise HTTPException(429, f"{MAX_JOBS_OF_SESSION} requests of yours are waiting: let one of them end first.")
        if address and sum(getattr(job, "address", "") == address for job in jobs) >= MAX_JOBS_OF_ADDRESS:
            raise HTTPException(
                429, f"{MAX_JOBS_OF_ADDRESS} requests from your address are waiting: let one of them end first."
            )
        if len(jobs) >= MAX_JOBS or (self.max_size and len(self) >= self.max_size):
            raise HTTPException(503, f"{len(jobs)} requests are waiting, more than is good: try again in a minute.")

    def get_events(self):
        """The next job that can start and whose answer somebody is reading."""
        for concurrency_id, line in self.event_queue_per_concurrency_id.items():
            limit = line.concurrency_limit
            if limit is not None and line.current_concurrency >= limit:
                continue
            event = next((event for event in line.queue if event.session_hash in self.readers), None)
            if event is not None:
                line.queue.remove(event)
                return [event], event.fn.batch, concurrency_id
        return None

    def send_message(self, event, event_message):
        if isinstance(event_message, ProcessGeneratingMessage) and getattr(event, "first", 0) is None:
            event.first = time.monotonic() - event.enqueue_time
        if isinstance(event_message, ProcessCompletedMessage):
            event.outcome = _outcome(event_message)
        super().send_message(event, event_message)

    async def process_events(self, events, batch, begin_time, fn):
        try:
            await super().process_events(events, batch, begin_time, fn)
        finally:
            for event in events:
                unfinished = ("stopped", None) if event.alive else ("left", None)
                self._log(event, *(getattr(event, "outcome", None) or unfinished))

    def compute_analytics_summary(self, records):
        """Nothing: nobody asks for it, and Gradio computes it after every job."""
        return self.cached_event_analytics_summary

    # ---- tidying

    async def drop_unread(self, seconds: float = UNREAD_SECONDS):
        """Let go of the jobs that have waited for longer than this without a reader."""
        now = time.monotonic()
        waiting = [event for line in self.event_queue_per_concurrency_id.values() for event in line.queue]
        for event in waiting:
            if event.session_hash not in self.readers and now - event.enqueue_time > seconds:
                await self.clean_events(event_id=event._id)
                self._forget(event)
                self._log(event, "unread", None)

    def _forget(self, event: Event):
        ids = self.pending_event_ids_session.get(event.session_hash, set())
        ids.discard(event._id)
        if not ids:
            self.pending_event_ids_session.pop(event.session_hash, None)
            self.pending_messages_per_session.pop(event.session_hash, None)

    def drop_idle_sessions(self):
        """Forget what is kept for sessions without reader or job, at the second call in a row that finds them so."""
        busy = {job.session_hash for job in self.jobs()} | set(self.readers)
        kept = set(self.pending_messages_per_session) | set(self.pending_event_ids_session)
        idle = kept - busy
        for session in idle & self._idle_sessions:
            self.pending_messages_per_session.pop(session, None)
            self.pending_event_ids_session.pop(session, None)
        self._idle_sessions = idle

    async def tidy_for_ever(self, seconds: float = 5.0):
        """Both of the above, again and again."""
        ticks = 0
        while True:
            await asyncio.sleep(seconds)
            await self.drop_unread()
            ticks += 1
            if ticks % 12 == 0:
                self.drop_idle_sessions()

    def _log(self, event: Event, outcome: str, message: str | None):
        self.journal.job(
            event._id,
            getattr(event.fn, "api_name", None) or getattr(event.fn, "name", None) or "page",
            settings=_named_values(event),
            seconds=time.monotonic() - event.enqueue_time,
            first=getattr(event, "first", None),
            outcome=outcome,
            message=message,
            address=getattr(event, "address", ""),
        )


def _outcome(completed: ProcessCompletedMessage) -> tuple[str, str | None]:
    """What the log calls the end of a job, and the line that its visitor got instead of an answer."""
    output = completed.output if isinstance(completed.output, dict) else {}
    if completed.success:
        return ("stopped" if any(map(_says_stopped, output.get("data") or ())) else "done"), None
    message = output.get("error")
    if not isinstance(message, str):
        return "failed", None
    return ("stopped", None) if message.lower() == STOPPED.lower() else ("refused", message)


def _says_stopped(value) -> bool:
    """Whether a page's last value, or its difference to the one before (a list of [action, path, value]), does."""
    if isinstance(value, dict):
        return value.get("state") == "stopped"
    changes = value if isinstance(value, list) else ()
    return any(change[1:] == [["state"], "stopped"] for change in changes if isinstance(change, list))


def _named_values(event: Event) -> dict:
    """What a visitor sent, by the names of the controls or arguments."""
    values = event.data.data if event.data else []
    names = getattr(event.fn, "input_parameter_names", None) or []
    if len(names) != len(values):
        blocks = event.fn.inputs
        names = [getattr(block, "elem_id", None) or getattr(block, "label", None) or "value" for block in blocks]
    return dict(zip(map(str, names), values))
