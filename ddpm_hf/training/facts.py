"""What a run says of itself: its first line, and the facts of its report."""

import functools
import os
import subprocess
from pathlib import Path

import numpy as np

from ddpm_hf.config import TrainConfig
from ddpm_hf.devices import device_name
from ddpm_hf.errors import counted
from ddpm_hf.run import Facts
from ddpm_hf.source import SPLIT_WORDS
from ddpm_hf.training.init_from import SHIPPED

MOST_CLASSES = 6  # that the first line names
MOST_PROMPTS = 8
UNET2D_LEAVES_OUT = ("residual", "normalize_input", "time_embed_dim", "feed_forward_dim")


def bad_images(trainer) -> list[str]:
    """A line for every image that could not be used, for training or for validation."""
    return [*trainer.data.skipped, *(trainer.validation_data.skipped if trainer.validation_data else ())]


def unused_settings(config: TrainConfig) -> str | None:
    """A warning of settings that were given and do nothing with this network, or None."""
    defaults = TrainConfig.model_fields
    unused = [name for name in UNET2D_LEAVES_OUT if getattr(config, name) != defaults[name].default]
    if config.model == "my_unet" or not unused:
        return None
    return f"{', '.join(unused)} are settings of model my_unet; unet2d has nothing of that kind."


def first_lines(trainer, resumed: bool) -> list[str]:
    """What is about to be trained on, and what is left out; then what is trained, how long and where."""
    config, accelerator, held = trainer.config, trainer.accelerator, trainer.validation_data
    start = f"resuming at step {trainer.state.step}" if resumed else "training"
    held_out = f", {len(held):,} {_of(held.splits)}for validation" if held else ""
    return [
        f"{start}: {images_told(trainer)}{held_out}{'; left out: ' if left_out(trainer) else ''}{left_out(trainer)}",
        f"{trainer.num_parameters:,} parameters, {trainer.total_steps:,} steps of {config.train_batch_size} images, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision}, in {trainer.folder}",
    ]


def images_told(trainer) -> str:
    """How many images of which size, splits and classes."""
    data, config = trainer.data, trainer.config
    size = f"{data.num_channels}x{config.sample_size}x{config.sample_size}"
    count = "streamed" if config.streaming else f"{len(data):,}"
    splits = " and ".join(dict.fromkeys(data.splits))
    return f"{count} images of {size} of {splits}{_classes(data, config.class_conditional)}"


def left_out(trainer) -> str:
    """What is not used, with its number and the reason; bad images last, the first one by its name."""
    bad = bad_images(trainer)
    return ", ".join(
        [*trainer.data.left_out, *([f"{counted(len(bad), 'bad image')} (first: {bad[0][:-1]})"] if bad else [])]
    )


def _of(splits: tuple[str, ...]) -> str:
    """'of test ': where other images come from; nothing where it is not known."""
    return (
        f"{'' if splits[0].startswith('held out') else 'of '}{' and '.join(dict.fromkeys(splits))} " if splits else ""
    )


def _classes(data, used: bool) -> str:
    """The classes of a data set that has any, and how many images each has where that is known."""
    if data.num_classes is None:
        return ""
    names = data.label_names or [str(label) for label in range(data.num_classes)]
    counts = None if data.labels is None else np.bincount(data.labels, minlength=data.num_classes).tolist()
    if len(names) <= MOST_CLASSES:
        shown = [f"{name} {count:,}" for name, count in zip(names, counts)] if counts else [*names]
    else:
        least, most = (min(counts), max(counts)) if counts else (0, 0)
        shown = [f"{least:,}{f' to {most:,}' if most > least else ''} images each"] if counts else []
    if called := [name for name in names if name.lower() in SPLIT_WORDS]:
        shown.append(f"{', '.join(called)}: a class, not a split")
    if not used:
        shown.append("not trained with: class_conditional is false")
    return f" in {len(names)} classes" + (f" ({', '.join(shown)})" if shown else "")


def facts(trainer) -> Facts:
    """What only the trainer knows of its run."""
    data, state, accelerator, config = trainer.data, trainer.state, trainer.accelerator, trainer.config
    start = config.distill_from or config.init_from
    name, names = device_name(accelerator.device), [source.dataset for source in config.sources]
    return Facts(
        images=None if config.streaming else len(data),
        mode="RGB" if data.num_channels == 3 else "gray",
        validation_images=len(trainer.validation_data or ()),
        parameters=trainer.num_parameters,
        step=state.step,
        total_steps=trainer.total_steps,
        batch_size=config.train_batch_size,
        processes=accelerator.num_processes,
        device_type=accelerator.device.type,
        device=name if accelerator.device.type == "cpu" else f"{accelerator.num_processes} x {name}",
        precision=accelerator.mixed_precision,
        wall_seconds=state.progress.wall_seconds,
        bad_images=bad_images(trainer),
        skipped_steps=state.progress.skipped_steps,
        best_step=trainer.run.best_step(),
        hub_datasets=list(dict.fromkeys(name for name in names if not Path(name).expanduser().exists())),
        base_model=None if start in (None, SHIPPED) or Path(start).expanduser().exists() else start,
        settings_from=trainer.settings_from,
        code=commit_of_code(),
        prompts=list(dict.fromkeys(trainer.words.prompts))[:MOST_PROMPTS] if trainer.words else [],
    )


@functools.cache
def commit_of_code() -> str | None:
    """The commit of the checkout that this file is in, and whether it was changed since; None outside of one."""
    root = Path(__file__).resolve().parent.parent.parent

    def git(*arguments: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
        return git("rev-parse", "HEAD") + (", changed since" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
