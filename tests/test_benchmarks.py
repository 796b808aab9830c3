"""The benchmarks run at their smallest settings, so that they cannot rot."""

import argparse
import io
import json
import math
import subprocess
import tarfile
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from helpers import ROOT, moments_file, tiny_pipeline

from benchmarks import original_runs, samplers, search, space_speed, time_to_quality, train_throughput
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline

DATA = str(ROOT / "data" / "fashion_mnist_tiny.parquet")
TINY = ["block_out_channels=[8, 16]", "feed_forward_dim=16", "attention_levels=[1]", "num_train_timesteps=20"]


@pytest.fixture(autouse=True)
def repository_images(monkeypatch):
    monkeypatch.setattr(train_throughput, "FASHION_MNIST", ROOT / "no such folder")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def fashion_mnist() -> str:
    """Debian's package of it."""
    path = Path("/usr/share/datasets/fashion-mnist")
    if not path.is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    return str(path)


@pytest.mark.parametrize("side", train_throughput.SIDES)
def test_every_side_makes_a_step_of_the_seeds_network(side):
    arguments, _ = train_throughput.parse(["--batch", "1", "--warmup", "0", "--steps", "1"])
    result = train_throughput.run_side(side, arguments)
    assert result["seconds"] > 0


@pytest.mark.slow
def test_tables(capsys):
    common = ["--batch", "1", "--rounds", "1", "--warmup", "0", "--steps", "1", "--scales", "30", "40"]
    train_throughput.main([*common, "--sides", "ours", "--ours", *TINY])
    printed = capsys.readouterr().out
    assert "loops: original's network" in printed and "\nours " in printed
    assert "images/s x" in printed and "checkpoint, every 500" in printed


# ---- samplers, the search, and the original's runs


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    pipeline = tiny_pipeline(
        sample_size=32, num_class_embeds=10, attention_levels=[], output_size=(28, 28), num_train_timesteps=1000
    )
    return str(export_pipeline(tmp_path_factory.mktemp("benchmarks") / "model", pipeline))


FEW = ("ours, fixed_large", "DPM++ 2M, trailing", "Heun")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in samplers.SAMPLERS]
)
def test_every_sampler_of_the_table(model, tmp_path, capsys, name):
    common = ["--model", model, "--dataset", DATA, "--num-images", "20", "--long-images", "10", "--no-peers"]
    common += ["--features", moments_file(tmp_path / "moments.pt")]
    files = ["--output", str(tmp_path / "x.jsonl"), "--plot", str(tmp_path / "x.png")]
    samplers.main([*common, "--samplers", name, "--steps", "5", *files, "--times-again"])
    (line,) = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert line["calls"] == (9 if name == "Heun" else 5)
    assert math.isfinite(line["fid"]) and line["fid"] > 0 and line["fid_long"] > 0 and line["seconds"] > 0
    assert name in capsys.readouterr().out and (tmp_path / "x.png").stat().st_size > 0


def test_stock_ddpm_draws_what_ours_draws(model):
    """The same seeds and steps through both: what the table's rows of one name have in common."""
    pipeline = load_pipeline(model)
    ours, stock = (samplers.with_scheduler(pipeline, name) for name in ("ours, fixed_small, clipped", "stock DDPM"))
    images = [p(4, [0, 1, 2, 3], num_inference_steps=10, seed=0, output_type="pt").images for p in (ours, stock)]
    assert (images[0] - images[1]).abs().max() < 1e-4


def test_lines_of_another_model_are_not_taken_for_its_own(model, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"sampler": "DDIM", "steps": 5, "of": {"model": "another"}}) + "\n")
    common = ["--model", model, "--dataset", DATA, "--num-images", "10", "--long-images", "10"]
    with pytest.raises(UserError, match="is of another model"):
        samplers.main([*common, "--features", moments_file(tmp_path / "m.pt"), "--output", str(file)])


@pytest.mark.slow
def test_the_peers_and_the_ratios(model, capsys):
    lines = [
        {"sampler": "ours, fixed_large", "steps": 1000, "calls": 1000, "seconds": 1.0, "fid_long": 10.0},
        {"sampler": "DDIM", "steps": 5, "calls": 5, "seconds": 0.1, "fid": 20.0, "fid_long": 20.0},
        {"sampler": "DPM++ 2M, trailing", "steps": 10, "calls": 10, "seconds": 0.1, "fid": 9.0, "fid_long": 10.1},
        {"sampler": "DPM++ 2M, trailing", "steps": 15, "calls": 15, "seconds": 0.1, "fid": 9.0, "fid_long": 9.0},
    ]
    samplers.compare(load_pipeline(model), lines, argparse.Namespace(model=model, long_images=500, guidance_scale=1.5))
    out = capsys.readouterr().out
    assert "DPM++ 2M, trailing, 10 steps: FID 10.100, 1.010 times that" in out
    assert "the original's loop" in out and "DDIMPipeline at as many steps" in out


