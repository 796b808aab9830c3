"""``python -m ddpm_hf``: every command and output, and one line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, tiny_pipeline
from PIL import Image

from ddpm_hf.__main__ import main
from ddpm_hf.hub import export_pipeline, load_pipeline
from ddpm_hf.samplers import SAMPLERS

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


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_every_scheduler(model, tmp_path, scheduler):
    assert sample(model, tmp_path / "x.png", "--scheduler", scheduler, "--guidance-scale", "2") == 0


def test_every_scheduler_is_in_the_texts(root):
    """Which are written by hand: the help, because it comes before diffusers is imported."""
    names = list(SAMPLERS)
    assert f'help=f"{", ".join(names)} (' in (root / "ddpm_hf" / "commands" / "options.py").read_text()
    assert f"sampler: {', '.join(names[:-1])} or {names[-1]}." in (root / "ddpm_hf" / "ui" / "api.py").read_text()


def test_export_halves_the_weights(model, tmp_path):
    assert main(["export", model, "--output", str(tmp_path / "half"), "--half"]) == 0
    assert load_pipeline(tmp_path / "half").config.id2label == NAMES


def test_export_gives_a_model_its_own_sampling(model, tmp_path, capsys):
    """What sample takes without options is what export was told, and the picture says so."""
    own = ["--scheduler", "dpm", "--steps", "4", "--guidance-scale", "3", "--guidance-interval", "2,9"]
    folder = str(tmp_path / "own")
    assert main(["export", model, "--output", folder, *own]) == 0
    config = load_pipeline(folder).config
    values = (config.num_inference_steps, config.guidance_scale, config.guidance_interval)
    assert values == (4, 3.0, [2, 9])
    common = ["--dtype", "float32", "--num-images", "5", "--output"]
    assert main(["sample", folder, *common, str(tmp_path / "a.png")]) == 0
    assert main(["sample", model, *own, *common, str(tmp_path / "b.png")]) == 0
    pictures = [Image.open(tmp_path / name) for name in ("a.png", "b.png")]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    note = json.loads(pictures[0].text["ddpm_hf"])
    assert (note["sampler"], note["steps"], note["guidance_interval"]) == ("dpm", 4, [2, 9])
    # exported again, it keeps them; one option changes that one
    again = str(tmp_path / "again")
    assert main(["export", folder, "--output", again, "--steps", "6"]) == 0
    config = load_pipeline(again).config
    assert (config.num_inference_steps, config.guidance_scale, config.guidance_interval) == (6, 3.0, [2, 9])
    assert load_pipeline(again).scheduler.config.algorithm_type == "dpmsolver++"
    capsys.readouterr()
    assert main(["export", model, "--output", again, "--steps", "21"]) == 2
    assert "num_inference_steps must be a whole number in [1, 20], got 21" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "scale", "interval"),
    [([], 2.0, [0, 8]), (["--guidance-scale", "1.5"], 1.5, [0, 20]), (["--guidance-interval", "3,4"], 2.0, [3, 4])],
)
def test_a_model_of_version_0_1_is_sampled_as_a_run_would_be(model, tmp_path, options, scale, interval):
    """It carries nothing; a scale alone is for all timesteps there, so that recorded commands mean what they meant."""
    assert json.loads((Path(model) / "model_index.json").read_text())["guidance_scale"] is None
    assert main(["sample", model, "--num-images", "1", *options, "--output", str(tmp_path / "a.png")]) == 0
    note = json.loads(Image.open(tmp_path / "a.png").text["ddpm_hf"])
    assert (note["sampler"], note["steps"]) == ("dpm-sde", 20)
    assert (note["guidance_scale"], note["guidance_interval"]) == (scale, interval)


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
        (["--num-images", "0"], "argument --num-images: it must be at least 1, got 0"),
        (["--labels", "hat"], "the model has no class 'hat'"),
        (["--labels", "3"], "the model has no class '3'"),
        (["--seed", "-1"], "argument --seed: it must lie in [0, 4294967295], got -1"),
        (["--guidance-scale", "nan"], "--guidance-scale must lie within 100"),
        (
            ["--guidance-interval", "9"],
            "argument --guidance-interval: two timesteps LOW,HIGH such as 0,400",
        ),
        (["--guidance-interval", "9,3"], "argument --guidance-interval: two timesteps LOW,HIGH"),
        (["--guidance-interval", "0,nan"], "argument --guidance-interval: two timesteps LOW,HIGH"),
        (["--guidance-interval", "0,21"], "--guidance-interval must lie within the model's timesteps, 0 to 20"),
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
        result = subprocess.run([*command, str(tmp_path / name)], cwd=ROOT, capture_output=True, text=True, timeout=300)
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
        (["--epochs", "0"], "argument --epochs: it must be at least 1, got 0"),
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
    assert "has no classes; it needs labelled images" in capsys.readouterr().err


def test_export_in_shards(model, tmp_path):
    whole = load_pipeline(model).unet.state_dict()
    assert main(["export", model, "--output", str(tmp_path / "x"), "--max-shard-size", "20KB"]) == 0
    assert len(list((tmp_path / "x" / "unet").glob("*.safetensors"))) > 1
    sharded = load_pipeline(tmp_path / "x").unet.state_dict()
    assert all((sharded[name] == whole[name]).all() for name in whole)
    assert main(["export", model, "--output", str(tmp_path / "y"), "--max-shard-size", "huge"]) == 2
