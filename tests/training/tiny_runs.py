"""Tiny real runs on real data, and what the tests compare of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from helpers import ROOT
from safetensors.torch import load_file

from ddpm_hf.checkpoints import checkpoints_of
from ddpm_hf.config import build_config
from ddpm_hf.stopping import StopSignal
from ddpm_hf.training import Trainer

DATA = str(ROOT / "data" / "fashion_mnist_tiny.parquet")
TINY = {
    "dataset": DATA,
    "max_images": 60,
    "class_conditional": True,
    "block_out_channels": [8, 16],
    "attention_levels": [],
    "time_embed_dim": 16,
    "train_batch_size": 8,
    "max_train_steps": 12,
    "lr_warmup_steps": 2,
    "logging_steps": 3,
    "checkpointing_steps": 4,
    "validation_steps": 6,
    "sample_steps": 6,
    "num_samples": 4,
    "num_train_timesteps": 50,
    "mixed_precision": "no",  # the fastest for so small a network
    "report_to": "none",
}
SMOKE = ["--config", "configs/smoke.yaml", "--max_train_steps", "40", "--checkpointing_steps", "10"]
SMOKE += ["--sample_steps", "20", "--num_samples", "4", "--logging_steps", "5", "--report_to", "none"]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def tiny_trainer(folder: Path, stop: StopSignal | None = None, **settings) -> Trainer:
    """A trainer of a tiny run in ``folder``."""
    return Trainer(build_config({**TINY, "output_dir": str(folder), **settings}), stop)


def tiny_run(folder: Path, stop: StopSignal | None = None, **settings) -> Trainer:
    """A tiny run, trained or resumed to its end, or to its stop."""
    trainer = tiny_trainer(folder, stop, **settings)
    trainer.train()
    return trainer


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    return checkpoints_of(folder)[-1]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Everything a finished run holds: weights, averages, optimizer and exported pipeline."""
    checkpoint, tensors = newest(folder), {}
    for where in (checkpoint, folder / "pipeline"):
        for file in sorted(where.rglob("*.safetensors")):
            for name, tensor in load_file(file).items():
                tensors[f"{where.name}/{file.relative_to(where)}/{name}"] = tensor
    return tensors


def assert_same_weights(first: Path, second: Path):
    """All tensors of two finished runs are equal to the bit."""
    a, b = tensors_of(first), tensors_of(second)
    assert list(a) == list(b)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(lines: list[dict]) -> list[dict]:
    """Lines of metrics without what the clock says."""
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def train_command(*arguments, launcher=(), **environment) -> subprocess.Popen:
    """``train.py`` in a process of its own, its output in a pipe."""
    return subprocess.Popen(
        [*(launcher or (sys.executable,)), "train.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
