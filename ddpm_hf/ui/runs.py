"""The engine, and the generators that watch a run: one for the page and one for programs.

They are asynchronous generators: Gradio closes them when a visitor presses Stop or goes away, also before the first
frame, and closing one stops its run within a call of the network.
"""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, contextmanager

import gradio as gr

from ddpm_hf.devices import leave_cores
from ddpm_hf.errors import UserError
from ddpm_hf.hub import public_name
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.ui.cache import MAX_BYTES, Cache
from ddpm_hf.ui.files import as_base64, described_images, png_file, settings_values
from ddpm_hf.ui.jobs import MAX_WAIT_SECONDS, Job, Task, Worker, film_of
from ddpm_hf.ui.limits import STOPPED, Limits, Settings, request_of
from ddpm_hf.ui.models import MAX_MEMORY, Model, Models
from ddpm_hf.ui.queue import Turns
from ddpm_hf.ui.tasks import Frame, Generation
from ddpm_hf.ui.zero import on_gpu

SETTINGS = ("num_images", "class_name", "guidance_scale", "sampler", "steps", "seed", "model")  # of a generation

FLUSH_SECONDS = 0.1  # a browser draws no faster than Gradio hands it values
HEARTBEAT_SECONDS = 0.25  # how soon a visitor who left is noticed
WAITING_HEARTBEAT_SECONDS = 1.0  # of one who has no hold on the model yet
POLL_SECONDS = 0.02
# A browser may skip values that follow each other closely, so each repeats frames of those before it.
WINDOW_FRAMES = 24
WINDOW_FLUSHES = 4
FLUSH_BYTES = 2**20  # of one value, where frames come from the cache
REMEMBERED_JOBS = 200  # whose frames can be asked for again


class Engine:
    """The models, the thread that computes with them, and the results it has kept.

    Args:
        pipeline: the model that is there from the start.
        source: where it came from, as given to ``load_pipeline``.
        others: further models that may be chosen, each as ``load`` takes it; they are loaded when asked for.
        max_memory: bytes of weights in memory, of all models together.
        cache_bytes: bytes of finished runs that are kept.
        cores: that the one thread computes with, and no other thread of the program does: see
            ``devices.leave_cores``. None leaves this to torch.
    """

    def __init__(
        self,
        pipeline: MyDDPMPipeline,
        source: str | None = None,
        others: Sequence[str] = (),
        load: Callable[[str], MyDDPMPipeline] | None = None,
        *,
        max_memory: int = MAX_MEMORY,
        cache_bytes: int = MAX_BYTES,
        cores: int | None = None,
    ):
        self.models = Models(Model(public_name(source), pipeline, source), others, load, max_memory)
        self.cache = Cache(cache_bytes)
        self._tasks: dict[str, Task] = {}  # of the newest jobs, by id
        self._cores = cores
        self.worker = Worker(self.models, self.cache, on_gpu(self.models), cores=cores)
        self.encoding = Turns()  # of files to take away

    @property
    def pipeline(self) -> MyDDPMPipeline:
        """Of the first model."""
        return self.models.first.pipeline

    @property
    def limits(self) -> Limits:
        """Of the first model."""
        return self.models.first.limits

    @property
    def lock(self):
        """Held while the network runs."""
        return self.worker.lock

    def close(self):
        """End all runs, each after the call it is in: Python must not exit with the network at work."""
        self.worker.close()

    def remember(self, job: Job):
        """Let ``frames`` know the task of ``job``."""
        self._tasks[job.id] = job.task
        while len(self._tasks) > REMEMBERED_JOBS:
            self._tasks.pop(next(iter(self._tasks)), None)

    def frames(self, run, lane, indices) -> dict[str, dict]:
        """Frames of a finished job that a page asks for again, by index: {} of one that is unknown or no longer kept.

        A browser that was busy skips values, and the frames in them. The arguments may be of any type.
        """
        task = self._tasks.get(run) if isinstance(run, str) else None
        kept = self.cache.get(task) if task is not None else None
        wanted = {index for index in indices if isinstance(index, int)} if isinstance(indices, list) else set()
        frames = [frame for frame in kept or () if frame.lane == lane and frame.index in wanted and frame.src]
        return {str(frame.index): as_value(frame) for frame in frames[: _first_bytes(frames) if frames else 0]}

    async def model(self, values: dict) -> Model:
        """The model that ``values["model"]`` names, loaded if need be; the first without.

        Raises:
            UserError: for any other than the allowed ones, or one that cannot be loaded.
        """
        name = self.models.check(values.get("model"))
        return self.models.loaded(name) or await asyncio.to_thread(self._load, name)

    def _load(self, name: str) -> Model:
        if self._cores is not None:
            leave_cores()  # this thread stays for other work, and its team with it
        return self.models.get(name)

    async def generation(self, values) -> tuple[Model, Generation]:
        """The checked task of a request as it came over the wire.

        Raises:
            UserError: naming what is wrong with it.
        """
        values = request_of(values, SETTINGS)
        model = await self.model(values)
        values.pop("model", None)
        return model, Generation(model.name, model.limits.check(**values))


