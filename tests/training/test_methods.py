"""Every method is a setting that trains, and what it makes can be loaded."""

import json
import math
import shutil
import subprocess
import sys
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers import ROOT
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import DATA, TINY, assert_same_weights, metrics, newest, tiny_run, tiny_trainer

from ddpm_hf.__main__ import main as command
from ddpm_hf.config import TrainConfig
from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline
from ddpm_hf.training import exported_pipeline, load_weights_of
from ddpm_hf.training.facts import facts

METHODS = [
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    {"prediction_type": "sample"},
    {"loss_type": "weighted"},
    {"loss_type": "weighted", "variance_type": "fixed_small"},
    {"lr_scheduler": "linear", "adam_weight_decay": 0.1},
    {"lr_scheduler": "constant", "ema_max_decay": 0.0},
    {"mixed_precision": "bf16"},
    {"class_conditional": False, "horizontal_flip": True},
    {"class_dropout_prob": 1.0},
    {"resize": "area"},
    {"resize": "crop", "image_mode": "RGB"},
]


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_a_run_with_it_learns_and_loads(tmp_path, settings):
    rare = dict.fromkeys(("validation_steps", "sample_steps", "checkpointing_steps"), 30)
    tiny_run(tmp_path, max_train_steps=30, learning_rate=4e-3, residual=True, **rare, **settings)
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert losses[-1] < losses[0]
    pipeline = load_pipeline(tmp_path)
    image = pipeline(1, num_inference_steps=2, seed=0).images[0]
    assert image.mode == settings.get("image_mode", "L")
    assert image.size == ((32, 32) if settings.get("resize") == "crop" else (28, 28))


def choices() -> list:
    """The values of the settings that have a list of them, without those of TINY, of METHODS and the defaults.

    These are in the other runs. Compilation is marked slow.
    """
    found = []
    for name, field in TrainConfig.model_fields.items():
        for value in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
            if {name: value} in METHODS or value == TINY.get(name, field.default):
                continue
            marks = [pytest.mark.slow] if name == "torch_compile" else []
            found.append(pytest.param(name, value, marks=marks, id=f"{name}={value}"))
    return found


# what a value needs of other settings
NEEDS = {
    ("model", "unet2d"): {"class_conditional": False},
    ("resize", "crop"): {"sample_size": 16},
    ("resize", "area"): {"sample_size": 16},
}


@pytest.mark.parametrize(("name", "value"), choices())
def test_every_choice_of_every_setting_trains_and_samples(tmp_path, name, value):
    """No value that is offered has never been run; a new one is run here by being offered."""
    settings = {name: value, "max_train_steps": 4, "validation_split": None, **NEEDS.get((name, value), {})}
    if (name, value) == ("mixed_precision", "fp16") and not torch.accelerator.is_available():
        with pytest.raises(UserError, match="mixed_precision fp16 needs a GPU"):
            tiny_trainer(tmp_path, **settings)
        return
    tiny_run(tmp_path, **settings)
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path))
    (image,) = load_pipeline(tmp_path)(1, num_inference_steps=2, seed=0, output_type="pt").images
    assert torch.isfinite(image).all() and image.std() > 0


def test_all_choices_are_among_them():
    assert {"resume=force", "model=unet2d", "loss_type=min_snr", "torch_compile=max-autotune"} <= {
        choice.id for choice in choices()
    }


@pytest.mark.parametrize("model", ["my_unet", "unet2d"])
def test_zero_terminal_snr_is_sampled_from_the_last_timestep(tmp_path, model):
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "class_conditional": False}
    trainer = tiny_trainer(tmp_path, model=model, **settings)
    scheduler = exported_pipeline(trainer.config, trainer.data, trainer.state.unet).scheduler
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 49
    assert scheduler.alphas_cumprod[49] < 1e-6


def test_gradient_checkpointing_changes_nothing(tmp_path):
    for value in (False, True):
        tiny_run(tmp_path / str(value), gradient_checkpointing=value, dropout=0.1)
    assert_same_weights(tmp_path / "False", tmp_path / "True")


