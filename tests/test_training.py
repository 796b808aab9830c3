"""Training: the losses, the schedule, and a run that is killed and resumes to the bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import ROOT, tiny_unet
from safetensors.torch import load_file

from ddpm_hf.config import build_config
from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.training import Trainer, diffusion_loss, learning_rate_at

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
    "sample_steps": 6,
    "num_samples": 4,
    "num_train_timesteps": 50,
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """A process has one precision; the next test may want another."""
    AcceleratorState._reset_state(True)


def tiny_run(folder, **settings):
    trainer = Trainer(build_config({**TINY, "output_dir": str(folder), **settings}))
    trainer.train()
    return trainer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything a finished run holds: weights, average, optimizer and exported pipeline."""
    (checkpoint,) = [path for path in (folder / "checkpoints").iterdir() if path.name == newest(folder)]
    tensors = {f"unet.{name}": tensor for name, tensor in load_file(checkpoint / "unet.safetensors").items()}
    for where in (checkpoint / "pipeline", folder / "pipeline"):
        for name, tensor in load_file(where / "unet" / "diffusion_pytorch_model.safetensors").items():
            tensors[f"{where.parent.name}.{name}"] = tensor
    for index, state in torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return tensors


def newest(folder: Path) -> str:
    return max((path.name for path in (folder / "checkpoints").iterdir()), key=lambda name: int(name[5:]))


def assert_same_weights(first: Path, second: Path):
    a, b = weights(first), weights(second)
    assert newest(first) == newest(second)
    assert [name.split(".", 1)[1] for name in a] == [name.split(".", 1)[1] for name in b]
    assert all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- the loss


