"""Folders as they come from a phone, from Kaggle and from a microscope: from nothing to an exported pipeline."""

import csv
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_runs import tiny_run

from ddpm_hf.data import image_suffixes
from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline

RNG = np.random.default_rng(0)


def photo(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path, **options)


def phone(folder):
    """Upright and turned JPEGs, a screenshot, a burst, HEIC, videos, in folders by month."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for month in ("2024-05", "2024-06"):
        for i in range(11):
            photo(folder / "DCIM" / month / f"IMG_{i}.JPG", exif=turned if i % 2 else Image.Exif())
        photo(folder / "DCIM" / month / "Screenshot.png", (30, 60))
        (folder / "DCIM" / month / "MOV_1.mp4").write_bytes(b"video")
        (folder / "DCIM" / month / "._IMG_1.JPG").write_bytes(b"\0\5\x16\7")
    if ".heic" not in image_suffixes():  # tests/data/test_heic.py has real ones
        (folder / "DCIM" / "2024-05" / "IMG_99.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    return folder, ["23 images of 3x32x32 of train in 2 classes (2024-05 12, 2024-06 11)", "left out: ", "2 .mp4"]


def kaggle(folder):
    """A zip with Training and Testing in it, the breeds in a table beside, and what a Mac left."""
    rows = []
    for split, count in (("Training", 24), ("Testing", 6)):
        for i in range(count):
            photo(folder / "files" / "archive" / split / f"{split[:2]}{i}.jpg")
            rows.append({"id": f"{split[:2]}{i}", "breed": ["beagle", "pug"][i % 2]})
    with open(folder / "files" / "archive" / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "breed"])
        writer.writeheader()
        writer.writerows(rows)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for path in sorted((folder / "files").rglob("*.*")):
            archive.write(path, path.relative_to(folder / "files"))
        archive.writestr("__MACOSX/archive/._x.jpg", b"\0\5\x16\7")
    return folder / "archive.zip", [
        "24 images of 3x32x32 of train in 2 classes (beagle 12, pug 12)",
        ", 6 of test for validation",
    ]


def microscope(folder):
    """12-bit TIFFs in folders of wells, with a log and settings of the instrument."""
    for well in ("A1", "B2"):
        (folder / well).mkdir(parents=True)
        for i in range(12):
            cells = RNG.integers(100, 3000, (48, 48), dtype=np.uint16)
            Image.fromarray(cells).save(folder / well / f"field_{i:02}.tif")
        (folder / well / "acquisition.xml").write_text("<settings/>")
    return folder, ["23 images of 1x32x32 of train in 2 classes (A1 12, B2 11)", "become black to white", "2 .xml"]


@pytest.mark.parametrize("kind", [phone, kaggle, microscope])
def test_from_nothing_to_a_pipeline(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    dataset, lines = kind(tmp_path / "my pictures")
    settings = {"dataset": str(dataset), "max_images": None, "max_train_steps": 2, "sample_steps": 99}
    trainer = tiny_run(tmp_path / "my run", **settings, checkpointing_steps=99, validation_steps=99)
    said = capsys.readouterr().out
    assert all(line in said for line in lines), said
    pipeline = load_pipeline(tmp_path / "my run" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert np.asarray(pipeline(1, num_inference_steps=2, seed=0).images[0]).shape[:2] == (32, 32)
    assert sorted(pipeline.config["id2label"].values()) == sorted(trainer.data.label_names)
    assert "sample '" in said  # a folder with a space in its name can be pasted


def test_classes_are_asked_for_where_several_columns_could_be_meant(tmp_path):
    for i in range(6):
        photo(tmp_path / "set" / f"{i}.png")
    rows = [f"{i}.png,{'ab'[i % 2]},{'xy'[i // 3]}" for i in range(6)]
    (tmp_path / "set" / "metadata.csv").write_text("\n".join(["file_name,breed,sex", *rows]))
    with pytest.raises(
        UserError, match=r"needs labels, and the data have none: columns breed, sex of .*: label_column"
    ):
        tiny_run(tmp_path / "run", dataset=str(tmp_path / "set"), max_images=None, max_train_steps=2)