def test_guidance_reaches_the_scores_of_the_table(model, tmp_path):
    common = ["--model", model, "--dataset", DATA, "--num-images", "20", "--long-images", "10", "--no-peers"]
    common += ["--features", moments_file(tmp_path / "moments.pt"), "--samplers", "DDIM", "--steps", "5"]
    scores = {}
    for scale in ("1", "1.5"):
        file = tmp_path / f"{scale}.jsonl"
        samplers.main([*common, "--guidance-scale", scale, "--output", str(file)])
        line = json.loads(file.read_text())
        scores[line["of"]["guidance"]] = line["fid"]
    assert set(scores) == {1.0, 1.5} and scores[1.0] != scores[1.5]


@pytest.mark.slow
def test_the_search_compares_variants(tmp_path, capsys, monkeypatch):
    small = {"block_out_channels": [8, 16], "attention_levels": [], "ema_max_decay": [0.9, 0.5]}
    monkeypatch.setattr(search, "BASE", {**search.BASE, **small})
    monkeypatch.setattr(search, "SAMPLING", {"steps": 2})
    words = ["--dataset", fashion_mnist(), "--folder", str(tmp_path), "--only", "preset", "v, min-SNR"]
    search.main([*words, "--probe"])
    assert list(json.loads((tmp_path / "rates.json").read_text())) == ["{}"]  # both cost the same
    (tmp_path / "rates.json").write_text('{"{}": 640}')
    search.main([*words, "--minutes", "0.01", "--num-images", "140"])
    lines = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [line["variant"] for line in lines] == ["preset", "v, min-SNR"]
    assert [line["images"] for line in lines] == [6 * 64] * 2
    for line in lines:
        assert set(line["averages"]) == {"0.9", "0.5"}
        assert line["fid"] == min(scores["fid"] for scores in line["averages"].values())
    assert "v, min-SNR" in capsys.readouterr().out
    search.main([*words, "--minutes", "0.01"])  # nothing is left to run
    assert len((tmp_path / "table.jsonl").read_text().splitlines()) == 2
    with pytest.raises(UserError, match="has runs of other lengths"):
        search.main([*words, "--minutes", "1"])


@pytest.mark.slow
def test_quality_against_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time_to_quality, "PROBE_STEPS", 2)
    files = ["--output", str(tmp_path / "x.jsonl"), "--plot", str(tmp_path / "x.png")]
    common = ["--dataset", fashion_mnist(), "--num-images", "20", *files]
    time_to_quality.main([*common, "--minutes", "0.02", "0.06"])
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [line["side"] for line in lines] == [*time_to_quality.SIDES] * 2
    assert all(math.isfinite(line["fid"]) and line["images"] > 0 for line in lines)
    assert all(long["images"] > short["images"] for short, long in zip(lines, lines[3:]))
    assert (tmp_path / "x.png").stat().st_size > 0 and (tmp_path / "ours-0.06.png").stat().st_size > 0
    time_to_quality.main([*common, "--minutes", "0.02", "0.06", "--target", "1e6"])
    assert "FID 1e+06 reached in 0.02 minutes" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ours-2.png", "table.jsonl", "curve.png"])
def test_the_curve_leaves_files_of_somebodys(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    files = ["--output", str(tmp_path / "table.jsonl"), "--plot", str(tmp_path / "curve.png")]
    command = ["--dataset", "none", "--sides", "ours", "--minutes", "2", *files]
    with pytest.raises(UserError, match=f"{name} (exists, and|is not a table of) this benchmark"):
        time_to_quality.main(command)
    assert (tmp_path / name).read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / name).unlink()
    (tmp_path / "table.jsonl").write_text('{"side": "ours", "minutes": 2.0}\n')
    (tmp_path / "ours-2.png").write_bytes(b"before")
    with pytest.raises(UserError, match="none"):  # goes on, to the data set
        time_to_quality.main(command)


