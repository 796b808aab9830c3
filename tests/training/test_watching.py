"""What one sees of a run: validation, pictures, trackers, the plan, the report."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Moments, moments_file
from PIL import Image
from tiny_runs import metrics, newest, tiny_run, tiny_trainer

from ddpm_hf.__main__ import main
from ddpm_hf.data import mixed_seed
from ddpm_hf.errors import UserError
from ddpm_hf.figures import make_grid
from ddpm_hf.hub import load_pipeline
from ddpm_hf.training.plan import forward_gflop, plan
from ddpm_hf.training.resuming import refusal
from ddpm_hf.training.validation import BATCH, BUCKETS, Validation


def nothing():
    """A check that never stops."""


# ---- validation


def test_the_validation_loss_is_the_mean_over_pairs(tmp_path):
    """Against the loop written out, in float32."""
    trainer = tiny_trainer(tmp_path, mixed_precision="no", max_images=200)
    unet, scheduler = trainer.state.averaged_unet(), trainer.scheduler
    loss, means = trainer.monitors.validation(unet, True, nothing)
    data, pairs = trainer.validation_data, trainer.monitors.validation.num_pairs
    errors = []
    for start in range(0, pairs, BATCH):
        indices = np.arange(start, min(start + BATCH, pairs))
        x0, labels = data.batch(indices % len(data))
        seed = mixed_seed(trainer.config.seed, start // BATCH, len(indices))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
        t = torch.from_numpy(trainer.monitors.validation.timesteps[indices])
        with torch.no_grad():
            prediction = unet(scheduler.add_noise(x0, noise, t), t, labels).sample
        errors.append((prediction - noise).square().mean((1, 2, 3)))
    errors = torch.cat(errors)
    assert loss == pytest.approx(errors.mean().item(), rel=1e-5)
    buckets = trainer.monitors.validation.timesteps * BUCKETS // len(scheduler)
    assert means == pytest.approx([errors[buckets == i].mean().item() for i in range(BUCKETS)], rel=1e-5)


@pytest.mark.parametrize(("images", "pairs"), [(500, 50), (1000, 50)])
def test_timesteps_are_spread_evenly(tmp_path, images, pairs):
    trainer = tiny_trainer(tmp_path, max_images=images, num_train_timesteps=1000)
    timesteps = trainer.monitors.validation.timesteps
    assert len(timesteps) == max(len(trainer.validation_data), pairs)
    counts = np.bincount(timesteps * BUCKETS // 1000)
    assert counts.min() == counts.max()
    again = Validation(trainer.validation_data, trainer.scheduler, 0, trainer.accelerator)
    assert np.array_equal(again.timesteps, timesteps)


def test_the_validation_loss_falls_and_no_image_of_it_is_trained_on(tmp_path):
    trainer = tiny_run(tmp_path, max_train_steps=40, learning_rate=3e-3, residual=True, max_images=None)
    losses = [line["validation_loss"] for line in metrics(tmp_path) if "validation_loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert len(trainer.data) + len(trainer.validation_data) == 950


def test_without_validation(tmp_path):
    trainer = tiny_run(tmp_path, validation_split=None)
    assert trainer.monitors.validation is None
    assert len(trainer.data) == 60
    assert not any("validation_loss" in line for line in metrics(tmp_path))


def test_a_validation_loss_that_is_not_finite_is_null(tmp_path):
    """JSON has no NaN: neither for the loss nor inside the list of its ranges."""
    trainer = tiny_trainer(tmp_path, max_train_steps=2, logging_steps=1, checkpointing_steps=2, sample_steps=2)
    trainer.monitors.validation = lambda *_: (math.inf, [0.5, math.nan, None, math.inf])
    trainer.train()
    line = metrics(tmp_path)[-1]
    assert (line["validation_loss"], line["validation_loss_by_timestep"]) == (None, [0.5, None, None, None])
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()


# ---- pictures


def test_grids_are_from_the_same_noise(tmp_path):
    """At a learning rate of almost nothing, the pictures of two steps are the same."""
    tiny_run(tmp_path, learning_rate=1e-12)
    first, second = (np.asarray(Image.open(path)) for path in sorted((tmp_path / "samples").iterdir()))
    assert np.abs(first.astype(int) - second).max() <= 1
    assert first.std() > 20


@pytest.mark.parametrize(("conditional", "model"), [(True, "my_unet"), (False, "my_unet"), (False, "unet2d")])
def test_the_grid_of_a_run_is_what_its_model_makes(tmp_path, real_grids, conditional, model):
    """The last grid, the exported pipeline without arguments, and the command sample: the same pictures."""
    network = {"norm_num_groups": 4, "layers_per_block": 1} if model == "unet2d" else {}
    tiny_run(tmp_path, mixed_precision="no", class_conditional=conditional, model=model, **network)
    grid = np.asarray(Image.open(sorted((tmp_path / "samples").iterdir())[-1])).astype(int)
    options = ["--dtype", "float32", "--num-images", "4", "--output", str(tmp_path / "four.npz")]
    assert main(["sample", str(tmp_path / "pipeline"), *options]) == 0
    images = np.load(tmp_path / "four.npz")["images"]
    if model == "my_unet":
        pipeline = load_pipeline(tmp_path)
        assert pipeline.config.num_inference_steps == 20 and pipeline.scheduler.config.algorithm_type is not None
        expected = (2.0, [0, 20]) if conditional else (1.0, None)
        assert (pipeline.config.guidance_scale, pipeline.config.guidance_interval) == expected
        own = pipeline(4, seed=0).images
        assert np.abs(np.stack([np.asarray(image) for image in own]).astype(int) - images).max() <= 1
    images = images if model == "my_unet" else images[:, 2:30, 2:30]  # diffusers' own keeps what was padded
    shown = np.asarray(make_grid([Image.fromarray(image) for image in images])).astype(int)
    assert grid.shape == shown.shape and np.abs(grid - shown).max() <= 1


# ---- the score


@pytest.fixture(params=["TorchScript", "torch.export"])
def features(tmp_path, request):
    if request.param == "TorchScript":
        return moments_file(tmp_path / "features.pt")
    path = str(tmp_path / "features.pt2")
    shapes = {"images": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(Moments(), (torch.zeros(2, 1, 28, 28),), dynamic_shapes=shapes), path)
    return path


def test_the_score_is_the_frechet_distance_of_the_features(tmp_path, features):
    """Against Heusel et al.'s formula in float64, on the images of the same seeds."""
    settings = {"score_features": features, "score_steps": 6, "score_images": 12, "max_images": 300}
    trainer = tiny_run(tmp_path / "run", mixed_precision="no", **settings)
    distances = [line["frechet_distance"] for line in metrics(tmp_path / "run") if "frechet_distance" in line]
    assert len(distances) == 2
    assert distances[0] != distances[1]

    pipeline = trainer.averaged_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    fake = pipeline(12, seed=0, output_type="pt").images
    real, _ = trainer.validation_data.batch(np.linspace(0, len(trainer.validation_data) - 1, 12).astype(int))
    eight_bit = [(images * 255).round() / 255 for images in (fake, pipeline.postprocess(real, "pt"))]
    a, b = (Moments()(images).double().numpy() for images in eight_bit)
    product = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))
    trace = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.sqrt(product.clip(0)).sum()
    assert distances[1] == pytest.approx(((a.mean(0) - b.mean(0)) ** 2).sum() + trace, rel=1e-3)


