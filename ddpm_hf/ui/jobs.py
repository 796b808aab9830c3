"""Jobs: tasks that wait for the model in a fair queue, and the one thread that computes them.

The runs in progress take turns at every call of the network, so that a short one is never behind a long one.
"""

import contextvars
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from ddpm_hf.errors import UserError
from ddpm_hf.ui.cache import Cache
from ddpm_hf.ui.limits import MAX_JOBS, MAX_JOBS_OF_ADDRESS, MAX_JOBS_OF_SESSION, MAX_SECONDS
from ddpm_hf.ui.models import Model, Models
from ddpm_hf.ui.queue import FairQueue
from ddpm_hf.ui.tasks import Frame, Item

logger = logging.getLogger(__name__)

MAX_ACTIVE = 16  # runs that take turns; more than these wait
MAX_ACTIVE_BYTES = 2**30  # that they hold between two calls, estimated

FAILED = "the model failed on this request; the details are in the server's log."
_END = object()


class Task(Protocol):
    """See ``tasks``."""

    model: str
    group: object  # tasks of one group can share calls of the network
    rows: int  # images of one call

    def totals(self, model: Model) -> list[int]: ...

    @staticmethod
    def run(model: Model, tasks: Sequence["Task"]) -> Iterator[Item]: ...


class Job:
    """One request of one session. The worker writes, whoever asked reads; ``ended`` is set after all else.

    Attributes:
        state: "waiting", "running", then "done", "stopped" or "failed".
        totals: number of network calls by lane. last: the newest frame by lane.
        error: what went wrong, for the visitor. cached: whether nothing had to be computed.
        notify: called, in the worker's thread, after each change.
    """

    def __init__(self, task: Task, model: Model, session: str = "", address: str = "", *, background: bool = False):
        self.task, self.background, self.address = task, background, address
        self.session = session or uuid.uuid4().hex  # one without a name is alone in its session
        self.id = uuid.uuid4().hex
        self.totals = task.totals(model)
        self.num_bytes = task.rows * model.row_bytes
        self.state, self.error, self.cached = "waiting", None, False
        self.context = contextvars.copy_context()  # of the request, by which ZeroGPU knows the visitor
        self.last: dict[int, Frame] = {}
        self.ended = threading.Event()
        self.notify = lambda: None
        self._frames: deque[Frame] = deque()
        self._stop = threading.Event()
        self._asked = time.monotonic()
        self._began = self._end = None

    @property
    def wanted(self) -> bool:
        """Whether nobody has stopped it."""
        return not self._stop.is_set()

    @property
    def seconds(self) -> float:
        """Since its turn came, until its end."""
        if self._began is None:
            return 0.0
        return (self._end or time.monotonic()) - self._began

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return (self._began or time.monotonic()) - self._asked

    @property
    def done(self) -> int:
        """Network calls made, over all lanes."""
        return sum(frame.index for frame in list(self.last.values()))

    def take_frames(self) -> list[Frame]:
        """Frames made since the last call."""
        return [self._frames.popleft() for _ in range(len(self._frames))]

    def result(self, lane: int = 0) -> Frame | None:
        """The finished images, once they are."""
        return self.last.get(lane) if self.state == "done" else None

    # ---- for the worker

    def stop(self):
        self._stop.set()

    def begin(self):
        self._began = time.monotonic()
        self.state = "running"
        self.notify()

    def add(self, frame: Frame):
        self.last[frame.lane] = frame
        self._frames.append(frame)
        self.notify()

    def finish(self, error: str | None = None):
        if self.ended.is_set():
            return
        complete = all(lane in self.last and self.last[lane].index == n for lane, n in enumerate(self.totals))
        self.error = error
        self.state = "failed" if error else "done" if complete else "stopped"
        self._end = time.monotonic()
        self.ended.set()
        self.notify()

    def replay(self, frames: Sequence[Frame]):
        """Answer from what an equal task has made before."""
        self.cached = True
        self.begin()
        for frame in frames:
            self.add(frame)
        self.finish()


class Run:
    """Jobs that are computed together: of one task, or of tasks that share calls of the network."""

    def __init__(self, jobs: list[Job], stream: Iterator[Item], most_bytes: int):
        self.jobs, self.stream = jobs, stream
        self.computed = 0.0  # seconds
        self.kept = {job.task: Kept(most_bytes) for job in jobs}

    @property
    def wanted(self) -> bool:
        return any(job.wanted for job in self.jobs)

    def add(self, item: Item):
        for (task, kept), frame in zip(self.kept.items(), item or ()):
            kept.add(frame)
            for job in self.jobs:
                if job.task == task:
                    job.add(frame)

    def end(self, error: str | None = None):
        self.stream.close()
        for job in self.jobs:
            job.finish(error if job.wanted else None)


