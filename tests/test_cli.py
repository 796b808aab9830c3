"""``python -m ddpm_hf``: every command and output, and one line for every mistake."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, tiny_pipeline
from PIL import Image

from ddpm_hf.__main__ import main
from ddpm_hf.hub import export_pipeline, load_pipeline

NAMES = {"0": "shirt", "1": "shoe", "2": "bag"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    pipeline = tiny_pipeline(num_class_embeds=3, id2label=NAMES, output_size=(6, 6))
    return str(export_pipeline(tmp_path_factory.mktemp("cli") / "model", pipeline))


@pytest.fixture(scope="module")
def color_model(tmp_path_factory) -> str:
    return str(export_pipeline(tmp_path_factory.mktemp("cli") / "color", tiny_pipeline(in_channels=3, out_channels=3)))


def sample(model, output, *arguments) -> int:
    return main(["sample", model, "--steps", "3", "--num-images", "5", "--output", str(output), *arguments])


def test_a_grid(model, tmp_path, capsys):
    assert sample(model, tmp_path / "x.png") == 0
    image = Image.open(tmp_path / "x.png")
    assert (image.mode, image.size) == ("L", (3 * 12 + 2 * 2, 2 * 12 + 2))
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert "5 pictures" in capsys.readouterr().out


def test_a_grid_has_a_column_for_every_class_where_that_comes_out_even(model, tmp_path):
    assert sample(model, tmp_path / "x.png", "--num-images", "12") == 0
    assert Image.open(tmp_path / "x.png").size == (3 * 12 + 2 * 2, 4 * 12 + 3 * 2)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_an_animation_of_every_step(model, color_model, tmp_path, suffix):
    for name, which in (("gray", model), ("color", color_model)):
        file = tmp_path / f"{name}{suffix}"
        assert sample(which, file) == 0
        if suffix == ".mp4":
            av = pytest.importorskip("av")
            with av.open(str(file)) as video:
                frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            assert len(frames) >= 3
            assert np.abs(frames[0].astype(int) - frames[-1]).max() > 20
        else:
            assert Image.open(file).n_frames == 3


def test_arrays(model, color_model, tmp_path):
    assert sample(model, tmp_path / "gray.npz", "--seed", "4") == 0
    arrays = np.load(tmp_path / "gray.npz")
    assert (arrays["images"].shape, arrays["images"].dtype) == ((5, 6, 6), np.uint8)
    assert arrays["labels"].tolist() == [1, 2, 0, 1, 2]  # seeds 4 to 8, round and round
    assert sample(color_model, tmp_path / "color.npz") == 0
    arrays = np.load(tmp_path / "color.npz")
    assert arrays["images"].shape == (5, 8, 8, 3)
    assert "labels" not in arrays


def test_a_picture_depends_on_its_seed_alone(model, tmp_path):
    assert sample(model, tmp_path / "all.npz", "--num-images", "9", "--seed", "2") == 0
    assert sample(model, tmp_path / "parts.npz", "--num-images", "9", "--seed", "2", "--batch-size", "2") == 0
    assert sample(model, tmp_path / "one.npz", "--num-images", "1", "--seed", "7") == 0
    whole, parts, one = (np.load(tmp_path / f"{name}.npz") for name in ("all", "parts", "one"))
    assert np.abs(whole["images"].astype(int) - parts["images"]).max() <= 1
    assert np.abs(whole["images"][5].astype(int) - one["images"][0]).max() <= 1
    assert whole["labels"][5] == one["labels"][0]


def test_labels_by_name_and_number(model, tmp_path):
    assert sample(model, tmp_path / "x.npz", "--labels", "Bag, 0") == 0
    assert np.load(tmp_path / "x.npz")["labels"].tolist() == [2, 0, 2, 0, 2]


@pytest.mark.parametrize("scheduler", ["dpm", "dpm-sde", "unipc", "ddim", "euler", "heun", "ddpm", "ddpm-small"])
def test_every_scheduler(model, tmp_path, scheduler):
    assert sample(model, tmp_path / "x.png", "--scheduler", scheduler, "--guidance-scale", "2") == 0


def test_export_halves_the_weights(model, tmp_path):
    assert main(["export", model, "--output", str(tmp_path / "half"), "--half"]) == 0
    assert load_pipeline(tmp_path / "half").config.id2label == NAMES


def test_push(hub, model, capsys):
    assert main(["push", model, "--repo-id", "alice/cli", "--private"]) == 0
    assert hub.repos["model", "alice/cli"].private
    assert "alice/cli" in capsys.readouterr().out
    assert main(["push", model, "--repo-id", "bob/cli"]) == 2
    assert capsys.readouterr().err.startswith("error: pushing to bob/cli failed: the Hub refuses this (403")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheduler", "dmp"], "unknown scheduler 'dmp'; did you mean 'dpm'?"),
        (["--steps", "0"], "num_inference_steps must be a whole number in [1, 20], got 0"),
        (["--steps", "21"], "num_inference_steps must be a whole number in [1, 20], got 21"),
        (["--steps", "nan"], "argument --steps: invalid int value: 'nan'"),
        (["--num-images", "0"], "--num-images and --batch-size must be at least 1"),
        (["--labels", "hat"], "the model has no class 'hat'"),
        (["--labels", "3"], "the model has no class '3'"),
        (["--seed", "-1"], "--seed must lie in"),
        (["--guidance-scale", "nan"], "--guidance-scale must lie within 100"),
        (["--output", "x.jpg"], "--output x.jpg must end in .png"),
        (["--output", "no/such/folder/x.png"], "there is no folder"),
        (["--revision"], "argument --revision: expected one argument"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(model, tmp_path, capsys, arguments, message):
    assert sample(model, tmp_path / "x.png", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {message}" if not message.startswith("there") else "error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_written(model, tmp_path, capsys):
    (tmp_path / "x.png").mkdir()
    assert sample(model, tmp_path / "x.png") == 2
    (tmp_path / "file").write_text("x")
    assert main(["export", model, "--output", str(tmp_path / "file")]) == 2
    assert main(["export", model, "--output", str(tmp_path / "file" / "below")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 3
    assert "Traceback" not in "".join(errors)


def test_a_missing_model_and_no_command(tmp_path, capsys):
    assert sample(str(tmp_path / "none"), tmp_path / "x.png") == 2
    assert "is not there: give the folder of an exported pipeline, or a Hub id" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["smaple"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


@pytest.mark.slow
def test_the_embedded_model_from_the_shell(tmp_path):
    """Criterion: 16 images in 20 steps of DPM-Solver++, as .png, .gif and .npz, each in a fresh process."""
    for name in ("x.png", "x.gif", "x.npz"):
        arguments = ["--num-images", "16", "--scheduler", "dpm", "--steps", "20", "--seed", "0", "--output"]
        command = [sys.executable, "-m", "ddpm_hf", "sample", "pretrained/fashion_mnist_small", *arguments]
        result = subprocess.run([*command, str(tmp_path / name)], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["images"].shape == (16, 28, 28)
    assert arrays["images"].std() > 50  # not gray mush: black ground, bright clothes
    corners = arrays["images"][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) < 10
    assert arrays["labels"].tolist() == [i % 10 for i in range(16)]


# ---- noise and features


def test_the_noise_picture_has_a_row_for_every_stage(model, tmp_path):
    data = ["--dataset", str(ROOT / "data" / "fashion_mnist_tiny.parquet"), "--num-images", "4"]
    assert main(["noise", *data, "--output", str(tmp_path / "plain.png")]) == 0
    assert main(["noise", model, *data, "--steps", "3", "--output", str(tmp_path / "model.png")]) == 0
    plain, drawn = (Image.open(tmp_path / name) for name in ("plain.png", "model.png"))
    assert plain.height == 5 * 86 - 2  # 28 pixels, three times enlarged, and a gap
    # the model's are 8x8, eleven times enlarged: real images are scaled and cropped to that; below stand its classes
    assert drawn.height == 6 * 90 - 2 + 22


def test_more_noise_is_less_picture(tmp_path):
    data = ["--dataset", str(ROOT / "data" / "fashion_mnist_tiny.parquet"), "--num-images", "6"]
    assert main(["noise", *data, "--output", str(tmp_path / "x.png")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L")).astype(float)
    pixels = pixels[:, -(6 * 86 - 2) :]
    rows = [pixels[i * 86 : i * 86 + 84].ravel() for i in range(5)]
    likeness = [np.corrcoef(rows[0], row)[0, 1] for row in rows[1:]]
    assert likeness == sorted(likeness, reverse=True) and likeness[0] > 0.6 and abs(likeness[-1]) < 0.3


def test_features_of_a_labelled_data_set(tmp_path, capsys):
    data = str(ROOT / "data" / "fashion_mnist_tiny.parquet")
    output = tmp_path / "features"
    assert main(["train-features", "--dataset", data, "--epochs", "1", "--output", str(output)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert (output / "config.json").is_file()
    assert main(["train-features", "--dataset", data, "--epochs", "1", "--output", str(output)]) == 0  # again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--dataset", "nowhere/at-all/x"], "nowhere/at-all/x"),
        (["--output", "tests"], "exists and is not a classifier"),
    ],
)
def test_mistakes_about_features_are_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    data = str(ROOT / "data" / "fashion_mnist_tiny.parquet")
    given = ["train-features", "--dataset", data, "--output", str(tmp_path / "x"), *arguments]
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_pictures_without_labels_have_no_features_to_learn(tmp_path, capsys):
    for i in range(30):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    assert main(["train-features", "--dataset", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "has no classes to tell apart" in capsys.readouterr().err


def test_export_in_shards(model, tmp_path):
    whole = load_pipeline(model).unet.state_dict()
    assert main(["export", model, "--output", str(tmp_path / "x"), "--max-shard-size", "20KB"]) == 0
    assert len(list((tmp_path / "x" / "unet").glob("*.safetensors"))) > 1
    sharded = load_pipeline(tmp_path / "x").unet.state_dict()
    assert all((sharded[name] == whole[name]).all() for name in whole)
    assert main(["export", model, "--output", str(tmp_path / "y"), "--max-shard-size", "huge"]) == 2
