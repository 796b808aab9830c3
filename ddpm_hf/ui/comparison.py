"""Samplers side by side: the same noise, in step, and how far each ends from the result of all steps."""

import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np

from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.ui.files import as_base64, png_file
from ddpm_hf.ui.jobs import Job
from ddpm_hf.ui.limits import Settings, request_of
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.runs import (
    Engine,
    Window,
    as_value,
    one_line_errors,
    raise_if_failed,
    stage_head,
    waiting_words,
    watch,
)
from ddpm_hf.ui.tasks import Film, Frame, Generation, Item, calls_of, labels_of

REQUEST = ("lanes", "num_images", "class_name", "guidance_scale", "seed", "model")
REFERENCE_SAMPLER = "ddim"


@dataclass(frozen=True)
class Comparison:
    """The same images by several samplers. lanes: settings that differ in sampler and steps alone."""

    model: str
    lanes: tuple[Settings, ...]

    @property
    def group(self):
        """Shares its calls with no other task."""
        return self

    @property
    def rows(self) -> int:
        return max(Generation(self.model, settings).rows for settings in self.lanes)

    def totals(self, model: Model) -> list[int]:
        return [calls_of(model, settings.sampler, settings.steps) for settings in self.lanes]

    @staticmethod
    def run(model: Model, tasks: Sequence["Comparison"]) -> Iterator[Item]:
        """The one task, its lanes in step: the one that has the smallest share of its way behind it goes next."""
        (task,) = tasks
        films, streams = [], []
        for lane, settings in enumerate(task.lanes):
            film = Film.from_noise(model, settings, settings.seeds, labels_of(model.pipeline, settings))
            films.append(film)
            streams.append(film.frames([settings.num_images], lane))
        indices = [-1] * len(films)
        while any(index < film.total for index, film in zip(indices, films)):
            lane = min(range(len(films)), key=lambda i: (indices[i] + 1) / (films[i].total + 1))
            item = next(streams[lane])
            if item is not None:
                indices[lane] = item[0].index
            yield item


async def stream_comparison(engine: Engine, values: dict, session: str = "") -> AsyncIterator[dict]:
    """Values for the page while samplers are compared.

    Args:
        values: num_images, class_name, guidance_scale, seed, and lanes: 2 to 4 times {"sampler", "steps"}.

    Yields:
        {"run", "state", "queue", "cached", "tile", "seeds", "names", "seconds", "settings", "lanes", "reference"}.
        A lane is {"sampler", "title", "steps", "total", "calls", "seconds", "distance", "frames"}: ``total`` frames
        after the first, ``calls`` of the network made for them, and at last ``distance``, RMS over pixels in [0, 1] to
        what DDIM makes with all steps. While that is computed the state is "measuring", and ``reference`` is
        {"step", "total"}.

    Raises:
        gr.Error: for a request outside the limits, or one that failed.
    """
    async with aclosing(_measured(engine, values, session)) as stream:
        async for compared in stream:
            yield compared.value()


async def compare_for_program(engine: Engine, values: dict, session: str = "") -> AsyncIterator[dict]:
    """Progress, ``{"done": False, "step", "total"}``, and at last the lanes' results: what ``/compare`` answers.

    Raises:
        gr.Error: as ``stream_comparison``.
    """
    async with aclosing(_measured(engine, values, session)) as stream:
        async for compared in stream:
            if compared.state != "done":
                yield {"done": False, "step": compared.step, "total": compared.total}
    yield compared.answer()


async def _measured(engine: Engine, values: dict, session: str) -> AsyncIterator["Compared"]:
    """The comparison, over and over as it proceeds: first the lanes, then what they are measured against."""
    with one_line_errors():
        values = request_of(values, REQUEST)
        model = await engine.model(values)
        values.pop("model", None)
        lanes = model.limits.check_comparison(**values)
    compared = Compared(engine, model, lanes, session)
    async with aclosing(watch(engine, compared.job)) as reports:
        async for _, news in reports:
            compared.push(news)
            compared.state = "measuring" if compared.job.state == "done" else compared.job.state
            yield compared
    raise_if_failed(compared.job)
    async with aclosing(watch(engine, compared.reference)) as reports:
        async for ended, _ in reports:
            if ended and compared.reference.state == "done":
                compared.measure()
            yield compared
    raise_if_failed(compared.reference)


