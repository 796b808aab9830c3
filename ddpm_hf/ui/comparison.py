"""Samplers side by side: the same noise, in step, and how far each ends from the result of all steps.

What is measured against is DDIM with all the steps of the training process, the flow that all samplers without noise of
their own follow: with more steps they come as near to it as one likes. Those that add noise at every step end at other
images, just as good, and are not measured: a number would tell nothing of them.
"""

import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np

from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import calls_per_image, with_sampler
from ddpm_hf.ui.files import as_base64, png_file
from ddpm_hf.ui.jobs import Job
from ddpm_hf.ui.limits import Settings, request_of
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.runs import (
    Engine,
    as_value,
    raise_if_failed,
    stage_head,
    waiting_words,
    watch,
)
from ddpm_hf.ui.tasks import Film, Frame, Generation, Item, labels_of, timesteps_of

REQUEST = ("lanes", "num_images", "class_name", "guidance_scale", "guidance_interval", "seed", "model")
REFERENCE_SAMPLER = "ddim"
REFERENCE_IMAGES = 2  # the first ones: all the steps take most of a minute for two, guided, on two cores
REFERENCE_SECONDS = 300.0  # of waiting and computing, after which there are no distances
REFERENCE_NEWS = 10  # steps
FRESH_NOISE = "noise of their own at every step leads to other images, just as good"


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
        return [len(timesteps_of(model, settings)) for settings in self.lanes]

    @staticmethod
    def run(model: Model, tasks: Sequence["Comparison"]) -> Iterator[Item]:
        """The one task, its lanes in step: the one that has the smallest share of its way behind it goes next."""
        (task,) = tasks
        films, streams = [], []
        for lane, settings in enumerate(task.lanes):
            film = Film.of(model, settings, settings.seeds, labels_of(model.pipeline, settings))
            films.append(film)
            streams.append(film.frames([settings.num_images], lane))
        indices = [-1] * len(films)
        while any(index < film.total for index, film in zip(indices, films)):
            lane = min(range(len(films)), key=lambda i: (indices[i] + 1) / (films[i].total + 1))
            item = next(streams[lane])
            if item is not None:
                indices[lane] = item[0].index
            yield item


@dataclass(frozen=True)
class Reference:
    """What lanes are measured against. A task whose frames, but for the last, have neither picture nor pixels."""

    model: str
    settings: Settings

    @classmethod
    def of(cls, model: Model, lane: Settings) -> "Reference":
        count = min(lane.num_images, REFERENCE_IMAGES)
        return cls(model.name, replace(lane, sampler=REFERENCE_SAMPLER, steps=model.timesteps, num_images=count))

    @property
    def group(self):
        """Shares its calls with no other task."""
        return self

    @property
    def rows(self) -> int:
        return Generation(self.model, self.settings).rows

    def totals(self, model: Model) -> list[int]:
        return [self.settings.steps]

    @staticmethod
    def run(model: Model, tasks: Sequence["Reference"]) -> Iterator[Item]:
        """The one task."""
        settings = tasks[0].settings
        pipeline = with_sampler(model.pipeline, settings.sampler)
        labels, seeds = labels_of(model.pipeline, settings), list(settings.seeds)
        began = time.perf_counter()
        guidance = {"guidance_scale": settings.guidance_scale, "guidance_interval": settings.guidance_interval}
        for step in pipeline.denoise(len(seeds), labels, num_inference_steps=settings.steps, seed=seeds, **guidance):
            made, pixels = step.index + 1, None
            if made == settings.steps:
                pixels = np.stack([np.asarray(image) for image in pipeline.postprocess(step.sample)])
            elif made % REFERENCE_NEWS:
                yield None
                continue
            yield [Frame(0, made, step.timestep, round(time.perf_counter() - began, 3), "", pixels)]


async def stream_comparison(engine: Engine, values: dict, session: str = "", address: str = "") -> AsyncIterator[dict]:
    """Values for the page while samplers are compared.

    Args:
        values: num_images, class_name, guidance_scale, guidance_interval, seed, and lanes: 2 to 4 times {"sampler",
            "steps"}.

    Yields:
        {"run", "state", "queue", "cached", "tile", "seeds", "names", "seconds", "settings", "lanes", "reference"}.
        A lane is {"sampler", "title", "steps", "total", "calls", "seconds", "fresh_noise", "distance", "frames"}:
        ``total`` frames after the first, ``calls`` of the network made for them, and at last ``distance``, RMS over
        pixels in [0, 1] to what DDIM makes with all steps, or None: of a sampler with ``fresh_noise``, or where it
        could not be measured. While it is, the state is "measuring", and ``reference`` {"step", "total", "images": of
        how many images, "note"}; at last its note says in words what the distances are, or why there are none. Until
        then it has "left", too: for how many seconds it will compute, or None while there is nothing to tell it from.

    Raises:
        UserError: for a request outside the limits, or one that failed.
    """
    async with aclosing(_measured(engine, values, session, address)) as stream:
        async for compared in stream:
            yield compared.value()


async def compare_for_program(
    engine: Engine, values: dict, session: str = "", address: str = ""
) -> AsyncIterator[dict]:
    """Progress, ``{"done": False, "step", "total"}``, and at last the lanes' results: what ``/compare`` answers.

    Raises:
        UserError: as ``stream_comparison``.
    """
    async with aclosing(_measured(engine, values, session, address)) as stream:
        async for compared in stream:
            if compared.state != "done":
                yield {"done": False, "step": compared.step, "total": compared.total}
    yield compared.answer()