class Worker:
    """The model's thread: it takes jobs from the queue, and makes a call of the network for each run in turn.

    The thread lives while there is work. Its lock is held while the network runs, a call at a time.

    Args:
        compute: ``compute(model, tasks)`` yields what ``Task.run`` does.
        max_active: runs that take turns; the others wait.
        max_seconds: of computing, for each job.
        cores: that the thread computes with; None for what torch gives it.
    """

    def __init__(
        self,
        models: Models,
        cache: Cache,
        compute: Callable[[Model, Sequence[Task]], Iterator[Item]],
        max_active: int = MAX_ACTIVE,
        max_seconds: float = MAX_SECONDS,
        cores: int | None = None,
    ):
        self._cores = cores
        self.lock = threading.Lock()
        self.max_active, self.max_seconds = max_active, max_seconds
        self._models, self._cache, self._compute = models, cache, compute
        self._queue, self._background = FairQueue(), deque()  # of jobs that wait
        self._turns, self._aside = FairQueue(), None  # of runs; the one in the background
        self._active: list[Job] = []  # the jobs of all these runs
        self._state = threading.RLock()  # of all that is above, and of jobs that wait
        self._thread: threading.Thread | None = None
        self._closed = False

    # ---- from outside

    def submit(self, job: Job):
        """Queue ``job``, or answer it at once if the cache can.

        Raises:
            UserError: if too many are there.
        """
        known = self._cache.get(job.task)
        if known is not None:
            job.replay(known)
            return
        with self._state:
            if self._closed:
                raise UserError("the server is about to restart: try again in a minute.")
            if job.background:
                self._background.append(job)
            else:
                self._check_room(job)
                self._queue.add(job, job.session, job.address)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="model", daemon=True)
                self._thread.start()

    def cancel(self, job: Job):
        """End ``job``: at once if it waits, after the call of the network that is being made otherwise."""
        job.stop()
        with self._state:
            if self._queue.remove(job):
                job.finish()
            elif job in self._background:
                self._background.remove(job)
                job.finish()

    def cancel_session(self, session: str):
        """End all jobs of ``session``."""
        for job in self.jobs():
            if job.session == session:
                self.cancel(job)

    def jobs(self) -> list[Job]:
        """All that wait or run."""
        with self._state:
            return [*self._active, *self._queue, *self._background]

    def ahead(self, job: Job) -> int:
        """How many jobs must end before ``job`` starts, at most."""
        with self._state:
            running = sum(not other.background for other in self._active)
            waiting = list(self._queue)
            return running + (waiting.index(job) if job in waiting else 0)

    def close(self):
        """End all jobs, and wait for the call of the network that is being made."""
        with self._state:
            self._closed = True
            jobs, thread = self.jobs(), self._thread
        for job in jobs:
            self.cancel(job)
        if thread is not None:
            thread.join()

    def _check_room(self, job: Job):
        others = [other for other in self.jobs() if not other.background]
        if len(others) >= MAX_JOBS:
            raise UserError(f"{len(others)} runs are waiting already: try again in a minute.")
        if sum(other.session == job.session for other in others) >= MAX_JOBS_OF_SESSION:
            raise UserError(f"{MAX_JOBS_OF_SESSION} of your requests are waiting already: stop one, or wait.")
        if job.address and sum(other.address == job.address for other in others) >= MAX_JOBS_OF_ADDRESS:
            raise UserError(f"{MAX_JOBS_OF_ADDRESS} requests from your address are waiting already: wait a minute.")

    # ---- the thread

    def _work(self):
        if self._cores is not None:
            torch.set_num_threads(self._cores)
        while True:
            self._start_waiting()
            with self._state:
                run = self._turns.take() or self._aside
                if run is None and not len(self._queue) and not self._background:
                    self._thread = None
                    return
            if run is not None and self._advance(run) and run is not self._aside:
                with self._state:
                    self._turns.add(run, run.jobs[0].session, run.jobs[0].address)

    def _start_waiting(self):
        """Give turns to jobs that wait, as many as there is room for, and drop the runs that nobody wants any more."""
        for run in [*self._turns, *([self._aside] if self._aside else [])]:
            if not run.wanted:
                self._end(run)
        while True:
            with self._state:
                batch = self._next_batch()
                self._active += batch
            if not batch:
                return
            run = self._begin(batch)
            if run is None:
                continue
            with self._state:
                if batch[0].background:
                    self._aside = run
                else:
                    self._turns.add(run, batch[0].session, batch[0].address)

    def _next_batch(self) -> list[Job]:
        """The next job and those that come along at no cost; [] if there is none, or no room for it."""
        waiting = list(self._queue)
        if not waiting:
            idle = self._background and not len(self._turns) and self._aside is None
            return [self._background.popleft()] if idle else []
        job, turns = waiting[0], list(self._turns)
        taken = sum(other.num_bytes for other in self._active if not other.background)
        if turns and (len(turns) >= self.max_active or taken + job.num_bytes > MAX_ACTIVE_BYTES):
            return []
        self._queue.take()
        batch, rows = [job], job.task.rows
        model = self._models.loaded(job.task.model)
        for other in waiting[1:]:
            if other.task in [one.task for one in batch]:
                extra = 0
            elif model is not None and model.sharing_helps and other.task.group == job.task.group:
                extra = other.task.rows
            else:
                continue
            if extra and rows + extra > model.call_rows:
                continue
            self._queue.remove(other)
            batch.append(other)
            rows += extra
        return batch

    def _begin(self, batch: list[Job]) -> Run | None:
        """The run of ``batch``, unless that is answered at once."""
        tasks = list(dict.fromkeys(job.task for job in batch))
        try:
            known = self._cache.get(tasks[0]) if len(tasks) == 1 else None  # made while this one waited
            if known is None:
                run = Run(batch, self._compute(self._models.get(tasks[0].model), tasks), self._cache.largest)
                for job in batch:
                    job.begin()
                return run
            for job in batch:
                job.replay(known)
        except Exception as problem:
            for job in batch:
                job.finish(_words(problem, job.task))
        self._forget(batch)
        return None

    def _advance(self, run: Run) -> bool:
        """Make one call of the network for ``run``; whether it goes on."""
        try:
            if not run.wanted:
                return self._end(run)
            if run.computed > self.max_seconds:
                raise UserError(f"this took more than {self.max_seconds:.0f} s: take fewer images or steps.")
            began = time.monotonic()
            with self.lock, torch.inference_mode():
                item = run.jobs[0].context.run(next, run.stream, _END)
            run.computed += time.monotonic() - began
            if item is not _END:
                run.add(item)
                return True
            for task, frames in run.kept.items():
                frames.put(self._cache, task)
            return self._end(run)
        except Exception as problem:
            return self._end(run, _words(problem, run.jobs[0].task))

    def _end(self, run: Run, error: str | None = None) -> bool:
        with self._state:
            self._turns.remove(run)
            if run is self._aside:
                self._aside = None
        self._forget(run.jobs)
        run.end(error)
        return False

    def _forget(self, batch: list[Job]):
        with self._state:
            self._active = [job for job in self._active if job not in batch]