def reference_task(model: Model, settings: Settings) -> Generation:
    """What lanes are measured against: all the steps of the training process, without fresh noise."""
    return Generation(model.name, replace(settings, sampler=REFERENCE_SAMPLER, steps=model.timesteps))


class Compared:
    """A comparison as it stands. state: that of the job of the lanes, then "measuring", then "done"."""

    def __init__(self, engine: Engine, model: Model, lanes: Sequence[Settings], session: str):
        self.job = Job(Comparison(model.name, tuple(lanes)), model, session)
        self.reference = Job(reference_task(model, lanes[0]), model, session, background=True)
        self.state = "waiting"
        self._engine, self._model, self._settings = engine, model, lanes
        self._windows = [Window() for _ in lanes]
        self._lanes = [
            {
                "sampler": settings.sampler,
                "title": SAMPLERS[settings.sampler].title,
                "steps": settings.steps,
                "total": total,
                "calls": 0,
                "seconds": 0.0,
                "distance": None,
                "frames": {},
            }
            for settings, total in zip(lanes, self.job.totals)
        ]
        self._head = {"run": self.job.id, **stage_head(model, lanes[0])}
        del self._head["steps"]
        chosen = [{"sampler": lane.sampler, "steps": lane.steps} for lane in lanes]
        shared = {key: value for key, value in self._head["settings"].items() if key not in ("sampler", "steps")}
        self._head["settings"] = {**shared, "lanes": chosen}

    @property
    def step(self) -> int:
        """Frames made, those of the reference among them."""
        return self.job.done + self.reference.done

    @property
    def total(self) -> int:
        return sum(self.job.totals) + self.reference.totals[0]

    def push(self, news: Sequence[Frame]):
        """Take up frames of any lane."""
        guided = 1 if self._settings[0].guidance_scale == 1 else 2
        for number, (lane, window) in enumerate(zip(self._lanes, self._windows)):
            frames = [frame for frame in news if frame.lane == number]
            lane["frames"] = window.push([(frame.index, as_value(frame)) for frame in frames])
            if frames:
                lane["calls"], lane["seconds"] = guided * frames[-1].index, frames[-1].seconds

    def measure(self):
        """Fill in the distances, once both jobs are done."""
        exact = self.reference.result().pixels
        for number, lane in enumerate(self._lanes):
            lane["distance"] = round(rms_distance(self.job.result(number).pixels, exact), 5)
        self.state = "done"

    def value(self) -> dict:
        """As the page takes it."""
        return {
            **self._head,
            "state": self.state,
            "queue": waiting_words(self._engine, self.job),
            "cached": self.job.cached,
            "seconds": round(self.job.seconds, 3),
            "lanes": [dict(lane) for lane in self._lanes],
            "reference": {"step": self.reference.done, "total": self.reference.totals[0]},
        }

    def answer(self) -> dict:
        """As a program takes it."""
        lanes = []
        for number, (lane, settings) in enumerate(zip(self._lanes, self._settings)):
            about = {key: value for key, value in lane.items() if key not in ("total", "frames")}
            grid = png_file(self._model, settings, self.job.result(number))
            lanes.append({**about, "grid_png": as_base64(grid)})
        return {"done": True, "lanes": lanes, **{key: self._head[key] for key in ("seeds", "names", "settings")}}


def rms_distance(images: np.ndarray, others: np.ndarray) -> float:
    """Root of the mean square difference of uint8 images, in units of the pixels' range: 0 to 1."""
    return math.sqrt(np.mean((images.astype(np.float64) - others) ** 2)) / 255