def test_no_average_means_the_weights_themselves(tmp_path):
    trainer = tiny_run(tmp_path, ema_max_decay=0.0, max_train_steps=4)
    exported = load_pipeline(tmp_path).unet.state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in trainer.state.unet.state_dict().items())


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(tmp_path):
    for mode in ("no", "default"):
        tiny_run(tmp_path / mode, torch_compile=mode, mixed_precision="no", max_train_steps=6)
    plain, compiled = (metrics(tmp_path / mode)[-1]["loss"] for mode in ("no", "default"))
    assert compiled == pytest.approx(plain, rel=1e-3)
    names = list(load_file(newest(tmp_path / "default") / "unet.safetensors"))
    assert not [name for name in names if "_orig_mod" in name]
    load_pipeline(tmp_path / "default")


# ---- averages


def test_every_average_can_be_exported(tmp_path, capsys):
    trainer = tiny_run(tmp_path / "run", ema_max_decay=[0.999, 0.5])
    names = [name for name, _ in trainer.state.unet.named_parameters()]
    for weights in ("0.999", "0.5", "raw"):
        output = str(tmp_path / weights)
        assert command(["export", str(tmp_path / "run"), "--weights", weights, "--output", output]) == 0
        exported = load_pipeline(output).unet.state_dict()
        if weights == "raw":
            expected = trainer.state.unet.state_dict()
        else:
            expected = dict(zip(names, trainer.state.averages[weights].shadow_params))
        assert all(torch.equal(exported[name], expected[name]) for name in names)
    digests = {load_pipeline(tmp_path / name).unet.out_conv.weight.sum().item() for name in ("0.999", "0.5", "raw")}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [("0.9", "its averages are of decay 0.999, 0.5, besides 'raw'"), ("x", "has no weights 'x'")],
)
def test_an_average_that_is_not_there(tmp_path, finished_run, weights, message):
    finished_run(tmp_path, ema_max_decay=[0.999, 0.5], max_train_steps=4)
    with pytest.raises(UserError, match=message):
        load_weights_of(tmp_path, weights)
    with pytest.raises(UserError, match="is not the output_dir of a run"):
        load_weights_of(tmp_path / "samples", weights)


# ---- diffusers' own network

STOCK = {"model": "unet2d", "class_conditional": False, "layers_per_block": 1, "attention_levels": [1]}
STOCK |= {"num_attention_heads": 2}


@pytest.mark.slow
def test_a_stock_run_loads_in_plain_diffusers(tmp_path):
    """No remote code, no ddpm_hf, no python file in the repository: only diffusers, in a clean process."""
    trainer = tiny_run(tmp_path, **STOCK)
    assert type(trainer.state.unet).__name__ == "UNet2DModel"
    pipeline = tmp_path / "pipeline"
    assert not list(pipeline.rglob("*.py"))
    script = (
        "import sys\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipeline = DiffusionPipeline.from_pretrained({str(pipeline)!r})\n"
        "assert type(pipeline).__module__.startswith('diffusers.'), type(pipeline)\n"
        "assert 'ddpm_hf' not in sys.modules\n"
        "image = pipeline(batch_size=1, num_inference_steps=2).images[0]\n"
        "print(type(pipeline.unet).__name__, type(pipeline.scheduler).__name__, image.size)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "UNet2DModel DDPMScheduler (32, 32)"
    ours = load_pipeline(tmp_path)
    assert ours(1, num_inference_steps=2, seed=0).images[0].size == (32, 32)


def test_a_stock_run_is_exported_as_a_stock_pipeline(tmp_path):
    tiny_run(tmp_path / "run", **STOCK, max_train_steps=4)
    assert command(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--half"]) == 0
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert not list((tmp_path / "out").rglob("*.py"))


def test_the_scheduler_of_a_stock_export_is_good_with_few_steps(tmp_path):
    """Of a perfect network for one gray image, a tenth of the steps leaves no grain; large variance does."""
    tiny_run(tmp_path / "run", **STOCK, max_train_steps=4, num_train_timesteps=1000)
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "run" / "pipeline" / "scheduler")
    grain = {}
    for variance in (scheduler.config.variance_type, "fixed_large"):
        few = DDPMScheduler.from_config(scheduler.config, variance_type=variance)
        few.set_timesteps(20)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 1, 8, 8, generator=generator)
        for t in few.timesteps:
            alpha_bar = few.alphas_cumprod[t]
            noise = (x - alpha_bar.sqrt() * 0.1) / (1 - alpha_bar).sqrt()
            x = few.step(noise + 0.1 * torch.randn(x.shape, generator=generator), t, x, generator=generator).prev_sample
        grain[variance] = (x - 0.1).std().item()
    assert few.timesteps[0] == 999 and scheduler.config.variance_type == "fixed_small"
    assert grain["fixed_small"] < 0.5 * grain["fixed_large"]


