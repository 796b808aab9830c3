"""What a run says of itself: its first line, and the facts of its report."""

from datetime import timedelta

from ddpm_hf.hub import checkpoints_of
from ddpm_hf.training.checkpoints import step_of


def first_line(trainer, resumed: bool) -> str:
    """What is about to be trained, on what and where."""
    data, config, accelerator = trainer.data, trainer.config, trainer.accelerator
    size = f"{data.num_channels}x{config.sample_size}x{config.sample_size}"
    images = f"streamed images of {size}" if config.streaming else f"{len(data):,} images of {size}"
    held_out = f" ({len(trainer.validation_data):,} for validation)" if trainer.validation_data else ""
    skipped = f", {len(data.skipped)} bad images skipped (first: {data.skipped[0][:-1]})" if data.skipped else ""
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
        "Precision": accelerator.mixed_precision,
        "Wall time": str(timedelta(seconds=round(state.progress.wall_seconds))),
    }
    if data.skipped:
        said["Bad images skipped"] = f"{len(data.skipped):,}, first {data.skipped[0]}"
    if state.progress.skipped_steps:
        said["Steps skipped"] = f"{state.progress.skipped_steps:,}, for a loss that exploded or was not finite"
    best = trainer.metrics.best_step([step_of(path) for path in checkpoints_of(trainer.folder)])
    if best is not None:
        said["Best checkpoint"] = f"step-{best}, by validation loss"
    return said
