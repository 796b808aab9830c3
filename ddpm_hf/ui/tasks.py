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
from ddpm_hf.sampling import ANIMATION_FRAMES, labels_in_turn
from ddpm_hf.ui.frames import encode_frame, starting_noise
from ddpm_hf.ui.limits import Settings
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.start import denoise_options, noised, sampler_of

MAX_FILM_BYTES = 2**24  # of the pixels that are kept of a run: large images leave fewer frames for an animation


class Frame(NamedTuple):
    """A point on the way of the images of one task: x_t, its t, and the x_0 that the network predicts from this x_t.

    The three belong to one call of the network, the one that is given x_t and t; a frame is there once that call is
    made. Two have none. The start comes before its call, x_0 left gray, and a second time after it. The finished
    images stand at no timestep of the schedule and are their own x_0.

    lane: of a comparison, else 0. index: how many calls have led to x_t: 0 for the start, all of them for the finished
    images. t: timestep, None for the finished images. seconds: that the lane has computed. src: data URL of x_t above
    x_0. pixels: uint8 (N, H, W) or (N, H, W, 3) of x_t, of those frames that an animation shows.
    """

    lane: int
    index: int
    t: float | None
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
    """Images from noise, or from a picture. ``model`` is the name of one."""

    model: str
    settings: Settings

    @property
    def group(self) -> Hashable:
        """Tasks with the same group can share calls of the network."""
        settings = self.settings
        if settings.start:
            return self  # shares its calls with no other task
        guidance = (settings.guidance_scale, settings.guidance_interval)
        return (Generation, self.model, settings.sampler, settings.steps, *guidance, settings.prompt is None)

    @property
    def rows(self) -> int:
        """Images of one call of the network, at most."""
        return self.settings.num_images * (1 if self.settings.guidance_scale == 1 else 2)

    def totals(self, model: Model) -> list[int]:
        """Calls of the network, by lane."""
        return [len(timesteps_of(model, self.settings))]

    @staticmethod
    def run(model: Model, tasks: Sequence["Generation"]) -> Iterator[Item]:
        """All ``tasks``, of one group."""
        settings = tasks[0].settings
        seeds = [seed for task in tasks for seed in task.settings.seeds]
        labels = [label for task in tasks for label in labels_of(model.pipeline, task.settings) or ()] or None
        prompts = [task.settings.prompt for task in tasks for _ in task.settings.seeds if task.settings.prompt] or None
        x_t = (yield from noised(model, settings, labels)) if settings.start else None
        film = Film.of(model, settings, seeds, labels, prompts, x_t)
        yield from film.frames([task.settings.num_images for task in tasks])


class Still(NamedTuple):
    """A frame before it is a picture; x_t and x_0 (B, C, S, S) are fit for looking at."""

    index: int
    t: float | None
    x_t: torch.Tensor
    x_0: torch.Tensor


class Film:
    """Denoising that is watched: the steps of one sampler, taken together by parts of a bearable length.

    Args:
        parts: a pipeline with its sampler, and its ``denoise``, for every so many of the images.
        start: x_t (B, C, S, S) before the first step, of variance 1.
        timesteps: t of every call of the network for an image.
    """

    def __init__(
        self,
        model: Model,
        parts: Sequence[tuple[MyDDPMPipeline, Iterator[DenoisingStep]]],
        start: torch.Tensor,
        timesteps: Sequence[float],
    ):
        self._model, self._parts, self._start = model, parts, start
        self._first_t, self.total = timesteps[0], len(timesteps)
        self.seconds = 0.0  # computed, without what happened between two steps
        size = len(start) * model.image_size[0] * model.image_size[1] * start.shape[1]
        count = max(2, min(ANIMATION_FRAMES, MAX_FILM_BYTES // size))
        self._shown = {index + 1 for index in pick_frames(count, self.total)} | {self.total}

    @classmethod
    def of(
        cls,
        model: Model,
        settings: Settings,
        seeds: Sequence[int],
        labels: Sequence[int] | None,
        prompts: Sequence[str] | None = None,
        x_t: torch.Tensor | None = None,
    ) -> "Film":
        """Images of ``seeds`` with the sampler, the steps and the guidance of ``settings``, each of its prompt; from
        x_t, if not from noise."""
        scale, interval, start, parts = settings.guidance_scale, settings.guidance_interval, settings.start, []
        size = max(1, model.call_rows // (1 if scale == 1 else 2))
        for first in range(0, len(seeds), size):
            some = list(seeds[first : first + size])
            pipeline = sampler_of(model, settings)
            process = pipeline.scheduler.config.num_train_timesteps
            theirs = None if labels is None else list(labels[first : first + size])
            options = {"guidance_interval": interval and [min(t, process) for t in interval]}
            options["prompt"] = None if prompts is None else list(prompts[first : first + size])
            if start is None:
                options["seed"] = some
            else:
                options |= denoise_options(model, pipeline, start, some, x_t[first : first + size])
            steps = pipeline.scheduler.num_inference_steps
            parts.append((pipeline, pipeline.denoise(len(some), theirs, scale, steps, **options)))
        x_t = starting_noise(model.pipeline, seeds) if x_t is None else x_t
        return cls(model, parts, x_t, timesteps_of(model, settings))

    def stills(self) -> Iterator[Still | None]:
        """The way as ``Frame`` tells it; None after a call that made only a part of a step."""
        x_t = self._start
        yield Still(0, self._first_t, x_t, torch.zeros_like(x_t))
        for index in range(self.total):
            made = []
            for i, (pipeline, stream) in enumerate(self._parts):
                if i:
                    yield None
                began = time.perf_counter()
                step = next(stream)
                made.append((pipeline.unit_variance(step), step.pred_original_sample))
                self.seconds += time.perf_counter() - began
            x_next, x_0 = (torch.cat(tensors) for tensors in zip(*made))
            yield Still(index, step.timestep, x_t, x_0)
            x_t = x_next
        yield Still(self.total, None, x_t, x_t)

    def frames(self, counts: Sequence[int], lane: int = 0) -> Iterator[Item]:
        """A frame for each of the tasks, of which the i-th has ``counts[i]`` of the images."""
        for still in self.stills():
            if still is None:
                yield None
                continue
            pairs = zip(still.x_t.split(list(counts)), still.x_0.split(list(counts)))
            yield [self._frame(still, x_t, x_0, lane) for x_t, x_0 in pairs]

    def _frame(self, still: Still, x_t: torch.Tensor, x_0: torch.Tensor, lane: int) -> Frame:
        pipeline, pixels = self._model.pipeline, None
        source = encode_frame(pipeline, x_t, x_0.to(x_t.device), exact=still.index == self.total)
        if still.index in self._shown:
            pixels = np.stack([np.asarray(image) for image in pipeline.postprocess(x_t)])
        t = None if still.t is None else round(still.t, 1)
        return Frame(lane, still.index, t, round(self.seconds, 3), source, pixels)


def labels_of(pipeline: MyDDPMPipeline, settings: Settings) -> list[int] | None:
    """The label of every image, or None of an unconditional model."""
    return labels_in_turn(pipeline, settings.seeds, None if settings.label is None else [settings.label])


def timesteps_of(model: Model, settings: Settings) -> list[float]:
    """t of every call of the network for an image, guidance aside."""
    return sampler_of(model, settings).scheduler.timesteps.tolist()
