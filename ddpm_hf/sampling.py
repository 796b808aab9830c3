"""Sampling many images by name of sampler and class: what the command line and the evaluation share."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.errors import UserError, nearest
from ddpm_hf.figures import class_columns, make_grid, pick_frames
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.samplers import DEFAULT_GUIDANCE, make_scheduler

ANIMATION_FRAMES = 60
LARGEST_GUIDANCE = 100
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


def with_sampler(pipeline: MyDDPMPipeline, name: str, timesteps: int | None = None) -> MyDDPMPipeline:
    """A pipeline with the sampler called ``name``, sharing the network: schedulers have state, networks have not.

    ``timesteps``: see ``make_scheduler``.
    """
    names = ("id2label", "output_height", "output_width", "output_resize")
    settings = {key: pipeline.config.get(key) for key in names}
    other = MyDDPMPipeline(pipeline.unet, make_scheduler(name, pipeline.scheduler, timesteps), **settings)
    other.set_progress_bar_config(disable=True)
    return other


def class_names(pipeline: MyDDPMPipeline) -> list[str]:
    """Names of the classes in the order of their labels, numbers where there are no names; [] if unconditional."""
    names = pipeline.config.get("id2label") or {}
    return [names.get(str(i), str(i)) for i in range(pipeline.num_classes or 0)]


def default_guidance(pipeline: MyDDPMPipeline) -> float:
    """The guidance of pictures for which none was asked: off, 1, where there are no classes to guide towards."""
    return 1.0 if pipeline.num_classes is None else DEFAULT_GUIDANCE


def checked_guidance(pipeline: MyDDPMPipeline, guidance_scale: float | None) -> float:
    """The guidance that was asked for, or the default one.

    Raises:
        UserError: if it is not a finite number, or the model has no classes to guide towards.
    """
    if guidance_scale is None:
        return default_guidance(pipeline)
    if not abs(guidance_scale) <= LARGEST_GUIDANCE:  # NaN is not
        raise UserError(f"--guidance-scale must lie within {LARGEST_GUIDANCE}, got {guidance_scale}.")
    if pipeline.num_classes is None and guidance_scale != 1:
        raise UserError("--guidance-scale was given, but the model has no classes to guide towards; 1 would be right.")
    return guidance_scale


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


def generate(
    pipeline: MyDDPMPipeline,
    num_images: int,
    *,
    labels: list[int] | None = None,
    guidance_scale: float = 1.0,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 64,
    num_frames: int = 0,
    progress: bool = True,
) -> Generated:
    """Images of the seeds seed, seed + 1, ..., each the same picture whatever batch it is made in.

    Args:
        labels: classes taken in turn by the seeds; None is all classes of a conditional model.
        num_frames: also keep so many frames, evenly spaced over the steps, the finished images last.
        progress: show a bar.

    Raises:
        UserError: for a value out of range.
    """
    seeds = range(seed, seed + num_images)
    result = Generated(labels=labels_in_turn(pipeline, seeds, labels))
    total = steps * -(-num_images // batch_size)
    with tqdm(total=total, unit="step", desc="denoising", leave=False, disable=not progress) as bar:
        for start in range(0, num_images, batch_size):
            chunk = seeds[start : start + batch_size]
            chunk_labels = result.labels and result.labels[start : start + batch_size]
            frames = _denoise(pipeline, chunk, chunk_labels, guidance_scale, steps, num_frames, bar)
            result.images += frames[-1]
            if num_frames:
                result.frames = [old + new for old, new in zip(result.frames, frames)] or frames
    return result


@torch.inference_mode()
def _denoise(pipeline, seeds, labels, guidance_scale, steps, num_frames, progress) -> list[list[Image.Image]]:
    """Frames of one batch, the finished images last."""
    frames = []
    try:
        for step in pipeline.denoise(len(seeds), labels, guidance_scale, steps, seed=list(seeds)):
            progress.update()
            total = len(pipeline.scheduler.timesteps)
            if step.index == total - 1 and not torch.isfinite(step.sample).all():
                raise UserError(
                    f"the model makes pixels that are not numbers, in {steps} steps; another --scheduler, more "
                    f"--steps, or --dtype float32 may help."
                )
            if step.index == total - 1 or step.index in pick_frames(num_frames, total):
                frames.append(pipeline.postprocess(pipeline.unit_variance(step.sample)))
    except ValueError as error:
        raise UserError(str(error)) from error
    return frames


def settings_note(
    model: str, num_images: int, class_name: str, guidance_scale: float, sampler: str, steps: int, seed: int
) -> dict:
    """How images were made, to be kept with them: what the page, a link and ``/generate`` take too."""
    return {
        "model": model,
        "num_images": num_images,
        "class_name": class_name,
        "guidance_scale": float(guidance_scale),
        "sampler": sampler,
        "steps": steps,
        "seed": seed,
    }
