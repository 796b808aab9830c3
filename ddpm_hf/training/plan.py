"""The plan of a run, for ``--dry_run``: what it would train on, how long it would take, where it would write."""

import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.checkpoints import checkpoints_of, step_of
from ddpm_hf.training.resuming import refusal
from ddpm_hf.training.telling import bad_images
from ddpm_hf.training.trainer import Trainer

PROBE_STEPS = 5
FEW_STEPS = 2000  # the smallest networks here show things in as many steps of 32 images


def print_plan(trainer: Trainer):
    """Print the plan of ``trainer``'s run, measured on a few real steps. Nothing is written. Collective."""
    trainer.stop.begin()
    lines = plan(trainer)
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        trainer.accelerator.print(f"{label:<{width}}  {text}")


def plan(trainer: Trainer) -> list[tuple[str, str]]:
    """The plan's lines, (label, text). The trainer's weights are moved by the measured steps."""
    config, data, accelerator = trainer.config, trainer.data, trainer.accelerator
    size = f"{data.num_channels} x {config.sample_size} x {config.sample_size}"
    gflop = forward_gflop(trainer)
    done = _steps_done(trainer.folder)
    seconds = probe(trainer)
    left = max(0, trainer.total_steps - done)
    refused = refusal(config, trainer.folder, data.fingerprint, accelerator.num_processes)
    return [
        ("data set", ", ".join(source.dataset for source in config.sources)),
        ("images", f"{'streamed' if config.streaming else f'{len(data):,}'}, {size}, {_classes(data)}"),
        ("pictures made", f"{data.output_size[0]} x {data.output_size[1]}, resize {config.resize}"),
        ("validation", f"{len(trainer.validation_data):,} images" if trainer.validation_data else "none"),
        ("bad images", f"{len(bad_images(trainer)):,} skipped" if bad_images(trainer) else "none"),
        ("network", f"{type(trainer.state.unet).__name__}, {trainer.num_parameters:,} parameters"),
        ("compute", f"{gflop:.2f} GFLOP an image forward, about {3 * gflop:.2f} for training"),
        ("steps", _steps(trainer, done)),
        ("learning rate", f"{config.learning_rate:g}, {_warmup(trainer)}, then {config.lr_scheduler}"),
        ("processes", f"{accelerator.num_processes} on {accelerator.device.type}, {accelerator.mixed_precision}"),
        ("speed", f"{config.train_batch_size / seconds:,.1f} images/s ({PROBE_STEPS} steps, after 2 to warm up)"),
        ("time to finish", f"about {timedelta(seconds=round(left * seconds))}, validation and pictures aside"),
        ("peak memory", _peak_memory(accelerator.device)),
        ("run", str(trainer.folder)),
        *([("  resuming", f"would be refused: {refused}")] if refused else []),
        ("  checkpoints", f"{trainer.folder / 'checkpoints'}, every {config.checkpointing_steps:,} steps"),
        ("  metrics", f"{trainer.folder / 'metrics.jsonl'}, every {config.logging_steps:,} steps"),
        ("  pictures", f"{trainer.folder / 'samples'}, every {config.sample_steps:,} steps"),
        ("  pipeline", f"{trainer.folder / 'pipeline'}, at the end"),
        ("  trackers", ", ".join(trainer.trackers.names) or "none"),
    ]


def _steps(trainer: Trainer, done: int) -> str:
    total, batch = trainer.total_steps, trainer.config.train_batch_size
    epochs = "" if trainer.config.streaming else f", {total * batch / len(trainer.data):.3g} epochs"
    few = f"; few: pictures take some {FEW_STEPS:,}" if total < FEW_STEPS else ""
    return f"{total:,} of {batch} images{epochs}{f', {done:,} done' if done else ''}{few}"


def _warmup(trainer: Trainer) -> str:
    return f"{min(trainer.config.lr_warmup_steps, trainer.total_steps // 2):,} steps of warm-up"


def _classes(data) -> str:
    if data.num_classes is None:
        return "no labels"
    names = data.label_names or []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{data.num_classes} classes" + (f" ({shown})" if shown else "")


@torch.no_grad()
def forward_gflop(trainer: Trainer) -> float:
    """Floating-point operations of a forward pass for one image, in 10^9; a multiplication and addition are two."""
    unet, data, size = trainer.state.unet, trainer.data, trainer.config.sample_size
    x = torch.zeros(1, data.num_channels, size, size, device=unet.device)
    label = torch.zeros(1, dtype=torch.long, device=unet.device) if trainer.config.class_conditional else None
    with FlopCounterMode(display=False) as counter:
        unet(x, torch.zeros(1, dtype=torch.long, device=unet.device), label)
    return counter.get_total_flops() / 1e9


def probe(trainer: Trainer) -> float:
    """Seconds of an optimizer step, the mean of ``PROBE_STEPS`` after two to warm up. Collective."""
    for _ in range(2):
        trainer.train_step()
    start = time.perf_counter()
    for _ in range(PROBE_STEPS):
        trainer.stop.check()
        trainer.train_step()
    return (time.perf_counter() - start) / PROBE_STEPS


def _steps_done(folder: Path) -> int:
    checkpoints = checkpoints_of(folder)
    return step_of(checkpoints[-1]) if checkpoints else 0


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of the GPU's"
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30:.2f} GiB"
