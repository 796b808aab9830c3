"""Runs: a thread that denoises, and the two generators that watch it, one for the page and one for programs.

The watchers are asynchronous generators: Gradio closes them when a visitor presses Stop or goes away, also before the
first frame, and closing one stops its run within a step.
"""

import asyncio
import itertools
import logging
import math
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing

import gradio as gr
import torch

from ddpm_hf.errors import UserError
from ddpm_hf.figures import make_grid
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import labels_in_turn, with_sampler
from ddpm_hf.ui.frames import encode_frame, png_base64, starting_noise
from ddpm_hf.ui.limits import Limits, Settings

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.1  # a browser draws no faster than Gradio hands it values
HEARTBEAT_SECONDS = 0.25  # how soon a visitor who left is noticed
POLL_SECONDS = 0.02
# A browser may skip values that follow each other closely, so each repeats frames of those before it.
WINDOW_FRAMES = 24
WINDOW_FLUSHES = 4


class Engine:
    """A model ready to run: its pipeline, its limits, and the lock that gives the network to one step at a time."""

    def __init__(self, pipeline: MyDDPMPipeline):
        self.pipeline = pipeline
        self.limits = Limits.of(pipeline)
        self.lock = threading.Lock()
        self.runs: weakref.WeakSet[Run] = weakref.WeakSet()

    def close(self):
        """End all runs, each after the step it is in: Python must not exit with the network at work."""
        for run in list(self.runs):
            run.stop()
            run.join()

    def check(self, values: dict) -> Settings:
        """Checked settings.

        Raises:
            gr.Error: with one line for the visitor.
        """
        try:
            return self.limits.check(**values)
        except UserError as error:
            raise visible_error(str(error)) from None


def visible_error(message: str) -> gr.Error:
    """An error whose message reaches the visitor, and whose traceback nobody."""
    return gr.Error(message[:1].upper() + message[1:], print_exception=False)


class Run:
    """One request at work. The thread that made it reads what the run's own thread writes.

    Attributes:
        total: number of network calls; done: how many have been made. seconds: since the start.
        error: what went wrong, for the visitor. sample: (B, C, S, S), the finished x_0 once ``complete``.
    """

    def __init__(self, engine: Engine, settings: Settings, *, keep_frames: bool):
        self.engine, self.settings = engine, settings
        self.pipeline = with_sampler(engine.pipeline, settings.sampler)
        self.pipeline.scheduler.set_timesteps(settings.steps)
        self.total = len(self.pipeline.scheduler.timesteps)
        self.labels = labels_in_turn(
            self.pipeline, settings.seeds, None if settings.label is None else [settings.label]
        )
        self.done, self.complete, self.error, self.sample = 0, False, None, None
        self._keep_frames = keep_frames
        self._frames: deque[tuple[int, dict]] = deque()  # appended to by the thread, emptied by take_frames
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="run", daemon=True)

    def start(self):
        self.engine.runs.add(self)
        self._thread.start()

    def stop(self):
        """Ask the thread to end after the step it is in."""
        self._stop.set()

    def join(self):
        """Wait until the thread has ended."""
        self._thread.join()

    @property
    def finished(self) -> bool:
        """Whether the thread has ended: complete, stopped or failed."""
        return not self._thread.is_alive()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def take_frames(self) -> list[tuple[int, dict]]:
        """Frames made since the last call, as (index, frame); index 0 is the noise, ``total`` the finished images."""
        return [self._frames.popleft() for _ in range(len(self._frames))]

    def names(self) -> list[str | None]:
        """The class name of every image."""
        if self.labels is None:
            return [None] * self.settings.num_images
        return [self.engine.limits.classes[label] for label in self.labels]

    @torch.inference_mode()
    def _work(self):
        try:
            self._denoise()
        except UserError as error:
            self.error = str(error)
        except Exception:
            logger.exception("a run failed: %s", self.settings)
            self.error = "the model failed on this request; the details are in the server's log."

    def _denoise(self):
        settings = self.settings
        if self._keep_frames:
            noise = starting_noise(self.pipeline, settings.seeds)
            self._keep(0, self.pipeline.scheduler.config.num_train_timesteps, noise, torch.zeros_like(noise))
        steps = self.pipeline.denoise(
            settings.num_images, self.labels, settings.guidance_scale, settings.steps, seed=list(settings.seeds)
        )
        while not self._stop.is_set():
            if self.seconds > self.engine.limits.max_seconds:
                raise UserError(
                    f"this took more than {self.engine.limits.max_seconds:.0f} s: take fewer images or steps."
                )
            with self.engine.lock:
                step = next(steps, None)
            if step is None:
                self.complete = True
                return
            self.sample = step.sample
            if self._keep_frames:
                looks = self.pipeline.unit_variance(step.sample)
                self._keep(step.index + 1, step.timestep, looks, step.pred_original_sample)
            self.done = step.index + 1

    def _keep(self, index: int, timestep: float, x_t: torch.Tensor, x_0: torch.Tensor):
        x_0 = x_0.to(x_t.device)
        picture = encode_frame(self.pipeline, x_t, x_0, exact=index == self.total)
        self._frames.append((index, {"t": round(timestep, 1), "at": round(self.seconds, 3), "src": picture}))


