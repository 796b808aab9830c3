"""What a run says of itself: its first line, and the facts of its report."""

import functools
import os
import subprocess
from datetime import timedelta
from pathlib import Path

from ddpm_hf.config import TrainConfig
from ddpm_hf.devices import device_name

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


def first_line(trainer, resumed: bool) -> str:
    """What is about to be trained, on what and where."""
    data, config, accelerator = trainer.data, trainer.config, trainer.accelerator
    size = f"{data.num_channels}x{config.sample_size}x{config.sample_size}"
    images = f"streamed images of {size}" if config.streaming else f"{len(data):,} images of {size}"
    held_out = f" ({len(trainer.validation_data):,} for validation)" if trainer.validation_data else ""
    bad = bad_images(trainer)
    skipped = f", {len(bad)} bad images skipped (first: {bad[0][:-1]})" if bad else ""
    return (
        f"{f'resuming at step {trainer.state.step}' if resumed else 'training'}: {images}{held_out}{skipped}, "
        f"{trainer.num_parameters:,} parameters, {trainer.total_steps:,} steps of {config.train_batch_size} images, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision}, in {trainer.folder}"
    )


def facts(trainer) -> dict[str, str]:
    """What the report says besides settings and metrics."""
    data, state, accelerator = trainer.data, trainer.state, trainer.accelerator
    channels = "RGB" if data.num_channels == 3 else "gray"
    said = {
        "Images": "streamed" if trainer.config.streaming else f"{len(data):,} {channels}",
        "Validation": f"{len(trainer.validation_data):,} held-out images" if trainer.validation_data else "none",
        "Parameters": f"{trainer.num_parameters:,}",
        "Steps": f"{state.step:,} of {trainer.total_steps:,}, {trainer.config.train_batch_size} images each",
        "Processes": f"{accelerator.num_processes} on {accelerator.device.type}",
        "Device": _devices(accelerator),
        "Precision": accelerator.mixed_precision,
        "Wall time": str(timedelta(seconds=round(state.progress.wall_seconds))),
    }
    if skipped := bad_images(trainer):
        said["Bad images skipped"] = f"{len(skipped):,}, first {skipped[0]}"
    if state.progress.skipped_steps:
        said["Steps skipped"] = f"{state.progress.skipped_steps:,}, for a loss that exploded or was not finite"
    if trainer.best_step is not None:
        said["Best checkpoint"] = f"step-{trainer.best_step}, by validation loss"
    if ids := [source.dataset for source in trainer.config.sources if not Path(source.dataset).expanduser().exists()]:
        said["Hub data sets"] = ", ".join(dict.fromkeys(ids))
    if trainer.settings_from:
        said["Settings"] = trainer.settings_from
    if code := commit_of_code():
        said["Code"] = code
    return said


def _devices(accelerator) -> str:
    name, count = device_name(accelerator.device), accelerator.num_processes
    return name if accelerator.device.type == "cpu" else f"{count} x {name}"


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