def test_simple_and_weighted_loss_are_the_formulas():
    unet = tiny_unet()
    scheduler = MyDDPMScheduler(20)
    images = torch.rand(6, 1, 8, 8) * 2 - 1

    def loss(kind):
        return diffusion_loss(unet, scheduler, images, None, torch.Generator().manual_seed(3), loss_type=kind)

    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(images.shape, generator=generator)
    t = torch.randint(0, 20, (6,), generator=generator)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 20), 0)[t][:, None, None, None]
    noisy = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * noise
    squared = (noise - unet(noisy, t).sample).square().mean(dim=(1, 2, 3))
    assert loss("simple").item() == pytest.approx(squared.mean().item(), rel=1e-5)
    beta = torch.linspace(1e-4, 0.02, 20)[t]
    weight = beta**2 / (2 * beta * (1 - beta) * (1 - alpha_bar.flatten()))
    assert loss("weighted").item() == pytest.approx((weight * squared).mean().item(), rel=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loss_falls_for_every_prediction_type(prediction_type):
    unet = tiny_unet(residual=True).train()
    scheduler = MyDDPMScheduler(20, prediction_type=prediction_type)
    optimizer = torch.optim.Adam([p for p in unet.parameters() if p.requires_grad], lr=3e-3)
    images = torch.rand(16, 1, 8, 8) * 2 - 1
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = diffusion_loss(unet, scheduler, images, None, torch.Generator().manual_seed(step % 4))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_labels_are_dropped_as_often_as_asked():
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, x, t, labels, return_dict):
            seen.append(labels)
            return (x,)

    images, labels = torch.zeros(2000, 1, 2, 2), torch.zeros(2000, dtype=torch.long)
    for probability in (0.0, 0.3, 1.0):
        diffusion_loss(
            Recorder(), MyDDPMScheduler(), images, labels, torch.Generator().manual_seed(0),
            class_dropout_prob=probability, null_label=5,
        )  # fmt: skip
        assert (seen[-1] == 5).float().mean().item() == pytest.approx(probability, abs=0.04)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_learning_rate(kind):
    config = build_config({**TINY, "learning_rate": 0.5, "lr_warmup_steps": 10, "lr_scheduler": kind})
    rates = [learning_rate_at(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[10] == 0.5
    assert rates[60] == pytest.approx(0.5 if kind == "constant" else 0.25)
    assert rates[109] < (0.51 if kind == "constant" else 0.006)


# ---- a run


def test_a_run_writes_what_it_promises(tmp_path):
    trainer = tiny_run(tmp_path / "run")
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "checkpoints",
        "metrics.jsonl",
        "samples",
        "pipeline",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-8", "step-12"}
    assert {path.name for path in (run / "samples").iterdir()} == {"step-0000006.png", "step-0000012.png"}
    lines = metrics(run)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert lines[-1]["images_seen"] == 96
    assert {"loss", "lr", "images_per_second", "epoch"} <= set(lines[0])

    exported = load_pipeline(run)
    average = dict(zip((name for name, _ in trainer.state.unet.named_parameters()), trainer.state.ema.shadow_params))
    assert all(torch.equal(parameter, average[name]) for name, parameter in exported.unet.named_parameters())
    raw = dict(trainer.state.unet.named_parameters())
    assert not torch.equal(exported.unet.out_conv.weight, raw["out_conv.weight"])
    assert exported.config.id2label["8"] == "Bag"
    image = exported(1, 3, num_inference_steps=2, seed=0).images[0]
    assert (image.mode, image.size) == ("L", (28, 28))


def test_the_average_is_the_recurrence(tmp_path):
    """e <- d e + (1 - d) w with d = 1 - (1 + step)^-power, written out."""
    trainer = Trainer(build_config({**TINY, "output_dir": str(tmp_path), "ema_power": 0.6}))
    name, parameter = next(iter((n, p) for n, p in trainer.state.unet.named_parameters() if n == "out_conv.weight"))
    expected = parameter.detach().clone()
    for step in range(5):
        trainer._train_step()
        decay = 1 - (1 + step) ** -0.6
        expected = decay * expected + (1 - decay) * parameter.detach()
    index = [n for n, _ in trainer.state.unet.named_parameters()].index(name)
    assert (trainer.state.ema.shadow_params[index] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradient_is_the_batchs(tmp_path, parts, monkeypatch):
    """With the loss a plain function of the images, the parts' gradients must add up to that of the whole batch."""
    import ddpm_hf.training as training

    def plain_loss(unet, scheduler, images, labels, generator, **_):
        return unet(images, 3, labels, return_dict=False)[0].square().mean()

    monkeypatch.setattr(training, "diffusion_loss", plain_loss)
    steps = []
    for count in (1, parts):
        settings = {"output_dir": str(tmp_path / str(count)), "gradient_accumulation_steps": count}
        trainer = Trainer(build_config({**TINY, **settings, "mixed_precision": "no", "max_grad_norm": 1e9}))
        gradients = []
        trainer.state.optimizer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, into=gradients: into.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            )
        )
        loss = trainer._train_step()
        steps.append((loss, gradients))
    (loss, whole), (parts_loss, added) = steps
    assert parts_loss.item() == pytest.approx(loss.item(), rel=1e-4)
    assert max((a - b).abs().max() for a, b in zip(whole, added, strict=True)) < 1e-5


def test_resuming_is_bit_equal_whatever_the_intervals(tmp_path):
    tiny_run(tmp_path / "whole", dropout=0.1)
    tiny_run(tmp_path / "broken", dropout=0.1)
    # as if the process had died after step 8
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-12")
    shutil.rmtree(tmp_path / "broken" / "pipeline")
    tiny_run(tmp_path / "broken", dropout=0.1, checkpointing_steps=3)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    keep = ("step", "loss", "lr", "images_seen")
    before, after = metrics(tmp_path / "whole"), metrics(tmp_path / "broken")
    assert before[-1]["lr"] == after[-1]["lr"]
    assert [line["step"] for line in after] == sorted({line["step"] for line in after})
    assert [[line[key] for key in keep] for line in before[:2]] == [[line[key] for key in keep] for line in after[:2]]


def test_a_finished_run_is_only_exported_again(tmp_path):
    tiny_run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    tiny_run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"max_images": 59}, {"seed": 1}])
def test_resuming_with_other_settings_is_refused(tmp_path, change):
    tiny_run(tmp_path, max_train_steps=4)
    name, value = next(iter(change.items()))
    with pytest.raises(UserError, match=f"holds a run with {name}=.*, not {value}; use the same settings"):
        tiny_run(tmp_path, max_train_steps=4, **change)


