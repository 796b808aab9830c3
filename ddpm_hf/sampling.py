"""Sampling many images by name of sampler and class: what the command line and the evaluation share."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.errors import UserError, nearest, one_line, printable
from ddpm_hf.figures import class_columns, make_grid, pick_frames
from ddpm_hf.memory import refuse_beyond_memory, sampling_bytes
from ddpm_hf.pipeline import MyDDPMPipeline, check_text
from ddpm_hf.samplers import (
    DEFAULT_GUIDANCE,
    DEFAULT_GUIDED_SHARE,
    DEFAULT_SAMPLER,
    DEFAULT_STEPS,
    OWN_SAMPLERS,
    SAMPLERS,
    WORDS_GUIDANCE,
    make_scheduler,
)
from ddpm_hf.scheduler import MyDDPMScheduler

ANIMATION_FRAMES = 60
LARGEST_GUIDANCE = 100
LONGEST_NAME = 100  # characters of a class
SHOWN_WIDTH, LARGEST_WIDTH = 128, 1024  # pixels of an image and of a grid in an animation


@dataclass
class Generated:
    """Images with their labels and seeds, and, where asked for, frames of the denoising (lists of images)."""

    images: list[Image.Image] = field(default_factory=list)
    labels: list[int] | None = None
    frames: list[list[Image.Image]] = field(default_factory=list)

    @property
    def columns(self) -> int | None:
        """Columns of a grid in which every column is one class, where that comes out even; else None."""
        columns = class_columns(len(self.images), len(set(self.labels or ())))
        return columns if columns and len(self.images) % columns == 0 else None

    def grid(self) -> Image.Image:
        """All images, twice as large; a single one as it is."""
        return make_grid(self.images, self.columns, scale=1 if len(self.images) == 1 else 2)

    def animation(self) -> list[Image.Image]:
        """A grid for every frame, small images enlarged."""
        width, columns = self.images[0].width, self.columns or math.ceil(math.sqrt(len(self.images)))
        scale = max(1, min(max(2, SHOWN_WIDTH // width), LARGEST_WIDTH // (columns * width)))
        return [make_grid(frame, self.columns, scale=scale) for frame in self.frames]

    def arrays(self) -> dict[str, np.ndarray]:
        """``images`` uint8 (N, H, W) or (N, H, W, 3), ``labels`` int64 (N,) where there are labels."""
        arrays = {"images": np.stack([np.asarray(image) for image in self.images])}
        if self.labels is not None:
            arrays["labels"] = np.asarray(self.labels, dtype=np.int64)
        return arrays


@dataclass(frozen=True)
class Sampling:
    """How a model makes its pictures where nothing else is asked for.

    guidance_interval: (first, last) timestep with guidance; None of a model without classes.
    """

    sampler: str
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] | None


def run_sampling(num_train_timesteps: int, conditional: bool, words: bool = False) -> Sampling:
    """What a training run writes into its model, and what models of version 0.1, which carry nothing, take."""
    steps = min(DEFAULT_STEPS, num_train_timesteps)
    if not conditional:
        return Sampling(DEFAULT_SAMPLER, steps, 1.0, None)
    if words:
        return Sampling(DEFAULT_SAMPLER, steps, WORDS_GUIDANCE, (0, num_train_timesteps))
    return Sampling(DEFAULT_SAMPLER, steps, DEFAULT_GUIDANCE, (0, round(DEFAULT_GUIDED_SHARE * num_train_timesteps)))


def own_sampling(pipeline: MyDDPMPipeline) -> Sampling:
    """What the model was exported with; what it does not say is that of ``run_sampling``."""
    config, scheduler = pipeline.config, pipeline.scheduler.config
    conditional = pipeline.can_be_guided
    usual = run_sampling(scheduler.num_train_timesteps, conditional, pipeline.words_dim is not None)
    named = {SAMPLERS[name].settings["algorithm_type"]: name for name in ("dpm", "dpm-sde")}
    scale, interval = usual.guidance_scale, usual.guidance_interval
    if conditional and config.get("guidance_scale") is not None:
        scale, interval = float(config.guidance_scale), carried_interval(pipeline)
    sampler = named.get(scheduler.get("algorithm_type"), usual.sampler)
    if isinstance(pipeline.scheduler, DDIMScheduler) and config.get("num_inference_steps"):
        sampler = "ddim"
    return Sampling(sampler, config.get("num_inference_steps") or usual.steps, scale, interval)


def carried_interval(pipeline: MyDDPMPipeline) -> tuple[float, float] | None:
    """The interval for a scale that is asked for without one: the model's, else all timesteps, as in version 0.1."""
    if not pipeline.can_be_guided:
        return None
    return tuple(pipeline.config.get("guidance_interval") or (0, pipeline.scheduler.config.num_train_timesteps))


