"""The embedded model is what the README says it is."""

import json
import re
from pathlib import Path

import pytest
from helpers import ROOT

from ddpm_hf.__main__ import main
from ddpm_hf.hub.card import is_ours
from ddpm_hf.hub.run_files import run_files_of
from scripts.ship_model import card_text

MODEL = ROOT / "pretrained" / "fashion_mnist_small"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def recorded(name: str) -> dict:
    return json.loads((MODEL / name).read_text())


def test_the_weights_are_small_enough():
    assert sum(file.stat().st_size for file in (MODEL / "unet").glob("*.safetensors")) <= 12e6


def test_no_copies_of_training_images_were_found():
    found = recorded("evaluation.json")
    assert found["findings"] == []


def test_the_scores_are_of_these_weights():
    contents = run_files_of(MODEL)
    assert contents.said == [] and contents.evaluation.model_dump() == recorded("evaluation.json")
    assert {"evaluation.json", "evaluation-1000.json"} <= set(contents.files)


def test_the_card_is_what_the_template_makes():
    text = (MODEL / "README.md").read_text(encoding="utf-8")
    assert text == card_text(), "run python -m scripts.ship_model --card"
    assert is_ours(text)  # so that a push writes it anew, for its repository
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert {"evaluation-samples.png", "evaluation-neighbours.png", "loss.png"} <= set(figures)
    assert [name for name in figures if not (MODEL / name).is_file()] == []


def test_the_scores_are_of_ten_thousand_images():
    assert recorded("evaluation.json")["protocol"]["num_images"] == 10_000


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="the package dataset-fashion-mnist is not installed")
@pytest.mark.timeout(900)
def test_the_recorded_command_finds_the_recorded_scores(tmp_path, monkeypatch):
    """Tolerances: other processors round bfloat16 differently, and a picture can become another."""
    before = recorded("evaluation-1000.json")
    words = before["protocol"]["command"].split()[3:]
    words[words.index("--dataset") + 1] = str(FASHION_MNIST)
    words[words.index("--output") + 1] = str(tmp_path / "again.json")
    monkeypatch.chdir(ROOT)
    assert main([*words, "--no-figures"]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["floor"] == pytest.approx(before["floor"], rel=0.01)  # real images: only the extractor rounds
    scores, expected = again["scores"], before["scores"]
    assert scores["fid"] == pytest.approx(expected["fid"], rel=0.05)
    for name in ("precision", "recall", "label_accuracy"):
        assert scores[name] == pytest.approx(expected[name], abs=0.02)
