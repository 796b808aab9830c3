"""Jobs: tasks that wait for the model in a fair queue, and the one thread that computes them."""

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
from ddpm_hf.ui.limits import MAX_QUEUE, MAX_SECONDS
from ddpm_hf.ui.models import Model, Models
from ddpm_hf.ui.queue import FairQueue
from ddpm_hf.ui.tasks import Frame, Item

logger = logging.getLogger(__name__)

MAX_WAITING_PER_SESSION = 3
MAX_WAIT_SECONDS = 900.0

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
    """

    def __init__(self, task: Task, model: Model, session: str = "", *, background: bool = False):
        self.task, self.background = task, background
        self.session = session or uuid.uuid4().hex  # one without a name is alone in its session
        self.id = uuid.uuid4().hex
        self.totals = task.totals(model)
        self.state, self.error, self.cached = "waiting", None, False
        self.context = contextvars.copy_context()  # of the request, by which ZeroGPU knows the visitor
        self.last: dict[int, Frame] = {}
        self.ended = threading.Event()
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

    def add(self, frame: Frame):
        self.last[frame.lane] = frame
        self._frames.append(frame)

    def finish(self, error: str | None = None):
        if self.ended.is_set():
            return
        complete = all(lane in self.last and self.last[lane].index == n for lane, n in enumerate(self.totals))
        self.error = error
        self.state = "failed" if error else "done" if complete else "stopped"
        self._end = time.monotonic()
        self.ended.set()

    def replay(self, frames: Sequence[Frame]):
        """Answer from what an equal task has made before."""
        self.cached = True
        self.begin()
        for frame in frames:
            self.add(frame)
        self.finish()


class Worker:
    """The model's thread: it takes jobs from the queue, those that can share calls of the network together.

    The thread lives while there is work. Its lock is held while the network runs, a call at a time.

    Args:
        compute: ``compute(model, tasks)`` yields what ``Task.run`` does.
        max_seconds: of computing, for each job.
        cores: that the thread computes with; None for what torch gives it.
    """

    def __init__(
        self,
        models: Models,
        cache: Cache,
        compute: Callable[[Model, Sequence[Task]], Iterator[Item]],
        max_seconds: float = MAX_SECONDS,
        cores: int | None = None,
    ):
        self._cores = cores
        self.lock = threading.Lock()
        self.max_seconds = max_seconds
        self._models, self._cache, self._compute = models, cache, compute
        self._queue, self._background = FairQueue(), deque()
        self._running: list[Job] = []
        self._state = threading.RLock()  # of all that is above, and of jobs that wait
        self._thread: threading.Thread | None = None
        self._closed = False

    # ---- from outside

    def submit(self, job: Job):
        """Queue ``job``, or answer it at once if the cache can.

        Raises:
            UserError: if too many are waiting.
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
                self._queue.add(job, job.session)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="model", daemon=True)
                self._thread.start()

    def cancel(self, job: Job):
        """End ``job``: at once if it waits, after the call of the network that it is in otherwise."""
        job.stop()
        with self._state:
            if self._queue.remove(job):
                job.finish()
            elif job in self._background:
                self._background.remove(job)
                job.finish()

    def ahead(self, job: Job) -> int:
        """How many jobs come before ``job``, the running ones among them."""
        with self._state:
            running = sum(not other.background for other in self._running)
            waiting = list(self._queue)
            return running + (waiting.index(job) if job in waiting else 0)

    def close(self):
        """End all jobs, and wait for the call of the network that is being made."""
        with self._state:
            self._closed = True
            jobs, thread = [*self._running, *self._queue, *self._background], self._thread
        for job in jobs:
            self.cancel(job)
        if thread is not None:
            thread.join()

    def _check_room(self, job: Job):
        if len(self._queue) >= MAX_QUEUE:
            raise UserError(f"{MAX_QUEUE} visitors are waiting already: try again in a minute.")
        if self._queue.count(job.session) >= MAX_WAITING_PER_SESSION:
            raise UserError(f"{MAX_WAITING_PER_SESSION} of your requests are waiting already: stop one, or wait.")

    # ---- the thread

    def _work(self):
        if self._cores is not None:
            torch.set_num_threads(self._cores)
        while True:
            with self._state:
                batch = self._next_batch(self._background)
                if not batch:
                    self._thread = None
                    return
            self._serve(batch)

    def _next_batch(self, background: deque) -> list[Job]:
        """The next job and those that come along at no cost."""
        job = self._queue.take()
        if job is None:
            job = background.popleft() if background else None
            return [] if job is None else [job]
        batch, rows = [job], job.task.rows
        model = self._models.loaded(job.task.model)
        for other in list(self._queue):
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

    def _serve(self, batch: list[Job]):
        with self._state:
            self._running += batch
        error = None
        try:
            error = self._try(batch)
        except UserError as problem:
            error = str(problem)
        except Exception:
            logger.exception("a job failed: %s", batch[0].task)
            error = FAILED
        finally:
            with self._state:
                self._running = [job for job in self._running if job not in batch]
            for job in batch:
                job.finish(error if job.wanted else None)

    def _try(self, batch: list[Job]) -> str | None:
        """Compute ``batch``; returns what went wrong, if anything did."""
        tasks = list(dict.fromkeys(job.task for job in batch))
        known = self._cache.get(tasks[0]) if len(tasks) == 1 else None  # made while this one waited
        if known is not None:
            for job in batch:
                job.replay(known)
            return None
        model = self._models.get(tasks[0].model)
        for job in batch:
            job.begin()
        kept = {task: Kept(self._cache.largest) for task in tasks}
        computed, stream = 0.0, self._compute(model, tasks)
        try:
            while any(job.wanted for job in batch):
                self._give_way(batch)
                if computed > self.max_seconds:
                    raise UserError(f"this took more than {self.max_seconds:.0f} s: take fewer images or steps.")
                began = time.monotonic()
                with self.lock, torch.inference_mode():
                    item = batch[0].context.run(next, stream, _END)
                computed += time.monotonic() - began
                if item is _END:
                    for task, frames in kept.items():
                        frames.put(self._cache, task)
                    return None
                for task, frame in zip(tasks, item or ()):
                    kept[task].add(frame)
                    for job in batch:
                        if job.task == task:
                            job.add(frame)
        finally:
            stream.close()
        return None

    def _give_way(self, batch: list[Job]):
        """Let those who wait go before a job in the background."""
        while batch[0].background and batch[0].wanted:
            with self._state:
                others = self._next_batch(deque())
            if not others:
                return
            self._serve(others)


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