async def watch(run: Run) -> AsyncIterator[tuple[bool, list[tuple[int, dict]]]]:
    """Start ``run`` and yield (whether it has ended, new frames) until it has; closing this stops it.

    Yields at least every ``HEARTBEAT_SECONDS``, with or without frames.
    """
    run.start()
    try:
        news, flushed = [], -math.inf
        while True:
            finished = run.finished  # asked before the frames are taken, so that none is left behind
            news += run.take_frames()
            waited = time.monotonic() - flushed
            if finished or waited >= (FLUSH_SECONDS if news else HEARTBEAT_SECONDS):
                yield finished, news
                news, flushed = [], time.monotonic()
            if finished:
                return
            await asyncio.sleep(POLL_SECONDS)
    finally:
        run.stop()


async def stream_to_stage(engine: Engine, values: dict) -> AsyncIterator[dict]:
    """Values for the stage (see ``stage.make_stage``) while the request ``values`` is computed.

    Raises:
        gr.Error: for a request outside the limits, or one that failed.
    """
    run = Run(engine, engine.check(values), keep_frames=True)
    window = Window()
    head = _stage_head(run)
    value = {**head, "state": "running", "seconds": 0.0, "frames": {}}
    async with aclosing(watch(run)) as reports:
        async for finished, news in reports:
            if finished or news:
                state = _end_state(run) if finished else "running"
                value = {**head, "state": state, "seconds": round(run.seconds, 3), "frames": window.push(news)}
            # Without news the same value again: Gradio sends the difference, which is nothing. (After gr.skip() it
            # would send the whole window.)
            yield value
    if run.error:
        raise visible_error(run.error)


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


def _stage_head(run: Run) -> dict:
    width, height = _image_size(run.pipeline)
    return {
        "run": uuid.uuid4().hex,
        "total": run.total,
        "steps": run.settings.steps,
        "tile": [width, height],
        "seeds": list(run.settings.seeds),
        "names": run.names(),
    }


def _end_state(run: Run) -> str:
    if run.error:
        return "failed"
    return "done" if run.complete else "stopped"


def _image_size(pipeline: MyDDPMPipeline) -> tuple[int, int]:
    """Width and height of the images in pixels."""
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return pipeline.config.output_width or width, pipeline.config.output_height or height


async def generate_for_program(engine: Engine, values: dict) -> AsyncIterator[dict]:
    """Progress, ``{"done": False, "step", "total"}``, and at last the images: what ``/generate`` answers.

    Raises:
        gr.Error: for a request outside the limits, or one that failed.
    """
    run = Run(engine, engine.check(values), keep_frames=False)
    async with aclosing(watch(run)) as reports:
        async for finished, _ in reports:
            if not finished:
                yield {"done": False, "step": run.done, "total": run.total}
    if run.error or not run.complete:
        raise visible_error(run.error or "the run was stopped.")
    yield _answer(run)


def _answer(run: Run) -> dict:
    images = run.pipeline.postprocess(run.sample)
    labels = run.labels or [None] * len(images)
    parts = zip(images, run.settings.seeds, labels, run.names())
    return {
        "done": True,
        "step": run.done,
        "total": run.total,
        "seconds": round(run.seconds, 3),
        "settings": run.settings.asdict(),
        "grid_png": png_base64(make_grid(images)),
        "images": [
            {"seed": seed, "label": label, "name": name, "png": png_base64(image)} for image, seed, label, name in parts
        ],
    }