def test_a_stock_network_has_attention_where_asked(tmp_path):
    unet = tiny_trainer(tmp_path, **STOCK).state.unet
    assert list(unet.config.down_block_types) == ["DownBlock2D", "AttnDownBlock2D"]
    assert list(unet.config.up_block_types) == ["AttnUpBlock2D", "UpBlock2D"]
    assert unet.down_blocks[1].attentions[0].heads == 2


# ---- several data sets, and streams


def test_gray_and_color_sets_are_mixed(tmp_path):
    (tmp_path / "color").mkdir()
    for i in range(30):
        Image.new("RGB", (40, 40), (8 * i, 20, 100)).save(tmp_path / "color" / f"{i}.png")
    sources = [{"dataset": DATA, "weight": 1}, {"dataset": str(tmp_path / "color"), "weight": 3, "name": "flat"}]
    trainer = tiny_run(tmp_path / "run", dataset=None, datasets=sources, max_images=60)
    assert (trainer.data.num_channels, trainer.data.num_classes) == (3, 11)
    counts = {0: 0, 1: 0}
    for step in range(30):
        for index in trainer.batches.share_of(8 * step):
            counts[int(index >= trainer.data.sizes[0])] += 1
    assert counts[1] / (counts[0] + counts[1]) == pytest.approx(0.75, abs=0.02)
    pipeline = load_pipeline(tmp_path / "run")
    assert pipeline.config.id2label["10"] == "flat"
    assert pipeline.config.id2label["8"] == "Bag"
    assert pipeline(1, 10, num_inference_steps=2, seed=0).images[0].mode == "RGB"


def test_a_streamed_run_resumes_to_the_bit(tmp_path):
    settings = {"streaming": True, "shuffle_buffer_size": 16}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trainer = tiny_run(whole, **settings)
    assert json.loads((newest(whole) / "state.json").read_text())["streams"] == [trainer.batches.state()]
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step-12")
    shutil.rmtree(broken / "pipeline")
    tiny_run(broken, **settings)
    assert_same_weights(whole, broken)


@pytest.mark.parametrize("memory", [1, 1e-9], ids=["in memory", "in a file"])
def test_a_run_on_random_crops_resumes_to_the_bit(tmp_path, monkeypatch, memory):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(40):
        Image.fromarray(pixels.integers(0, 256, (12, 30 + i), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    settings = {"dataset": str(tmp_path / "images"), "class_conditional": False, "sample_size": 8, "max_images": None}
    settings |= {"resize": "crop", "random_crop": True, "max_memory_gb": memory}
    tiny_run(tmp_path / "whole", **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-12")
    shutil.rmtree(tmp_path / "broken" / "pipeline")
    tiny_run(tmp_path / "broken", **settings)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    with pytest.raises(UserError, match="holds a run with random_crop=True, not False"):
        tiny_run(tmp_path / "broken", **{**settings, "random_crop": False})


def test_the_data_side_of_a_run_is_reported(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(30):
        Image.new("L", (8, 8), 8 * i).save(tmp_path / "images" / f"{i:02}.png")
    (tmp_path / "images" / "07.png").write_bytes(b"not a picture")
    settings = {"dataset": str(tmp_path / "images"), "class_conditional": False, "sample_size": 8}
    with pytest.raises(UserError, match=r"row 7 .*07\.png"):
        tiny_run(tmp_path / "run", **settings)
    trainer = tiny_run(tmp_path / "run", **settings, on_bad_image="skip")
    assert "; left out: 1 bad image (first: row 7 of data set " in capsys.readouterr().out
    assert "07.png" in facts(trainer).described()["Bad images skipped"]


def test_the_repository_has_what_the_tests_train_on():
    assert (ROOT / "data" / "fashion_mnist_tiny.parquet").exists()
