"""Queues that are fair to sessions: each has one turn before any has its second."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator


class FairQueue:
    """Jobs in the order of their turns, round robin over sessions. Not safe for threads by itself."""

    def __init__(self):
        self._sessions: OrderedDict[str, deque] = OrderedDict()  # the next session first

    def __len__(self) -> int:
        return sum(map(len, self._sessions.values()))

    def add(self, job, session: str):
        self._sessions.setdefault(session, deque()).append(job)

    def count(self, session: str) -> int:
        """How many jobs of ``session`` wait."""
        return len(self._sessions.get(session, ()))

    def take(self):
        """The next job, or None; its session goes to the end."""
        if not self._sessions:
            return None
        session, jobs = self._sessions.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._sessions[session] = jobs
        return job

    def remove(self, job) -> bool:
        """Take ``job`` out of its turn; False if it does not wait."""
        for session, jobs in self._sessions.items():
            if job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._sessions[session]
                return True
        return False

    def __iter__(self) -> Iterator:
        """The jobs in the order in which they are taken if none is added."""
        for turn in range(max(map(len, self._sessions.values()), default=0)):
            for jobs in self._sessions.values():
                if turn < len(jobs):
                    yield jobs[turn]


class Turns:
    """One at a time, in a fair order. For one event loop."""

    def __init__(self):
        self._queue = FairQueue()
        self._taken = False

    async def take(self, session: str):
        """Wait for a turn. Whoever has it must ``give`` it on."""
        if not self._taken:
            self._taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.add(turn, session)
        try:
            await turn
        except asyncio.CancelledError:
            if not self._queue.remove(turn):  # it had just come
                self.give()
            raise

    def give(self):
        turn = self._queue.take()
        if turn is None:
            self._taken = False
        else:
            turn.set_result(None)
