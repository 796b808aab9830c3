"""What the model is asked to do: plain requests, and the generators that compute them.

A task is small, frozen and picklable: it is the key of the cache, and on ZeroGPU it travels to the process that has the
GPU. A generator yields after every call of the network, so that whoever drives it can stop there.
"""

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ddpm_hf.figures import pick_frames
from ddpm_hf.pipeline import DenoisingStep, MyDDPMPipeline
from ddpm_hf.sampling import ANIMATION_FRAMES, labels_in_turn, with_sampler
from ddpm_hf.ui.frames import encode_frame, starting_noise
from ddpm_hf.ui.limits import Settings
from ddpm_hf.ui.models import Model

MAX_FILM_BYTES = 2**24  # of the pixels that are kept of a run: large images leave fewer frames for an animation


class Frame(NamedTuple):
    """What one call of the network made of the images of one task.

    lane: of a comparison, else 0. index: 0 for the start, the number of calls for the finished images. t: timestep.
    seconds: that the lane has computed. src: data URL of x_t above x_0. pixels: uint8 (N, H, W) or (N, H, W, 3) of x_t,
    of those frames that an animation shows.
    """

    lane: int
    index: int
    t: float
    seconds: float
    src: str
    pixels: np.ndarray | None

    @property
    def num_bytes(self) -> int:
        return len(self.src) + 200 + (0 if self.pixels is None else self.pixels.nbytes)


# One frame for each task of a batch, or None between two calls of the network for one frame.
Item = list[Frame] | None


@dataclass(frozen=True)
class Generation:
    """Images from noise. ``model`` is the name of one."""

    model: str
    settings: Settings

    @property
    def group(self) -> Hashable:
        """Tasks with the same group can share calls of the network."""
        settings = self.settings
        return (Generation, self.model, settings.sampler, settings.steps, settings.guidance_scale)

    @property
    def rows(self) -> int:
        """Images of one call of the network."""
        return self.settings.num_images * (1 if self.settings.guidance_scale == 1 else 2)

    def totals(self, model: Model) -> list[int]:
        """Calls of the network, by lane."""
        return [calls_of(model, self.settings.sampler, self.settings.steps)]

    @staticmethod
    def run(model: Model, tasks: Sequence["Generation"]) -> Iterator[Item]:
        """All ``tasks``, of one group."""
        settings = tasks[0].settings
        seeds = [seed for task in tasks for seed in task.settings.seeds]
        labels = [label for task in tasks for label in labels_of(model.pipeline, task.settings) or ()] or None
        film = Film.from_noise(model, settings, seeds, labels)
        yield from film.frames([task.settings.num_images for task in tasks])


class Film:
    """Denoising that is watched: the steps of one sampler, taken together by parts of a bearable length.

    Args:
        parts: a pipeline with its sampler, and its ``denoise``, for every so many of the images.
        start: x_t (B, C, S, S) before the first step, of variance 1, and t: its timestep.
        total: number of steps.
    """

    def __init__(
        self,
        model: Model,
        parts: Sequence[tuple[MyDDPMPipeline, Iterator[DenoisingStep]]],
        start: torch.Tensor,
        t: float,
        total: int,
    ):
        self._model, self._parts, self._start, self._t, self.total = model, parts, start, t, total
        self.seconds = 0.0  # computed, without what happened between two steps
        size = len(start) * model.image_size[0] * model.image_size[1] * start.shape[1]
        count = max(2, min(ANIMATION_FRAMES, MAX_FILM_BYTES // size))
        self._shown = {index + 1 for index in pick_frames(count, total)} | {total}

    @classmethod
    def from_noise(cls, model: Model, settings: Settings, seeds: Sequence[int], labels: Sequence[int] | None) -> "Film":
        """Images of ``seeds`` with the sampler, the steps and the guidance of ``settings``."""
        scale, parts = settings.guidance_scale, []
        size = max(1, model.call_rows // (1 if scale == 1 else 2))
        for first in range(0, len(seeds), size):
            some = list(seeds[first : first + size])
            pipeline = with_sampler(model.pipeline, settings.sampler)
            theirs = None if labels is None else list(labels[first : first + size])
            parts.append((pipeline, pipeline.denoise(len(some), theirs, scale, settings.steps, seed=some)))
        noise = starting_noise(model.pipeline, seeds)
        return cls(model, parts, noise, model.timesteps, calls_of(model, settings.sampler, settings.steps))

    def steps(self) -> Iterator[DenoisingStep | None]:
        """x_t fit for looking at, the start first; None after a call that made only a part of a step."""
        yield DenoisingStep(-1, float(self._t), self._start, torch.zeros_like(self._start))
        for index in range(self.total):
            made = []
            for i, (pipeline, stream) in enumerate(self._parts):
                if i:
                    yield None
                began = time.perf_counter()
                step = next(stream)
                made.append((pipeline.unit_variance(step.sample), step.pred_original_sample))
                self.seconds += time.perf_counter() - began
            samples, originals = (torch.cat(tensors) for tensors in zip(*made))
            yield DenoisingStep(index, step.timestep, samples, originals)

    def frames(self, counts: Sequence[int], lane: int = 0) -> Iterator[Item]:
        """A frame for each of the tasks, of which the i-th has ``counts[i]`` of the images."""
        for step in self.steps():
            if step is None:
                yield None
                continue
            pairs = zip(step.sample.split(list(counts)), step.pred_original_sample.split(list(counts)))
            yield [self._frame(step, x_t, x_0, lane) for x_t, x_0 in pairs]

    def _frame(self, step: DenoisingStep, x_t: torch.Tensor, x_0: torch.Tensor, lane: int) -> Frame:
        index, pipeline, pixels = step.index + 1, self._model.pipeline, None
        source = encode_frame(pipeline, x_t, x_0.to(x_t.device), exact=index == self.total)
        if index in self._shown:
            pixels = np.stack([np.asarray(image) for image in pipeline.postprocess(x_t)])
        return Frame(lane, index, round(step.timestep, 1), round(self.seconds, 3), source, pixels)


def labels_of(pipeline: MyDDPMPipeline, settings: Settings) -> list[int] | None:
    """The label of every image, or None of an unconditional model."""
    return labels_in_turn(pipeline, settings.seeds, None if settings.label is None else [settings.label])


def calls_of(model: Model, sampler: str, steps: int) -> int:
    """How many frames a run has after the first: the calls of the network for every image, guidance aside."""
    scheduler = with_sampler(model.pipeline, sampler).scheduler
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps)