def with_sampler(pipeline: MyDDPMPipeline, name: str, timesteps: int | None = None) -> MyDDPMPipeline:
    """A pipeline with the sampler called ``name``, sharing the network: schedulers have state, networks have not.

    ``timesteps``: see ``make_scheduler``.
    """
    other = copy.copy(pipeline)
    other.register_modules(scheduler=make_scheduler(name, pipeline.scheduler, timesteps))
    other.set_progress_bar_config(disable=True)
    return other


def with_sampling(pipeline: MyDDPMPipeline, sampling: Sampling) -> MyDDPMPipeline:
    """A pipeline whose own sampling, the one it is exported with, is ``sampling``; it shares the network.

    Raises:
        UserError: if this model cannot have it.
    """
    other, scheduler = copy.copy(pipeline), pipeline.scheduler
    if sampling.sampler not in OWN_SAMPLERS:
        raise UserError(f"a model's own sampler is one of {', '.join(OWN_SAMPLERS)}, not {sampling.sampler}.")
    if not isinstance(scheduler, MyDDPMScheduler | DDIMScheduler):
        raise UserError(f"a model with the scheduler {type(scheduler).__name__} cannot have a sampler of its own.")
    if sampling.sampler == "ddim":
        scheduler = make_scheduler("ddim", scheduler)
    else:
        algorithm = SAMPLERS[sampling.sampler].settings["algorithm_type"]
        scheduler = MyDDPMScheduler.from_config(scheduler.config, algorithm_type=algorithm)
    other.register_modules(scheduler=scheduler)
    interval = sampling.guidance_interval
    other.register_to_config(
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        guidance_interval=None if interval is None else list(interval),
    )
    try:
        other.check_own_sampling()
    except ValueError as error:
        raise UserError(str(error)) from None
    return other


def class_names(pipeline: MyDDPMPipeline) -> list[str]:
    """Names of the classes in the order of their labels, numbers where there are no names; [] if unconditional."""
    names = pipeline.config.get("id2label") or {}
    return [printable(names.get(str(i), i), LONGEST_NAME) for i in range(pipeline.num_classes or 0)]


def checked_guidance(
    pipeline: MyDDPMPipeline, scale: float | None, interval: tuple[float, float] | None
) -> tuple[float, tuple[float, float] | None]:
    """The guidance and its interval that were asked for, or the model's own; the interval None without classes.

    Raises:
        UserError: if one is out of range, or the model has no classes to guide towards.
    """
    own, total = own_sampling(pipeline), pipeline.scheduler.config.num_train_timesteps
    default = own.guidance_interval if scale is None else carried_interval(pipeline)
    scale = own.guidance_scale if scale is None else scale
    if not abs(scale) <= LARGEST_GUIDANCE:  # NaN is not
        raise UserError(f"--guidance-scale must lie within {LARGEST_GUIDANCE}, got {scale}.")
    if not pipeline.can_be_guided:
        given = "--guidance-scale" if scale != 1 else "--guidance-interval" if interval is not None else None
        if given:
            raise UserError(f"{given} was given, but the model has no classes to guide towards: leave it out.")
    if interval is not None and interval[1] > total:
        raise UserError(f"--guidance-interval must lie within the model's timesteps, 0 to {total}.")
    return scale, default if interval is None else interval


def whole_numbers(interval: tuple[float, float]) -> tuple[float, float]:
    """The same, as int what is whole: how it is shown and kept."""
    return tuple(int(value) if value == int(value) else float(value) for value in interval)


def calls_per_image(timesteps: Iterable[float], scale: float, interval: tuple[float, float] | None) -> int:
    """How often the network runs for an image at ``timesteps``: twice where it is guided."""
    low, high = interval or (-math.inf, math.inf)
    return sum(2 if scale != 1 and low <= t <= high else 1 for t in timesteps)


def interval_text(interval: tuple[float, float] | None) -> str | None:
    """ "0,400", as the command line and a link have it."""
    return None if interval is None else ",".join(f"{value:g}" for value in interval)


def labels_by_name(pipeline: MyDDPMPipeline, text: str | None) -> list[int] | None:
    """Labels from 'Bag' or '0,3,Bag'.

    Raises:
        UserError: for a class the model has not.
    """
    if text is None:
        return None
    names = class_names(pipeline)
    if not names:
        raise UserError("--labels was given, but the model is unconditional.")
    return [_label_of(part.strip(), names) for part in text.split(",")]


