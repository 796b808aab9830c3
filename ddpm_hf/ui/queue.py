"""Queues that are fair: addresses take turns, and the sessions of an address take turns with each other."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator


class FairQueue:
    """Jobs in the order of their turns, round robin over addresses, then over sessions. Not thread-safe by itself."""

    def __init__(self):
        self._addresses: OrderedDict[str, OrderedDict[str, deque]] = OrderedDict()  # the next address first

    def __len__(self) -> int:
        return sum(len(jobs) for sessions in self._addresses.values() for jobs in sessions.values())

    def add(self, job, session: str, address: str = ""):
        self._addresses.setdefault(address, OrderedDict()).setdefault(session, deque()).append(job)

    def take(self):
        """The next job, or None; its session and its address go to the end."""
        if not self._addresses:
            return None
        address, sessions = self._addresses.popitem(last=False)
        session, jobs = sessions.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            sessions[session] = jobs
        if sessions:
            self._addresses[address] = sessions
        return job

    def remove(self, job) -> bool:
        """Take ``job`` out of its turn; False if it does not wait."""
        for address, sessions in self._addresses.items():
            for session, jobs in sessions.items():
                if job in jobs:
                    jobs.remove(job)
                    if not jobs:
                        del sessions[session]
                    if not sessions:
                        del self._addresses[address]
                    return True
        return False

    def __iter__(self) -> Iterator:
        """The jobs in the order in which they are taken if none is added."""
        lines = [deque(_in_turn(sessions.values())) for sessions in self._addresses.values()]
        yield from _in_turn(lines)


def _in_turn(lines) -> Iterator:
    lines = list(lines)
    for turn in range(max(map(len, lines), default=0)):
        for line in lines:
            if turn < len(line):
                yield line[turn]


class Turns:
    """One at a time, in a fair order. For one event loop."""

    def __init__(self):
        self._queue = FairQueue()
        self._taken = False

    async def take(self, session: str, address: str = ""):
        """Wait for a turn. Whoever has it must ``give`` it on."""
        if not self._taken:
            self._taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.add(turn, session, address)
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