def _words(problem: Exception, task: Task) -> str:
    """What the page shows a visitor about the job."""
    if isinstance(problem, UserError):
        return str(problem)
    logger.error("a job failed: %s", task, exc_info=problem)
    return FAILED


class Kept:
    """Frames of a task for the cache: all of them or, where they take more than ``most`` bytes, what downloads need."""

    def __init__(self, most: int):
        self._most, self._bytes = most, 0
        self._frames: dict[tuple[int, int], Frame] = {}

    def add(self, frame: Frame):
        key = (frame.lane, frame.index)
        before = self._frames.get(key)  # the start, which comes twice
        self._frames[key] = frame
        self._bytes += frame.num_bytes - (before.num_bytes if before else 0)
        if self._bytes > self._most:
            kept = {key: old for key, old in self._frames.items() if old.pixels is not None}
            self._frames = {key: old._replace(src="") for key, old in kept.items()}

    def put(self, cache: Cache, task: Task):
        frames = tuple(self._frames.values())
        if self._bytes <= self._most:
            cache.put(task, frames, self._bytes)
        else:
            film = tuple(frame._replace(src="") for frame in frames if frame.pixels is not None)
            cache.put(film_of(task), film, sum(frame.num_bytes for frame in film))


def film_of(task: Task):
    """The cache's key of the frames with pixels alone."""
    return ("film", task)