def _label_of(text: str, names: list[str]) -> int:
    lowered = [name.lower() for name in names]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UserError(f"the model has no class {text!r}; {nearest(text, names)}")


def labels_in_turn(pipeline: MyDDPMPipeline, seeds: range, chosen: list[int] | None = None) -> list[int] | None:
    """A label for every seed: seed s gets the s-th of ``chosen`` (all classes when None), round and round."""
    if pipeline.num_classes is None:
        return None
    chosen = chosen or list(range(pipeline.num_classes))
    return [chosen[seed % len(chosen)] for seed in seeds]


def checked_prompts(pipeline: MyDDPMPipeline, prompts: Sequence[str] | None, option: str = "--prompt") -> list[str]:
    """``prompts``, if the model can read them; [] for none.

    Raises:
        UserError: for a text that is no prompt, or a model that reads no words.
    """
    prompts = list(prompts or ())
    if prompts and pipeline.text_encoder is None:
        lacks = "has no text encoder" if pipeline.words_dim else "reads no words"
        raise UserError(f"{option} was given, but the model {lacks}: leave it out.")
    try:
        for prompt in prompts:
            check_text(option, prompt)
    except ValueError as error:
        raise UserError(str(error)) from None
    return prompts


def generate(
    pipeline: MyDDPMPipeline,
    num_images: int,
    *,
    labels: list[int] | None = None,
    prompts: list[str] | None = None,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    num_frames: int = 0,
    progress: bool = True,
) -> Generated:
    """Images of the seeds seed, seed + 1, ..., each the same picture whatever batch it is made in.

    Guidance, its interval and steps are as of ``MyDDPMPipeline.denoise``.

    Args:
        labels: classes taken in turn by the seeds; None is all classes of a conditional model.
        prompts: taken in turn by the images, the first by the first; None or none are images of anything.
        negative_prompt: what all are guided away from.
        num_frames: also keep so many frames, evenly spaced over the steps, the finished images last.
        progress: show a bar.

    Raises:
        UserError: for a value out of range.
    """
    refuse_beyond_memory(sampling_bytes(pipeline, num_images, batch_size, num_frames), f"{num_images} pictures")
    seeds = range(seed, seed + num_images)
    result = Generated(labels=labels_in_turn(pipeline, seeds, labels))
    options = {
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "num_inference_steps": steps,
    }
    batches = -(-num_images // batch_size)
    with tqdm(unit="step", desc="denoising", leave=False, disable=not progress) as bar:
        for start in range(0, num_images, batch_size):
            chunk = seeds[start : start + batch_size]
            chunk_labels = result.labels and result.labels[start : start + batch_size]
            if prompts:
                options["prompt"] = [prompts[(s - seed) % len(prompts)] for s in chunk]
                options["negative_prompt"] = negative_prompt
            frames = _denoise(pipeline, chunk, chunk_labels, options, num_frames, batches, bar)
            result.images += frames[-1]
            if num_frames:
                result.frames = [old + new for old, new in zip(result.frames, frames)] or frames
    return result


@torch.inference_mode()
def _denoise(pipeline, seeds, labels, options, num_frames, batches, progress) -> list[list[Image.Image]]:
    """Frames of one batch, the finished images last."""
    frames = []
    try:
        for step in pipeline.denoise(len(seeds), labels, seed=list(seeds), **options):
            total = pipeline.num_timesteps
            progress.total = batches * total
            progress.update()
            if step.index == total - 1 and not torch.isfinite(step.sample).all():
                raise UserError(
                    f"the model makes pixels that are not numbers, in {total} steps; another --scheduler, more "
                    f"--steps, or --dtype float32 may help."
                )
            if step.index == total - 1 or step.index in pick_frames(num_frames, total):
                frames.append(pipeline.postprocess(pipeline.unit_variance(step)))
    except ValueError as error:
        raise UserError(str(error)) from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:  # of a model's odd settings, or memory
        raise UserError(f"the model cannot make pictures with these settings: {one_line(error)}") from error
    return frames


def settings_note(
    model: str,
    num_images: int,
    class_name: str,
    guidance_scale: float,
    guidance_interval: tuple[float, float] | None,
    sampler: str,
    steps: int,
    seed: int,
    prompt: str | None = None,
) -> dict:
    """How images were made, to be kept with them: what the page, a link and ``/generate`` take too."""
    interval = {} if guidance_interval is None else {"guidance_interval": list(whole_numbers(guidance_interval))}
    return {
        "model": model,
        "num_images": num_images,
        "class_name": class_name,
        **({} if prompt is None else {"prompt": prompt}),
        "guidance_scale": float(guidance_scale),
        **interval,
        "sampler": sampler,
        "steps": steps,
        "seed": seed,
    }