@contextmanager
def one_line_errors():
    """A mistake of the visitor's becomes an error that Gradio shows, and shows nothing else of."""
    try:
        yield
    except UserError as error:
        raise visible_error(str(error)) from None


def visible_error(message: str) -> gr.Error:
    """An error whose message reaches the visitor, and whose traceback nobody."""
    return gr.Error(message[:1].upper() + message[1:], print_exception=False)


async def watch(engine: Engine, job: Job) -> AsyncIterator[tuple[bool, list[Frame]]]:
    """Queue ``job`` and yield (whether it has ended, new frames) until it has; closing this stops it.

    Yields at least every second, with or without frames: Gradio finds out that a visitor has left when it sends.

    Raises:
        gr.Error: if the queue is full.
    """
    with one_line_errors():
        engine.worker.submit(job)
    engine.remember(job)
    try:
        news, flushed, state = [], -math.inf, None
        while True:
            ended = job.ended.is_set()  # asked before the frames are taken, so that none is left behind
            news += job.take_frames()
            if job.state == "waiting" and job.waited > MAX_WAIT_SECONDS:
                raise visible_error(f"the model was busy for {MAX_WAIT_SECONDS / 60:.0f} minutes: try again later.")
            waited = time.monotonic() - flushed
            patience = WAITING_HEARTBEAT_SECONDS if job.state == "waiting" else HEARTBEAT_SECONDS
            while ended and len(news) > 1 and (some := _first_bytes(news)) < len(news):
                yield False, news[:some]
                news = news[some:]
                await asyncio.sleep(FLUSH_SECONDS)
            if ended or job.state != state or waited >= (FLUSH_SECONDS if news else patience):
                yield ended, news
                news, flushed, state = [], time.monotonic(), job.state
            if ended:
                return
            await asyncio.sleep(FLUSH_SECONDS if job.state == "waiting" else POLL_SECONDS)
    finally:
        engine.worker.cancel(job)


def _first_bytes(frames: list[Frame]) -> int:
    """How many of ``frames`` make ``FLUSH_BYTES``."""
    sizes = itertools.accumulate(len(frame.src) for frame in frames)
    return max(1, sum(size <= FLUSH_BYTES for size in sizes))


async def finished(engine: Engine, task: Task, model: Model, session: str = "") -> tuple[Frame, ...]:
    """The frames of ``task``, those with pixels at least, from the cache or computed.

    Raises:
        gr.Error: if it fails, or is stopped.
    """
    film = engine.cache.get(film_of(task))
    if film is not None:
        return film
    job, frames = Job(task, model, session), []
    async with aclosing(watch(engine, job)) as reports:
        async for _, news in reports:
            frames += [frame for frame in news if frame.pixels is not None]
    raise_if_failed(job)
    return tuple(frames)


def raise_if_failed(job: Job):
    """Raises gr.Error for an ended job without a result."""
    if job.state != "done":
        raise visible_error(job.error or STOPPED)


