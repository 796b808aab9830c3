"""The estimate of a training step's device memory, against what torch allocates on the CPU."""

import importlib.util
import json
import sys
import types

import numpy as np
import psutil
import pytest
import torch
from helpers import ROOT
from PIL import Image
from tiny_runs import DATA, tiny_trainer

from ddpm_hf.config import load_config
from ddpm_hf.training import Trainer
from ddpm_hf.training.memory import training_memory
from ddpm_hf.training.plan import plan

SMALL_NETWORK = ["--attention_levels", "[2]", "--block_out_channels", "[32, 64, 128, 256]", "--residual"]


def trainer_of(folder, *arguments: str) -> Trainer:
    """A trainer without validation, its optimizer's state made by a step of gradients that are zero."""
    words = ["--output_dir", str(folder / "run"), "--report_to", "none", "--validation_split", "null"]
    trainer = Trainer(load_config([*words, *arguments]))
    for parameter in trainer.state.unet.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    trainer.state.optimizer.step()
    trainer.state.optimizer.zero_grad()
    return trainer


def measured(trainer: Trainer, folder) -> int:
    """The largest number of bytes that torch's allocator holds in a real training step, weights and all."""
    state = trainer.state
    tensors = [*state.unet.parameters(), *(p for average in state.averages.values() for p in average.shadow_params)]
    for values in state.optimizer.state_dict()["state"].values():
        tensors += [value for value in values.values() if torch.is_tensor(value)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.train_step()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return held + int(np.cumsum([change for _, change in changes]).max())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "configs/fashion_mnist_small.yaml", "--train_batch_size", "32"],
        ["--config", "configs/fashion_mnist.yaml", "--train_batch_size", "2"],
        pytest.param(["--config", "configs/fashion_mnist.yaml", "--train_batch_size", "8"], marks=pytest.mark.slow),
        ["--config", "configs/emoji_128.yaml", "--train_batch_size", "8"],
        pytest.param(["--config", "configs/emoji_256.yaml", "--train_batch_size", "4"], marks=pytest.mark.slow),
        [*SMALL_NETWORK, "--sample_size", "128", "--patch_size", "4", "--resize", "crop"]
        + ["--train_batch_size", "16", "--gradient_checkpointing"],
        [*SMALL_NETWORK, "--train_batch_size", "32", "--gradient_accumulation_steps", "2"],
        ["--model", "unet2d", "--block_out_channels", "[32, 64]", "--attention_levels", "[1]"]
        + ["--train_batch_size", "16", "--gradient_checkpointing"],
    ],
    ids=["small", "original 2", "original 8", "emoji 128", "emoji 256", "patches", "accumulation", "unet2d"],
)
def test_the_estimate_is_within_15_percent_of_what_is_allocated(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(ROOT)
    columns = ["--label_column", "null"]  # those of the presets are of other data
    trainer = trainer_of(tmp_path, *arguments, "--dataset", DATA, *columns, "--mixed_precision", "no")
    estimate, real = training_memory(trainer, "no").total, measured(trainer, tmp_path)
    assert 0.85 * real < estimate < 1.15 * real


def test_less_is_kept_in_half_precision_with_checkpointing_and_in_parts(tmp_path):
    settings = {"block_out_channels": [32, 64], "train_batch_size": 16}
    plain = tiny_trainer(tmp_path, **settings)
    whole, half = training_memory(plain, "no"), training_memory(plain, "bf16")
    # of a block's values norms keep 4 bytes in and out, the convolution 2 for 4
    assert 0.6 * whole.activations < half.activations < 0.95 * whole.activations
    assert training_memory(plain, "fp16") == half
    checkpointed = tiny_trainer(tmp_path, **settings, gradient_checkpointing=True)
    assert training_memory(checkpointed, "no").activations < 0.7 * whole.activations
    parts = tiny_trainer(tmp_path, **settings, gradient_accumulation_steps=4)
    assert training_memory(parts, "no").activations < 0.4 * whole.activations


@pytest.mark.slow
def test_flowers_at_256_pixels_train_in_4_gib(tmp_path):
    random = np.random.default_rng(0)
    for name in ("rose", "tulip"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i in range(2):
            pixels = random.integers(0, 256, (300, 260, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "flowers" / name / f"{i}.png")
    preset = ["--config", str(ROOT / "configs" / "flowers102_256.yaml"), "--dataset", str(tmp_path / "flowers")]
    trainer = trainer_of(tmp_path, *preset, "--dataset_split", "train", "--mixed_precision", "no")
    config = trainer.config
    assert (trainer.data.num_channels, config.sample_size) == (3, 256)
    assert config.train_batch_size >= 4 and config.gradient_accumulation_steps == 1
    # the driver and cuDNN's workspaces take some of a card of 4 GiB
    assert all(training_memory(trainer, precision).total < 3 * 2**30 for precision in ("bf16", "fp16"))


def test_the_plan_tells_what_a_gpu_needs(tmp_path):
    line = dict(plan(tiny_trainer(tmp_path, mixed_precision="auto")))["device memory"]
    assert line.startswith("a GPU needs about 0.0")
    assert "(weights 0.00, optimizer 0.00, averages 0.00, activations 0.0" in line
    assert "precision bf16, besides its driver; this process took " in line


def test_memory_is_measured_where_there_is_no_module_resource(monkeypatch):
    """As on Windows, where psutil knows the peak: the modules are loaded once more, without it."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: types.SimpleNamespace(peak_wset=3 * 2**30))
    for name in ("ddpm_hf.training.plan", "ddpm_hf.devices"):
        spec = importlib.util.spec_from_file_location("again", sys.modules[name].__file__)
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
    assert again.peak_memory(torch.device("cpu")) == 3 * 2**30
