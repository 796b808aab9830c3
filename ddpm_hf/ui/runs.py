"""The engine, and the generators that watch a run: one for the page and one for programs.

They are asynchronous generators: closing one, also before its first value, stops its run after the call of the network
that is being made. A mistake of the visitor's is a ``UserError``.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

import anyio

from ddpm_hf.devices import leave_cores
from ddpm_hf.errors import UserError
from ddpm_hf.hub import public_name
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.ui.cache import MAX_BYTES, Cache
from ddpm_hf.ui.files import as_base64, described_images, png_file, settings_values
from ddpm_hf.ui.jobs import MAX_ACTIVE, Job, Task, Worker, film_of
from ddpm_hf.ui.limits import MAX_WAIT_SECONDS, STOPPED, Limits, Settings, request_of
from ddpm_hf.ui.models import MAX_MEMORY, Model, Models
from ddpm_hf.ui.queue import Turns
from ddpm_hf.ui.start import START, checked, sampler_of
from ddpm_hf.ui.tasks import Frame, Generation
from ddpm_hf.ui.zero import has_zero_gpu, on_gpu

# of a generation
SETTINGS = ("num_images", "class_name", "guidance_scale", "sampler", "steps", "seed", "guidance_interval", "model")
SETTINGS += ("prompt", *START)

FLUSH_SECONDS = 0.05  # between two values: each costs a browser a picture to draw
HEARTBEAT_SECONDS = 1.0  # a value without news, so that both sides know that the other is there
FLUSH_BYTES = 2**20  # of one value, where frames come from the cache


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
        self._cores = cores
        active = 1 if has_zero_gpu() else MAX_ACTIVE  # a GPU is lent to one run
        self.worker = Worker(self.models, self.cache, on_gpu(self.models), active, cores=cores)
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
        return model, Generation(model.name, await asyncio.to_thread(checked, model, values))


async def watch(engine: Engine, job: Job) -> AsyncIterator[tuple[bool, list[Frame]]]:
    """Queue ``job`` and yield (whether it has ended, new frames) until it has; closing this stops it.

    Yields at least every second, with or without frames.

    Raises:
        UserError: if the queue is full, or it has waited for too long.
    """
    news_there, loop = asyncio.Event(), asyncio.get_running_loop()
    job.notify = lambda: loop.call_soon_threadsafe(news_there.set)
    engine.worker.submit(job)
    try:
        news, state = [], None
        while True:
            news_there.clear()
            ended = job.ended.is_set()  # asked before the frames are taken, so that none is left behind
            news += job.take_frames()
            if job.state == "waiting" and job.waited > MAX_WAIT_SECONDS:
                raise UserError(f"the model was busy for {MAX_WAIT_SECONDS / 60:.0f} minutes: try again later.")
            while ended and len(news) > 1 and (some := _first_bytes(news)) < len(news):
                yield False, news[:some]
                news = news[some:]
            yield ended, news
            if ended:
                return
            flushed, news, state = time.monotonic(), [], job.state
            with anyio.move_on_after(HEARTBEAT_SECONDS):
                await news_there.wait()
            if job.state == state:
                await asyncio.sleep(max(0, flushed + FLUSH_SECONDS - time.monotonic()))
    finally:
        job.notify = lambda: None
        engine.worker.cancel(job)


def _first_bytes(frames: list[Frame]) -> int:
    """How many of ``frames`` make ``FLUSH_BYTES``."""
    sizes = itertools.accumulate(len(frame.src) for frame in frames)
    return max(1, sum(size <= FLUSH_BYTES for size in sizes))


async def finished(engine: Engine, task: Task, model: Model, session: str = "", address: str = "") -> tuple[Frame, ...]:
    """The frames of ``task``, those with pixels at least, from the cache or computed.

    Raises:
        UserError: if it fails, or is stopped.
    """
    film = engine.cache.get(film_of(task))
    if film is not None:
        return film
    job, frames = Job(task, model, session, address), []
    async with aclosing(watch(engine, job)) as reports:
        async for _, news in reports:
            frames += [frame for frame in news if frame.pixels is not None]
    raise_if_failed(job)
    return tuple(frames)


def raise_if_failed(job: Job):
    """Raises UserError for an ended job without a result."""
    if job.state != "done":
        raise UserError(job.error or STOPPED)


def waiting_words(engine: Engine, job: Job) -> str:
    """Where in the queue ``job`` is; "" once it runs."""
    if job.state != "waiting":
        return ""
    ahead = engine.worker.ahead(job)
    if ahead == 0:
        return "your turn is next"
    return "one run ahead of yours" if ahead == 1 else f"{ahead} runs ahead of yours"


async def stream_to_stage(engine: Engine, values: dict, session: str = "", address: str = "") -> AsyncIterator[dict]:
    """Values for the stage (see ``stage_values``) while the request ``values`` is computed.

    Raises:
        UserError: for a request outside the limits, or one that failed.
    """
    model, task = await engine.generation(values)
    async with aclosing(stage_values(engine, Job(task, model, session, address), task.settings)) as stream:
        async for value in stream:
            yield value


async def stage_values(engine: Engine, job: Job, settings: Settings, **head) -> AsyncIterator[dict]:
    """Run ``job``, of one lane, and yield what a stage of the page shows.

    run: id of the run.
    state: "waiting", "running", "done", "stopped" or "failed".
    queue: while waiting, the place in the queue in words.
    total, steps: number of frames after the first, and of steps (fewer with two network calls a step).
    seconds: since the start of the run. cached: whether it was answered from memory.
    tile: width and height of an image in pixels.
    seeds, names: for every image, its seed, and the name of its class or None.
    settings: the checked request.
    frames: the new ones by index, "0" being the noise: {"t": timestep of x_t, None for the finished images, "at":
        seconds, "src": data URL of the images side by side, x_t above the x_0 predicted from it}; see ``tasks.Frame``.
        "0" comes twice, without and with its x_0, all others once.
    images: at last, see ``described_images``.
    """
    model = engine.models.get(job.task.model)
    head = {"run": job.id, **stage_head(model, settings), **head}
    async with aclosing(watch(engine, job)) as reports:
        async for ended, news in reports:
            value = {
                **head,
                "state": job.state if ended or job.state == "waiting" else "running",
                "total": job.totals[0],
                "queue": waiting_words(engine, job),
                "cached": job.cached,
                "seconds": round(job.seconds, 3),
                "frames": {str(frame.index): as_value(frame) for frame in news},
            }
            yield {**value, "images": described_images(model, settings)} if value["state"] == "done" else value
    if job.error:
        raise UserError(job.error)


def as_value(frame: Frame) -> dict:
    """A frame as the stage takes it."""
    return {"t": frame.t, "at": frame.seconds, "src": frame.src}


# ---- a run as others see it


def stage_head(model: Model, settings: Settings) -> dict:
    """The facts of a run that a stage shows and that do not change."""
    images = described_images(model, settings)
    return {
        "steps": sampler_of(model, settings).scheduler.num_inference_steps,
        "tile": list(model.image_size),
        "seeds": [image["seed"] for image in images],
        "names": [image["name"] for image in images],
        "settings": settings_values(model, settings),
    }


# ---- programs


async def generate_for_program(
    engine: Engine, values: dict, session: str = "", address: str = ""
) -> AsyncIterator[dict]:
    """Progress, ``{"done": False, "step", "total"}``, and at last the images: what ``/generate`` answers.

    Raises:
        UserError: for a request outside the limits, or one that failed.
    """
    model, task = await engine.generation(values)
    job = Job(task, model, session, address)
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