async def _measured(engine: Engine, values: dict, session: str, address: str) -> AsyncIterator["Compared"]:
    """The comparison, over and over as it proceeds: first the lanes, then what they are measured against."""
    values = request_of(values, REQUEST)
    model = await engine.model(values)
    values.pop("model", None)
    lanes = model.limits.check_comparison(**values)
    compared = Compared(engine, model, lanes, session, address)
    async with aclosing(watch(engine, compared.job)) as reports:
        async for _, news in reports:
            compared.push(news)  # an empty list, too: a lane has new frames alone
            compared.state = "measuring" if compared.job.state == "done" else compared.job.state
            yield compared
    raise_if_failed(compared.job)
    compared.push(())
    if compared.measures:
        end = time.monotonic() + REFERENCE_SECONDS
        async with aclosing(watch(engine, compared.reference)) as reports:
            async for ended, _ in reports:
                if not ended:
                    yield compared
                if time.monotonic() > end:
                    break
    compared.conclude()
    yield compared


class Compared:
    """A comparison as it stands. state: that of the job of the lanes, then "measuring", then "done"."""

    def __init__(self, engine: Engine, model: Model, lanes: Sequence[Settings], session: str, address: str):
        self.job = Job(Comparison(model.name, tuple(lanes)), model, session, address)
        self.reference = Job(Reference.of(model, lanes[0]), model, session, address, background=True)
        self.state, self.note = "waiting", ""
        self._engine, self._model, self._settings = engine, model, lanes
        self._lanes = [
            {
                "sampler": settings.sampler,
                "title": SAMPLERS[settings.sampler].title,
                "steps": settings.steps,
                "total": total,
                "calls": 0,
                "seconds": 0.0,
                "fresh_noise": SAMPLERS[settings.sampler].fresh_noise,
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
    def measures(self) -> bool:
        """Whether a lane can be measured."""
        return not all(lane["fresh_noise"] for lane in self._lanes)

    @property
    def step(self) -> int:
        """Frames made, the steps of the reference among them."""
        return self.job.done + self.reference.done

    @property
    def total(self) -> int:
        return sum(self.job.totals) + (self.reference.totals[0] if self.measures else 0)

    def push(self, news: Sequence[Frame]):
        """Take up frames of any lane."""
        for number, (lane, settings) in enumerate(zip(self._lanes, self._settings)):
            frames = [frame for frame in news if frame.lane == number]
            lane["frames"] = {str(frame.index): as_value(frame) for frame in frames}
            if frames:
                made = timesteps_of(self._model, settings)[: frames[-1].index]
                lane["calls"] = calls_per_image(made, settings.guidance_scale, settings.guidance_interval)
                lane["seconds"] = frames[-1].seconds

    def conclude(self):
        """Fill in the distances, or say why there are none. The lanes stay as they are."""
        self.state, self.note = "done", self._note()
        if not self.measures or self.reference.state != "done":
            return
        exact = self.reference.result().pixels
        for number, lane in enumerate(self._lanes):
            if not lane["fresh_noise"]:
                lane["distance"] = round(rms_distance(self.job.result(number).pixels[: len(exact)], exact), 5)

    def _note(self) -> str:
        steps, count = self.reference.totals[0], self.reference.task.settings.num_images
        if not self.measures:
            return f"Not measured: {FRESH_NOISE}."
        if self.reference.error:
            return f"Not measured: {self.reference.error}"
        if self.reference.state != "done":
            return f"Not measured: all {steps} steps of DDIM take more than {REFERENCE_SECONDS:.0f} s here at present."
        which = "" if count == self._settings[0].num_images else f", over the first {count} images"
        words = f"Root mean square over the pixels, from 0 to 1, to what DDIM makes with all {steps} steps{which}."
        fresh = any(lane["fresh_noise"] for lane in self._lanes)
        return f"{words} The others have no distance: {FRESH_NOISE}." if fresh else words

    def value(self) -> dict:
        """As the page takes it."""
        return {
            **self._head,
            "state": self.state,
            "queue": waiting_words(self._engine, self.job),
            "cached": self.job.cached,
            "seconds": round(self.job.seconds, 3),
            "lanes": [dict(lane) for lane in self._lanes],
            "reference": {
                "step": self.reference.done,
                "total": self.reference.totals[0],
                "images": self.reference.task.settings.num_images,
                "note": self.note,
                **({} if self.state == "done" else {"left": self._left()}),
            },
        }

    def _left(self) -> float | None:
        """Seconds of computing until the reference is there, told from its own steps or, before, from the lanes'."""
        if not self.measures:
            return None
        made, total = self.reference.last.get(0), self.reference.totals[0]
        if made is not None:
            return round(made.seconds / made.index * (total - made.index), 1)
        frames = list(self.job.last.values())
        calls, spent = sum(frame.index for frame in frames), sum(frame.seconds for frame in frames)
        share = self.reference.task.settings.num_images / self._settings[0].num_images
        return round(spent / calls * total * share, 1) if calls else None

    def answer(self) -> dict:
        """As a program takes it."""
        lanes = []
        for number, (lane, settings) in enumerate(zip(self._lanes, self._settings)):
            about = {key: value for key, value in lane.items() if key not in ("total", "frames")}
            grid = png_file(self._model, settings, self.job.result(number))
            lanes.append({**about, "grid_png": as_base64(grid)})
        shared = {key: self._head[key] for key in ("seeds", "names", "settings")}
        return {"done": True, "lanes": lanes, "note": self.note, **shared}


def rms_distance(images: np.ndarray, others: np.ndarray) -> float:
    """Root of the mean square difference of uint8 images, in units of the pixels' range: 0 to 1."""
    return math.sqrt(np.mean((images.astype(np.float64) - others) ** 2)) / 255