def test_a_score_of_a_single_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="score_features needs at least 2 real images"):
        tiny_trainer(tmp_path, score_features=moments_file(tmp_path / "f.pt"), validation_images=1)


def test_features_that_cannot_be_used_are_one_line(tmp_path):
    (tmp_path / "no.pt").write_bytes(b"no network")
    torch.jit.script(torch.nn.Flatten(0)).save(str(tmp_path / "flat.pt"))
    for name, message in [("none.pt", "not found"), ("no.pt", "cannot be loaded"), ("flat.pt", "returns shape")]:
        with pytest.raises(UserError, match=message) as error:
            tiny_trainer(tmp_path / "run", score_features=str(tmp_path / name))
        assert "\n" not in str(error.value)


# ---- trackers


def test_tensorboard_has_the_numbers_and_the_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_run(tmp_path, report_to="tensorboard")
    (folder,) = {path.parent for path in tmp_path.rglob("events.out*") if path.parent.name == "ddpm_hf"}
    events = EventAccumulator(str(folder), size_guidance={"images": 10}).Reload()
    seen = {event.step: event.value for event in events.Scalars("loss")}
    assert seen == pytest.approx({line["step"]: line["loss"] for line in metrics(tmp_path)}, rel=1e-5)
    validations = [event.value for event in events.Scalars("validation_loss")]
    assert validations == pytest.approx([line["validation_loss"] for line in metrics(tmp_path)[1::2]], rel=1e-5)
    assert [event.step for event in events.Images("samples")] == [6, 12]
    assert events.Images("samples")[0].encoded_image_string.startswith(b"\x89PNG")