@pytest.mark.parametrize(
    "settings",
    [
        {"block_out_channels": [64]},
        {"norm_num_groups": 7},
        {"attention_levels": [9]},
        {"time_embed_dim": 7},
        {"block_out_channels": [0, 8]},
        {"num_attention_heads": 3, "attention_levels": [0]},
        {"train_batch_size": 9, "gradient_accumulation_steps": 2},
        {"mixed_precision": "fp16"},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_leave_nothing_behind(tmp_path, settings):
    with pytest.raises(UserError) as error:
        tiny_run(tmp_path / "run", **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "no readable config.yaml"),
        (lambda run: (run / "config.yaml").write_text("[1"), "no readable config.yaml"),
        (lambda run: (run / "checkpoints/step-4/state.json").unlink(), "step-4 cannot be read .*delete it to resume"),
        (lambda run: (run / "checkpoints/step-4/unet.safetensors").write_bytes(b"x" * 50), "step-4 cannot be read"),
        (lambda run: (run / "checkpoints/step-4/optimizer.pt").write_bytes(b"x"), "step-4 cannot be read"),
        (
            lambda run: (run / "checkpoints/step-4/state.json").write_text(
                '{"step": 4, "num_processes": 2, "scaler": null}'
            ),
            "is of a run of 2 process",
        ),
    ],
)
def test_a_damaged_run_is_one_line(tmp_path, damage, message):
    tiny_run(tmp_path, max_train_steps=4)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        tiny_run(tmp_path, max_train_steps=4)
    assert "\n" not in str(error.value)


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path):
    tiny_run(tmp_path, max_train_steps=4)
    (tmp_path / "checkpoints" / "step-backup").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{}\n{"step": 3}\n{"ste')
    tiny_run(tmp_path, max_train_steps=4)
    assert (tmp_path / "checkpoints" / "step-backup").exists()
    assert load_pipeline(tmp_path / "checkpoints" / "..").num_classes == 10


# ---- the command, in processes of its own

SMOKE = ["--config", "configs/smoke.yaml", "--max_train_steps", "40", "--checkpointing_steps", "10"]
SMOKE += ["--sample_steps", "20", "--num_samples", "4", "--logging_steps", "5"]


def train_command(*arguments, launcher=(), **environment):
    launcher = launcher or (sys.executable,)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [*launcher, "train.py", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_killed_half_way_and_resumed_by_the_same_command(tmp_path):
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    process = train_command(*SMOKE, "--output_dir", whole)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output

    process = train_command(*SMOKE, "--output_dir", broken)
    deadline = time.monotonic() + 200
    while not (tmp_path / "broken/checkpoints/step-20").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "broken/pipeline").exists()

    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    process = train_command(*SMOKE, "--output_dir", broken, launcher=launcher)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert "resuming at step" in output
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_two_processes_killed_and_resumed(tmp_path):
    """Two ranks over gloo on the CPU; a run killed on both resumes to the same weights."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    arguments = [*SMOKE, "--max_train_steps", "12", "--checkpointing_steps", "4", "--sample_steps", "12"]

    def start(folder):
        return train_command(*arguments, "--output_dir", str(folder), launcher=launcher, ACCELERATE_USE_CPU="1")

    process = start(tmp_path / "whole")
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert "2 process(es)" in output

    process = start(tmp_path / "broken")
    deadline = time.monotonic() + 200
    while not (tmp_path / "broken/checkpoints/step-4").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    ranks = psutil.Process(process.pid).children(recursive=True)  # they have sessions of their own
    for victim in [psutil.Process(process.pid), *ranks]:
        victim.kill()
    process.communicate(timeout=60)
    process = start(tmp_path / "broken")
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "error: unknown setting '--learning_rat'; did you mean 'learning_rate'?"),
        (["--dataset", "nowhere/to/be/found"], "error: data set 'nowhere/to/be/found' does not exist"),
        (
            ["--train_batch_size", "9", "--gradient_accumulation_steps", "2"],
            "error: train_batch_size=9 must be a multiple",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, arguments, message):
    process = train_command(*SMOKE, "--output_dir", str(tmp_path / "run"), *arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    (line,) = output.strip().splitlines()
    assert line.startswith(message)
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_help_lists_every_setting():
    process = train_command("--help")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "--ema_max_decay" in output
    assert "largest decay of the weight average" in " ".join(output.split())
