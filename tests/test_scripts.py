"""The scripts that make data, and the one that makes the embedded model."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import pytest
from helpers import ROOT, tiny_pipeline

from ddpm_hf.data import load_images
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline
from scripts import make_emoji, ship_model

# ---- emoji with words


@pytest.mark.parametrize(
    ("concept", "title"),
    [("one oclock", "clock"), ("grinning face", "face"), ("old man", "person"), ("man", "person"),
     ("left right arrow", "sign"), ("peach", "thing"), ("mango", "thing")],
)  # fmt: skip
def test_classes_of_emoji_are_found_by_whole_words(concept, title):
    assert make_emoji.class_of(concept) == title


UNICODE = {
    "a": {"tts": ["red paper lantern"], "default": ["light", "paper"]},
    "b": {"tts": ["police car light"], "default": ["beacon"]},
    "c": {"tts": ["one o\u2019clock"], "default": ["1:00"]},
    "d": {"tts": ["ring"], "default": ["diamond", "ring"]},
    "e": {"tts": ["flag: China"]},
    "f": {"tts": ["waving hand"], "default": ["hello"]},
    "g": {"tts": ["waving hand: light skin tone"], "default": ["hello"]},
    "h": {"tts": ["couple with heart"]},
}


@pytest.mark.parametrize(
    ("name", "concept", "tone"),
    [
        ("red-paper-lantern", "red paper lantern", ""),
        ("redpaperlantern", "red paper lantern", ""),
        ("redring", "red ring", ""),
        ("police-car-light", "police car light", ""),
        ("one-oclock", "one oclock", ""),
        ("ring-2", "ring", ""),
        ("flag-for-china", "flag china", ""),
        ("waving-hand-light-skin-tone", "waving hand", "light skin tone"),
        ("waving-hand-medium-dark", "waving hand", "medium dark skin tone"),
        ("woman-dark-skin-tone-bald", "woman bald", "dark skin tone"),
        ("couple-with-heart-dark-skin-tone-light-skin-tone", "couple with heart", "dark light skin tone"),
        ("a-thing-of-its-own", "a thing of its own", ""),
    ],
)
def test_one_concept_has_one_name_in_all_sets(name, concept, tone):
    assert make_emoji.Names([UNICODE]).concept(name, run_together="-" not in name) == (concept, tone)


def test_run_together_names_without_known_words_are_left_out():
    assert make_emoji.Names([UNICODE]).concept("qqzzring", run_together=True) is None
    assert make_emoji.Names([UNICODE]).concept("qqzzring") == ("qqzzring", "")


def test_captions_are_long_and_short_with_and_without_style():
    names = make_emoji.Names([UNICODE])
    assert names.captions("ring", "", "flat") == [
        "an emoji of ring in flat style",
        "ring, flat style: diamond",
        "an emoji of ring",
        "ring, flat style",
        "ring: diamond",
        "ring",
    ]
    assert "waving hand, light skin tone, 3d style: hello" in names.captions("waving hand", "light skin tone", "3d")


def test_held_out_pairs_are_a_tenth_and_their_concepts_and_styles_are_trained_otherwise():
    pairs = {(f"concept {i}", f"style {j}") for i in range(50) for j in range(i % 4 + 1)}
    test = make_emoji.held_out(pairs)
    assert len(test) == len(pairs) // 10
    assert {concept for concept, _ in test} <= {concept for concept, _ in pairs - test}
    assert {style for _, style in test} <= {style for _, style in pairs - test}
    assert test == make_emoji.held_out(pairs)


def pack(folder: Path, name: str, files: dict):
    """A package as npm packs it."""
    with tarfile.open(folder / f"{name}-1.0.0.tgz", "w:gz") as archive:
        for file, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{file}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def body(colour: str, width: int = 8) -> str:
    return f'<path fill="{colour}" d="M0 0h{width}v16H0z"/>'


@pytest.fixture
def packages(tmp_path):
    pytest.importorskip("resvg_py")
    folder = tmp_path / "packages"
    folder.mkdir()
    for name, key in make_emoji.ANNOTATIONS.items():
        pack(folder, name, {f"{key}/en/annotations.json": {key: {"annotations": UNICODE}}})
    info = {"name": "A Set", "author": {"name": "Ann"}, "license": {"spdx": "MIT"}}
    concepts = [f"thing-{word}" for word in "abcdefghij"]
    noto = {name: {"body": body(f"rgb({25 * i}, 200, 0)")} for i, name in enumerate(concepts)}
    flat = {name: {"body": body(f"rgb({25 * i}, 0, 200)")} for i, name in enumerate(concepts)}
    noto |= {
        "ring": {"body": body("red"), "left": 4, "width": 8, "height": 8},
        "old": {"body": body("green"), "hidden": True},
        "black": {"body": body("#101010")},
        "thing-a-again": noto["thing-a"],
    }
    for i, tone in enumerate(["light", "medium", "dark"]):
        noto[f"hand-{tone}-skin-tone"] = {"body": body(f"rgb(1, 2, {100 + 50 * i})", 4)}
    pack(folder, "iconify-json-noto", {"icons.json": {"icons": noto}, "info.json": info})
    pack(folder, "iconify-json-fluent-emoji-flat", {"icons.json": {"icons": flat}, "info.json": info})
    return folder


def test_emoji_become_pictures_with_captions_and_a_held_out_part(packages, tmp_path, capsys):
    output, sets = tmp_path / "out", ["--sets", "noto", "fluent-emoji-flat"]
    make_emoji.main([str(output), "--size", "32", "--packages", str(packages), *sets])
    said = capsys.readouterr().out
    assert "1 looks like another" in said and "1 black" in said and "skin tone" in said
    parts = {part: datasets.Dataset.from_parquet(str(output / f"{part}.parquet")) for part in ("train", "test")}
    train, test = parts["train"], parts["test"]
    assert {*train["concept"], *test["concept"]} >= {"thing a", "thing j", "ring"}
    assert "old" not in train["concept"] and "black" not in train["concept"]
    pairs = {part: set(zip(data["concept"], data["style"])) for part, data in parts.items()}
    assert len(pairs["test"]) == 2 and not pairs["test"] & pairs["train"]
    row = next(row for row in [*train, *test] if (row["concept"], row["style"]) == ("thing c", "noto"))
    assert (row["image"].mode, row["image"].size, row["license"]) == ("RGBA", (32, 32), "MIT")
    assert row["image"].getpixel((7, 25)) == (50, 200, 0, 255) and row["image"].getpixel((25, 7))[3] == 0
    assert row["text"][0] == "an emoji of thing c in noto style" and "thing c" in row["text"]
    assert "| flat | A Set | 10 | MIT | Ann" in (output / "README.md").read_text()

    data = load_images(str(output), label_column="class")
    assert len(data.images) == len(train) and data.label_names == ["clock", "face", "person", "sign", "thing"]
    before = (output / "train.parquet").read_bytes()
    make_emoji.main([str(output), "--size", "32", "--packages", str(packages), *sets])  # the same again
    assert (output / "train.parquet").read_bytes() == before


def test_a_single_set_is_all_for_training(packages, tmp_path):
    make_emoji.main([str(tmp_path / "out"), "--packages", str(packages), "--sets", "noto"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "train.parquet"]


@pytest.mark.parametrize(
    ("icons", "message"),
    [
        (b"[1", "has no icons.json that can be read"),
        ([1], "is not a set of pictures in Iconify's format"),
        ({"icons": {"a": {}}}, "is not a set of pictures in Iconify's format"),
        ({"icons": {"ring": {"body": "<g>"}}}, "the picture ring cannot be drawn"),
    ],
)
def test_sets_without_pictures_are_one_line(packages, tmp_path, icons, message):
    info = {"name": "A Set", "author": {"name": "Ann"}, "license": {"spdx": "MIT"}}
    pack(packages, "iconify-json-noto", {"icons.json": icons, "info.json": info})
    with pytest.raises(UserError, match=message):
        make_emoji.main([str(tmp_path / "out"), "--packages", str(packages), "--sets", "noto"])
    assert not (tmp_path / "out").exists()


def test_wrong_sizes_missing_packages_and_folders_of_others_are_one_line(packages, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--size is 0, expected 8 to 2048 pixels"):
        make_emoji.main([str(tmp_path / "out"), "--size", "0"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="has files that this command did not write"):
        make_emoji.main([str(tmp_path / "mine"), "--packages", str(packages)])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="is fetched by npm, which is not installed"):
        make_emoji.main([str(tmp_path / "out"), "--packages", str(packages), "--sets", "twemoji"])


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
    monkeypatch.setattr(ship_model, "OPTIONS", ("--steps", 2, "--reference-split", "train"))
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
    for name in ("notes.txt", "unet/notes.txt"):
        (ship_model.MODEL / name).write_text("years of work")
    with pytest.raises(UserError, match="evaluate failed, as it says above; m is what it was"):
        ship_model.main([str(shipping), "--dataset", "nowhere"])
    assert {path.read_text() for path in ship_model.MODEL.rglob("notes.txt")} == {"years of work"}
    assert "error: " in capfd.readouterr().err
    assert load_pipeline(ship_model.MODEL).num_classes is None
    assert (ship_model.MODEL / "evaluation.json").read_text() == "that of before"
    assert "old" in ship_model.README.read_text()
    assert [path.name for path in ship_model.MODEL.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("option", ["--card", "--dataset=x"])
def test_a_readme_of_somebodys_is_not_replaced_by_the_card(shipping, option):
    (ship_model.MODEL / "README.md").write_text("# My words")
    with pytest.raises(UserError, match=r"README\.md was not written by this script"):
        ship_model.main([str(shipping), option])
    assert (ship_model.MODEL / "README.md").read_text() == "# My words"


def test_what_is_no_run_is_not_shipped(shipping):
    shutil.rmtree(shipping)
    with pytest.raises(UserError, match=r"it has no metrics\.jsonl"):
        ship_model.main([str(shipping), "--dataset", "x"])