def test_trackio_is_the_default_where_it_is_installed(tmp_path, monkeypatch):
    import sqlite3

    import trackio.utils

    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    trainer = tiny_run(tmp_path / "run", report_to="auto")
    assert trainer.trackers.names == ["trackio"]
    from trackio.sqlite_storage import SQLiteStorage

    path = SQLiteStorage.get_project_db_path("ddpm_hf")
    rows = sqlite3.connect(path).execute("select run_name, step, metrics from metrics").fetchall()
    mine = [row for row in rows if row[0].endswith("-".join(tmp_path.parts[-1:]) + "-run")]
    assert {row[1] for row in mine} == {3, 6, 9, 12}
    assert any("validation_loss" in str(row[2]) for row in mine)
    assert any("trackio.image" in str(row[2]) for row in mine)


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker

    def broken(*_, **__):
        raise RuntimeError("the tracker is gone")

    monkeypatch.setattr(TensorBoardTracker, "log", broken)
    trainer = tiny_run(tmp_path, report_to="tensorboard")
    assert trainer.state.step == 12
    output = capsys.readouterr().out
    assert output.count("warning: tensorboard failed and is left out: the tracker is gone") == 1


# ---- the plan


def test_the_plan_says_what_it_would_do_and_writes_nothing(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", max_images=None)
    lines = dict(plan(trainer))
    assert not (tmp_path / "run").exists()
    assert re.fullmatch(r"903 images of 1x32x32 of train in 10 classes \(\d+ to \d+ images each\)", lines["images"])
    assert lines["network"] == f"MyUNet, {trainer.num_parameters:,} parameters"
    assert lines["steps"] == "12 of 8 images, 0.106 epochs; few: pictures take some 2,000"
    assert lines["learning rate"] == "0.001, 2 steps of warm-up, then cosine"
    assert lines["pictures made"] == "28 x 28, resize auto"
    assert float(lines["speed"].split()[0].replace(",", "")) > 1
    assert lines["  checkpoints"] == f"{tmp_path / 'run' / 'checkpoints'}, every 4 steps"
    assert set(lines) >= {
        "data set",
        "compute",
        "time to finish",
        "device memory",
        "  metrics",
        "  pictures",
        "  pipeline",
    }


def test_the_plan_says_what_would_be_refused(tmp_path, finished_run):
    finished_run(tmp_path / "run", max_train_steps=4)
    lines = dict(plan(tiny_trainer(tmp_path / "run", max_train_steps=4)))
    assert "  resuming" not in lines
    lines = dict(plan(tiny_trainer(tmp_path / "run", max_train_steps=4, seed=3)))
    assert lines["  resuming"].startswith(f"would be refused: {tmp_path / 'run'} holds a run with seed=0, not 3.")
    assert lines["steps"].startswith("4 of 8 images, ")
    state = newest(tmp_path / "run") / "state.json"
    config = tiny_trainer(tmp_path / "run", max_train_steps=4).config
    assert refusal(config, tmp_path / "run", "other images", 1).endswith("goes on with the new ones.")
    state.write_text("{}")
    assert "state.json has 2 bytes" in refusal(config, tmp_path / "run", "", 1)


def test_the_flops_of_a_convolution_are_counted(tmp_path):
    """A network of one 3x3 convolution on 32x32: 2 * 9 * C_in * C_out * 32 * 32."""
    trainer = tiny_trainer(tmp_path, class_conditional=False)

    class OneConvolution(torch.nn.Conv2d):
        device = torch.device("cpu")
        config = SimpleNamespace()

        def forward(self, x, timestep, labels):
            return super().forward(x)

    trainer.state.unet = OneConvolution(1, 7, 3, padding=1)
    assert forward_gflop(trainer) == pytest.approx(2 * 9 * 7 * 32 * 32 / 1e9)


# ---- the report


def test_the_report_is_written_at_the_end(tmp_path, real_report):
    tiny_run(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "57" in page
    assert "Samples at step 12" in page
    assert Image.open(tmp_path / "loss.png").width > 500
    assert not math.isnan(metrics(tmp_path)[-1]["validation_loss"])