@pytest.mark.slow
def test_the_seeds_runs_reduced(tmp_path, capsys):
    output = tmp_path / "out"
    common = ["--dataset", fashion_mnist(), "--output", str(output), "--work", str(tmp_path / "work")]
    common += ["--parcel", str(tmp_path / "parcel")]
    original_runs.main(
        [*common, "--only", "published", "--max-train-steps", "3", "--num-images", "140", "--sample-steps", "2"]
    )
    (row,) = json.loads((output / "summary.json").read_text())["runs"]
    assert row["reduced"] and row["steps"] == 3 and row["fid"] > 0
    assert {"noise.png", "samples.png", "score.json", "loss.png"} <= {
        path.name for path in (output / "published").iterdir()
    }
    shards = list((output / "published-pipeline" / "unet").glob("*.safetensors"))
    assert len(shards) > 1 and max(shard.stat().st_size for shard in shards) < 16e6
    parts = sorted((tmp_path / "parcel").iterdir())
    assert len(parts) <= 4 and max(part.stat().st_size for part in parts) <= 16 * 2**20
    assert "published" in capsys.readouterr().out


def test_the_parcel_holds_all_but_the_weights_that_are_left_out(tmp_path, monkeypatch):
    """In parts that are small, as cat and tar put them together again."""
    monkeypatch.setattr(original_runs, "PART", 20_000)
    output, parcel = tmp_path / "out", tmp_path / "parcel"
    files = ("summary.json", "published/score.json", "modern/noise.png", "published-pipeline/unet/1.safetensors",
             "modern-pipeline/unet/1.safetensors", "modern-pipeline/unet/2.safetensors")  # fmt: skip
    for number, name in enumerate(files):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(bytes([number]) * 15_000)
    parcel.mkdir()
    (parcel / "original_runs.tar.77").touch()  # of another call
    (parcel / "original_runs.tar.gz").write_text("mine")
    original_runs.pack(argparse.Namespace(output=output, parcel=parcel, weights_of=["modern"]))
    assert (parcel / "original_runs.tar.gz").read_text() == "mine"
    (parcel / "original_runs.tar.gz").unlink()
    parts = sorted(parcel.iterdir())
    assert len(parts) > 2 and max(part.stat().st_size for part in parts) == 20_000
    assert parts[-1].name == f"original_runs.tar.{len(parts) - 1:02}"
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
        names = archive.getnames()
        assert sorted(names) == sorted(name for name in files if not name.startswith("published-pipeline"))
        assert all("-pipeline" in name for name in names[-2:])  # a part that is lost is one of weights
        assert archive.extractfile("modern/noise.png").read() == bytes([2]) * 15_000


@pytest.mark.slow
def test_folders_of_somebodys_are_not_replaced_by_benchmarks(tmp_path, monkeypatch):
    """A folder with the name of a variant, and files with the names of a run's."""
    (tmp_path / "preset-0").mkdir()
    (tmp_path / "preset-0" / "metrics.jsonl").write_text("years of work")
    (tmp_path / "rates.json").write_text('{"{}": 640}')
    with pytest.raises(subprocess.CalledProcessError):
        search.main(["--dataset", fashion_mnist(), "--folder", str(tmp_path), "--only", "preset", "--minutes", "0.01"])
    assert (tmp_path / "preset-0" / "metrics.jsonl").read_text() == "years of work"

    out = tmp_path / "out" / "modern"
    for folder, text in ((out, "mine"), (tmp_path / "run", "a run's")):
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(text)
    with pytest.raises(SystemExit, match=r"modern has metrics\.jsonl of another program; choose another --output"):
        original_runs.look("modern", tmp_path / "run", argparse.Namespace(output=out.parent))
    assert (out / "metrics.jsonl").read_text() == "mine"


def test_a_run_that_was_stopped_is_not_scored(tmp_path, monkeypatch):
    """A trainer that is stopped saves and ends well; its run has no pipeline then."""
    called = []
    monkeypatch.setattr(original_runs, "call", lambda *words: called.append(words[0]))
    words = ["--dataset", DATA, "--output", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    with pytest.raises(SystemExit, match="the run published was stopped before its end; the same command goes on"):
        original_runs.main(words)
    assert called == ["train.py"]
    assert float((tmp_path / "work" / "published" / "seconds.txt").read_text()) >= 0


def test_a_program_that_fails_ends_the_seeds_runs_in_one_line():
    with pytest.raises(SystemExit, match=r"^error: -c raise SystemExit\(3\) ended with 3\.$"):
        original_runs.call("-c", "raise SystemExit(3)")


@pytest.mark.slow
def test_speed_of_the_space(model, capsys):
    space_speed.main(["--num-images", "2", "--steps", "3", "--repeats", "1", "--model", model])
    printed = capsys.readouterr().out
    for words in ("without frames", "streaming costs", "first frame", "whole run", "again, cached", "after one run"):
        assert words in printed
