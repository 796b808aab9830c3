"""docs/evaluation.md followed word by word, with pictures of any size: a run, features of its data set, scores."""

import json

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

import train
from ddpm_hf.__main__ import main

RNG = np.random.default_rng(0)
TINY = ["--block_out_channels", "[8,16]", "--attention_levels", "[]", "--time_embed_dim", "16", "--report_to", "none"]
SETS = {
    # name -> (height, width), settings of the run and of train-features, settings of the run alone
    "20x28, padded": ((20, 28), "", ""),
    "48x48, scaled": ((48, 48), "", ""),
    "48x48, as they are": ((48, 48), "--sample_size 48", ""),
    "20x28, averaged": ((20, 28), "--sample_size 16 --resize area", ""),
    "40x24, random crops": ((40, 24), "--sample_size 16 --resize crop", "--random_crop"),
}


def words_of(line: str) -> list[str]:
    """The command of docs/evaluation.md that starts with ``line``, without the interpreter."""
    text = (ROOT / "docs" / "evaluation.md").read_text()
    return next(words.split()[3:] for words in text.splitlines() if words.startswith(f"python -m ddpm_hf {line} "))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_features_and_scores_of_any_size(tmp_path, monkeypatch, capsys, name):
    shape, both, own = SETS[name]
    for split, count in (("train", 140), ("test", 140)):
        for i in range(count):
            pixels = RNG.integers(0, 100, (*shape, 3), dtype=np.uint8)
            pixels[:, :, i % 2] += 120
            path = tmp_path / "my_pictures" / split / ("red", "green")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    monkeypatch.chdir(tmp_path)
    run = ["--dataset", "my_pictures", "--output_dir", "runs/mine", "--max_train_steps", "2", "--num_samples", "2"]
    assert train.main([*run, *TINY, "--num_train_timesteps", "10", *both.split(), *own.split()]) == 0, (
        capsys.readouterr().err
    )
    assert main([*words_of("train-features"), *both.split(), "--epochs", "2"]) == 0, capsys.readouterr().err
    scores = words_of("evaluate")
    scores[scores.index("--num-images") + 1] = "130"
    assert main([*scores, "--steps", "2"]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "score.json").read_text())
    assert np.isfinite(report["scores"]["fid"])
    assert report["protocol"]["images"] == "generated"
