"""The scripts that make data, and the one that makes the embedded model."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, tiny_pipeline
from PIL import Image

from ddpm_hf.data import load_images
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline
from scripts import make_emoji, ship_model

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("CLOCK FACE ONE OCLOCK", "clock"), ("GRINNING FACE", "face"), ("OLDER MAN", "person"), ("MAN", "person"),
     ("LEFT RIGHT ARROW", "sign"), ("PEACH", "thing"), ("MANGO", "thing")],
)  # fmt: skip
def test_classes_are_told_by_whole_words(name, folder):
    assert make_emoji.class_of(name) == folder


@pytest.mark.skipif(not FONT.exists(), reason="the package fonts-noto-color-emoji is not installed")
def test_pictures_of_a_font_are_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(make_emoji, "CODE_POINTS", [0x2194, 0x1F34E, 0x1F600, 0x1F601, 0x1F9FF + 0x300])
    make_emoji.main([str(FONT), str(tmp_path)])
    pictures = sorted(tmp_path.rglob("*.png"))
    assert [path.parent.name for path in pictures] == ["face", "face", "sign", "thing"]
    assert all(Image.open(path).mode == "RGBA" for path in pictures)
    data = load_images(str(tmp_path))
    assert data.images.shape == (4, 3, 32, 32) and data.label_names == ["face", "sign", "thing"]
    apple = data.images[3].astype(int)
    assert apple[:, 0, 0].tolist() == [255, 255, 255]  # transparent becomes white
    assert apple[0, 16, 16] > apple[1, 16, 16] + 50  # red


# ---- the embedded model


@pytest.fixture
def shipping(tmp_path, monkeypatch):
    """A repository of its own with an embedded model, and a run; returns the run's folder."""
    model, readme = tmp_path / "repo" / "pretrained" / "m", tmp_path / "repo" / "README.md"
    export_pipeline(model, tiny_pipeline(sample_size=32, attention_levels=[], output_size=(28, 28)))
    (model / "evaluation.json").write_text("that of before")
    readme.write_text(f"before {ship_model.START} old {ship_model.END} after")
    run = tmp_path / "run"
    export_pipeline(
        run / "pipeline", tiny_pipeline(sample_size=32, attention_levels=[], num_class_embeds=10, output_size=(28, 28))
    )
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    for name, value in {"ROOT": tmp_path / "repo", "MODEL": model, "README": readme, "REPRODUCED": 129}.items():
        monkeypatch.setattr(ship_model, name, value)
    monkeypatch.setattr(ship_model, "SETTINGS", ("--steps", 2, "--reference-split", "train"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return run


@pytest.mark.slow
def test_a_model_is_shipped_with_its_scores(shipping):
    ship_model.main(
        [str(shipping), "--dataset", str(ROOT / "data" / "fashion_mnist_tiny.parquet"), "--num-images", "130"]
    )
    assert load_pipeline(ship_model.MODEL).num_classes == 10
    names = {path.name for path in ship_model.MODEL.iterdir()}
    assert {"metrics.jsonl", "evaluation.json", "evaluation-129.json", "evaluation-samples.png"} <= names
    report = json.loads((ship_model.MODEL / "evaluation.json").read_text())
    assert report["protocol"]["num_images"] == 130
    assert "evaluate pretrained/m --dataset fashion_mnist_tiny.parquet" in report["protocol"]["command"]
    text = ship_model.README.read_text()
    assert "| | 130 images | real |" in text and f"| FID | {report['scores']['fid']:.3f} |" in text
    assert text.startswith("before ") and text.endswith(" after") and "old" not in text
    assert [path.name for path in ship_model.MODEL.parent.iterdir()] == ["m"]


def test_a_model_that_cannot_be_scored_leaves_the_one_before(shipping, capfd):
    with pytest.raises(UserError, match="evaluate failed, as it says above; m is what it was"):
        ship_model.main([str(shipping), "--dataset", "nowhere"])
    assert "error: " in capfd.readouterr().err
    assert load_pipeline(ship_model.MODEL).num_classes is None
    assert (ship_model.MODEL / "evaluation.json").read_text() == "that of before"
    assert "old" in ship_model.README.read_text()
    assert [path.name for path in ship_model.MODEL.parent.iterdir()] == ["m"]


def test_what_is_no_run_is_not_shipped(shipping):
    shutil.rmtree(shipping)
    with pytest.raises(UserError, match=r"it has no metrics\.jsonl"):
        ship_model.main([str(shipping), "--dataset", "x"])
