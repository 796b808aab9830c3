"""The plan of a run, for ``--dry_run``: what it would train on, how long it would take, where it would write."""

import time
from datetime import timedelta
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.checkpoints import newest_whole, read_state
from ddpm_hf.config import TrainConfig
from ddpm_hf.devices import peak_memory
from ddpm_hf.memory import some_words
from ddpm_hf.training.distributed import say
from ddpm_hf.training.facts import images_told, left_out
from ddpm_hf.training.memory import training_memory
from ddpm_hf.training.resuming import counted_images, refusal
from ddpm_hf.training.trainer import Trainer

PROBE_STEPS = 5
FEW_STEPS = 2000  # the smallest networks here show things in as many steps of 32 images


def print_plan(trainer: Trainer):
    """Print the plan of ``trainer``'s run, measured on a few real steps. Nothing is written. Collective."""
    trainer.stop.begin()
    lines = plan(trainer)
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        say(trainer.accelerator, f"{label:<{width}}  {text}")


def plan(trainer: Trainer) -> list[tuple[str, str]]:
    """The plan's lines, (label, text). The trainer's weights are moved by the measured steps."""
    config, data, accelerator = trainer.config, trainer.data, trainer.accelerator
    gflop = forward_gflop(trainer)
    done, images_seen = _done(trainer.folder)
    total = config.total_steps(0 if config.streaming else len(data), done, images_seen)
    left = max(0, total - done)
    seconds = probe(trainer)
    refused = refusal(config, trainer.folder, trainer.known_fingerprints(), accelerator.num_processes)
    return [
        ("data set", ", ".join(source.dataset for source in config.sources)),
        ("images", images_told(trainer) + ("" if data.num_classes else ", no labels")),
        ("pictures made", f"{data.output_size[0]} x {data.output_size[1]}, resize {config.resize}{_crops(config)}"),
        ("validation", f"{len(trainer.validation_data):,} images" if trainer.validation_data else "none"),
        ("left out", left_out(trainer) or "nothing"),
        *(("note", note) for note in data.notes),
        ("network", f"{type(trainer.state.unet).__name__}, {trainer.num_parameters:,} parameters"),
        *([("weights", trainer.origin)] if trainer.origin else []),
        ("compute", f"{gflop:.2f} GFLOP an image forward, about {3 * gflop:.2f} for training"),
        ("steps", _steps(trainer, total, done, images_seen + left * config.train_batch_size)),
        ("learning rate", f"{config.learning_rate:g}, {_warmup(config, total)}, then {config.lr_scheduler}"),
        ("processes", f"{accelerator.num_processes} on {accelerator.device.type}, {accelerator.mixed_precision}"),
        ("speed", f"{config.train_batch_size / seconds:,.1f} images/s ({PROBE_STEPS} steps, after 2 to warm up)"),
        ("time to finish", f"about {timedelta(seconds=round(left * seconds))}, validation and pictures aside"),
        ("device memory", _memory(trainer)),
        ("run", str(trainer.folder)),
        *([("  resuming", f"would be refused: {refused}")] if refused else []),
        ("  checkpoints", f"{trainer.folder / 'checkpoints'}, every {config.checkpointing_steps:,} steps"),
        ("  metrics", f"{trainer.folder / 'metrics.jsonl'}, every {config.logging_steps:,} steps"),
        ("  pictures", f"{trainer.folder / 'samples'}, every {config.sample_steps:,} steps"),
        ("  pipeline", f"{trainer.folder / 'pipeline'}, at the end"),
        ("  trackers", ", ".join(trainer.trackers.names) or "none"),
    ]


def _crops(config: TrainConfig) -> str:
    return ", random crops of the whole pictures" if config.random_crop else ""


def _steps(trainer: Trainer, total: int, done: int, num_images: int) -> str:
    epochs = "" if trainer.config.streaming else f", {num_images / len(trainer.data):.3g} epochs"
    few = f"; few: pictures take some {FEW_STEPS:,}" if total < FEW_STEPS else ""
    already = f", {done:,} done" if done else ""
    return f"{total:,} of {trainer.config.train_batch_size} images{epochs}{already}{few}"


def _warmup(config: TrainConfig, total: int) -> str:
    return f"{min(config.lr_warmup_steps, total // 2):,} steps of warm-up"


@torch.no_grad()
def forward_gflop(trainer: Trainer) -> float:
    """Floating-point operations of a forward pass for one image, in 10^9; a multiplication and addition are two."""
    unet, data, size = trainer.state.unet, trainer.data, trainer.config.sample_size
    x = torch.zeros(1, data.num_channels, size, size, device=unet.device)
    label = torch.zeros(1, dtype=torch.long, device=unet.device) if trainer.config.class_conditional else None
    with FlopCounterMode(display=False) as counter:
        unet(x, torch.zeros(1, dtype=torch.long, device=unet.device), label, **some_words(unet, 1, unet.device))
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


def _done(folder: Path) -> tuple[int, int]:
    """Steps taken and images seen by the run in ``folder``, at the checkpoint that it would resume from."""
    checkpoint, _ = newest_whole(folder)
    if checkpoint is None:
        return 0, 0
    saved = read_state(checkpoint)
    return saved["progress"]["step"], counted_images(saved, folder)[0]


def _memory(trainer: Trainer) -> str:
    """What the measured steps took here, and what a GPU needs. "auto" is bfloat16 on a GPU that has it."""
    accelerator = trainer.accelerator
    measured = f"{peak_memory(accelerator.device) / 2**30:.2f} GiB"
    if accelerator.device.type == "cuda":
        return f"{measured} of the GPU's measured, estimated {training_memory(trainer, accelerator.mixed_precision)}"
    wanted = trainer.config.mixed_precision
    precision = "bf16" if wanted == "auto" else wanted
    needed = training_memory(trainer, precision)
    return f"a GPU needs about {needed}, precision {precision}, besides its driver; this process took {measured} here"