def waiting_words(engine: Engine, job: Job) -> str:
    """Where in the queue ``job`` is; "" once it runs."""
    if job.state != "waiting":
        return ""
    ahead = engine.worker.ahead(job)
    if ahead == 0:
        return "your turn is next"
    return "one run ahead of yours" if ahead == 1 else f"{ahead} runs ahead of yours"


async def stream_to_stage(engine: Engine, values: dict, session: str = "") -> AsyncIterator[dict]:
    """Values for the stage (see ``stage.make_stage``) while the request ``values`` is computed.

    Raises:
        gr.Error: for a request outside the limits, or one that failed.
    """
    with one_line_errors():
        model, task = await engine.generation(values)
    head = stage_head(model, task.settings)
    async with aclosing(stage_values(engine, Job(task, model, session), head)) as stream:
        async for value in stream:
            if value["state"] == "done":
                value = {**value, "images": described_images(model, task.settings)}
            yield value


async def stage_values(engine: Engine, job: Job, head: dict) -> AsyncIterator[dict]:
    """Run ``job``, of one lane, and yield ``head`` with what changes."""
    window, value = Window(), None
    async with aclosing(watch(engine, job)) as reports:
        async for ended, news in reports:
            state, words = job.state if ended or job.state == "waiting" else "running", waiting_words(engine, job)
            if value is None or ended or news or (state, words) != (value["state"], value["queue"]):
                value = {
                    "run": job.id,
                    **head,
                    "state": state,
                    "total": job.totals[0],
                    "queue": words,
                    "cached": job.cached,
                    "seconds": round(job.seconds, 3),
                    "frames": window.push([(frame.index, as_value(frame)) for frame in news]),
                }
            # Without news the same value again: Gradio sends the difference, which is nothing. (After gr.skip() it
            # would send the whole window.)
            yield value
    if job.error:
        raise visible_error(job.error)


def as_value(frame: Frame) -> dict:
    """A frame as the stage takes it."""
    return {"t": frame.t, "at": frame.seconds, "src": frame.src}


class Window:
    """The frames that a value carries: the newest ones, and all of the last few values."""

    def __init__(self):
        self._frames: dict[str, dict] = {}
        self._starts: list[int] = []

    def push(self, news: list[tuple[int, dict]]) -> dict[str, dict]:
        """Frames by step, with ``news`` added and what is old enough dropped."""
        self._starts = [*self._starts, len(news)][-WINDOW_FLUSHES:]
        frames = {**self._frames, **{str(index): frame for index, frame in news}}
        size = max(WINDOW_FRAMES, sum(self._starts))
        self._frames = dict(itertools.islice(frames.items(), max(0, len(frames) - size), None))
        return self._frames


# ---- a run as others see it


def stage_head(model: Model, settings: Settings) -> dict:
    """What a stage is told of a run, and does not change."""
    images = described_images(model, settings)
    return {
        "steps": settings.steps,
        "tile": list(model.image_size),
        "seeds": [image["seed"] for image in images],
        "names": [image["name"] for image in images],
        "settings": settings_values(model, settings),
    }


# ---- programs


async def generate_for_program(engine: Engine, values: dict, session: str = "") -> AsyncIterator[dict]:
    """Progress, ``{"done": False, "step", "total"}``, and at last the images: what ``/generate`` answers.

    Raises:
        gr.Error: for a request outside the limits, or one that failed.
    """
    with one_line_errors():
        model, task = await engine.generation(values)
    job = Job(task, model, session)
    async with aclosing(watch(engine, job)) as reports:
        async for ended, _ in reports:
            if not ended:
                yield {"done": False, "step": job.done, "total": job.totals[0]}
    raise_if_failed(job)
    frame, described = job.result(), described_images(model, task.settings)
    yield {
        "done": True,
        "step": job.done,
        "total": job.totals[0],
        "seconds": round(job.seconds, 3),
        "settings": settings_values(model, task.settings),
        "grid_png": as_base64(png_file(model, task.settings, frame)),
        "images": [
            {**about, "png": as_base64(png_file(model, task.settings, frame, i))} for i, about in enumerate(described)
        ],
    }
