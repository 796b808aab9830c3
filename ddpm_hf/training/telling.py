"""What a run says of itself: its first line, and the facts of its report."""

from datetime import timedelta

from ddpm_hf.config import TrainConfig

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
        "Precision": accelerator.mixed_precision,
        "Wall time": str(timedelta(seconds=round(state.progress.wall_seconds))),
    }
    if skipped := bad_images(trainer):
        said["Bad images skipped"] = f"{len(skipped):,}, first {skipped[0]}"
    if state.progress.skipped_steps:
        said["Steps skipped"] = f"{state.progress.skipped_steps:,}, for a loss that exploded or was not finite"
    if trainer.best_step is not None:
        said["Best checkpoint"] = f"step-{trainer.best_step}, by validation loss"
    return said
