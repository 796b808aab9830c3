"""Folders as people have them: which pictures are in which split and class, and what is left out, in a line."""

import io
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm_hf.data import Source, load_images, open_stream
from ddpm_hf.data.images import image_suffixes
from ddpm_hf.data.sources import Splits
from ddpm_hf.errors import UserError
from ddpm_hf.source import split_of

BUFFER = io.BytesIO()
Image.new("L", (2, 2)).save(BUFFER, "PNG")
PNG = BUFFER.getvalue()


def make(root: Path, *names: str, content: bytes = PNG) -> Path:
    """Files of these names; "cat/*3.png" is three of them."""
    for name in names:
        before, star, after = name.partition("*")
        many = range(int(after[0])) if star else [""]
        for number in many:
            path = root / f"{before}{number}{after[1:]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def read(root: Path, **options) -> tuple[dict, list[str]]:
    """{split: {class, None without classes: number of pictures}} as the folder is read, and what is said of it."""
    splits, found = Splits(Source(str(root), **options)), {}
    for name in splits.names:
        table = splits.open(name)
        classes = [None] * len(table) if table.labels is None else [table.names[label] for label in table.labels]
        found[name] = dict(Counter(classes))
    return found, splits.told.left_out + splits.told.notes


# name -> (files, what they are read as, a part of each note)
CASES = {
    # splits
    "Training and Testing": (
        ["Training/a/*3.png", "Training/b/*2.png", "Testing/a/*1.png", "Testing/b/*2.png"],
        {"train": {"a": 3, "b": 2}, "test": {"a": 1, "b": 2}},
        [],
    ),
    "capitals": (["TRAIN/*3.png", "VAL/*2.png"], {"train": {None: 3}, "validation": {None: 2}}, []),
    "three": (
        ["train/*3.png", "valid/*2.png", "test/*1.png"],
        {"train": {None: 3}, "test": {None: 1}, "validation": {None: 2}},
        [],
    ),
    "dev and eval": (
        ["train/*3.png", "dev/*2.png", "evaluation/*1.png"],
        {"train": {None: 3}, "test": {None: 1}, "validation": {None: 2}},
        [],
    ),
    "years": (["train2017/*3.png", "val2017/*2.png"], {"train": {None: 3}, "validation": {None: 2}}, []),
    "more words": (
        ["training_set/a/*2.png", "training_set/b/*2.png", "test_set/a/*1.png", "test_set/b/*1.png"],
        {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}},
        [],
    ),
    "a word before": (["flowers-train/*2.png", "flowers-test/*2.png"], {"train": {None: 2}, "test": {None: 2}}, []),
    "two words for one": (
        ["val/a/*1.png", "valid/b/*1.png", "train/a/*1.png", "train/b/*1.png"],
        {"train": {"a": 1, "b": 1}, "validation": {"a": 1, "b": 1}},
        [],
    ),
    "a folder around": (
        ["archive/data/train/a/*2.png", "archive/data/train/b/*2.png", "archive/data/test/a/*1.png"],
        {"train": {"a": 2, "b": 2}, "test": {"a": 1}},
        [],
    ),
    "images/train, as YOLO has it": (
        ["images/train/*3.png", "images/val/*2.png", "labels/train/0.txt"],
        {"train": {None: 3}, "validation": {None: 2}},
        ["1 .txt"],
    ),
    "class first": (
        ["a/train/*2.png", "a/test/*1.png", "b/train/*3.png", "b/test/*1.png"],
        {"train": {"a": 2, "b": 3}, "test": {"a": 1, "b": 1}},
        [],
    ),
    "an only class first": (
        ["bottle/train/good/*2.png", "bottle/test/broken/*1.png"],
        {"train": {None: 2}, "test": {None: 1}},
        [],
    ),
    "no training split": (["test/*2.png", "val/*1.png"], {"test": {None: 2}, "validation": {None: 1}}, []),
    "a test split alone": (["test/a/*2.png", "test/b/*1.png"], {"test": {"a": 2, "b": 1}}, []),
    "a class called train": (
        ["bus/*1.png", "car/*1.png", "train/*1.png"],
        {"train": {"bus": 1, "car": 1, "train": 1}},
        [],
    ),
    "a class called test": (
        ["test/*1.png", "quiz/*1.png"],
        {"train": {"quiz": 1, "test": 1}},
        [],
    ),
    "not words for splits": (
        ["trainer/*1.png", "tests/*1.png", "valley/*1.png"],
        {"train": {"tests": 1, "trainer": 1, "valley": 1}},
        [],
    ),
    "pictures beside splits": (
        ["train/*3.png", "test/*2.png", "cover.png"],
        {"train": {None: 3}, "test": {None: 2}},
        ["1 picture beside the folders of splits"],
    ),
    "empty folders are no splits": (["train/*2.png", "test/x.txt"], {"train": {None: 2}}, ["1 .txt"]),
    # folders
    "deeper": (
        ["cat/a/*2.png", "cat/b/*2.png", "dog/a/*1.png", "dog/2.png"],
        {"train": {"cat": 4, "dog": 2}},
        [],
    ),
    "deeper in a split": (
        ["train/cat/a/*2.png", "train/dog/x/y/*2.png", "test/cat/z/*1.png", "test/dog/*1.png"],
        {"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}},
        [],
    ),
    "one class is none": (["cat/*3.png"], {"train": {None: 3}}, []),
    "a folder around classes": (
        ["set/pictures/cat/*1.png", "set/pictures/dog/*2.png"],
        {"train": {"cat": 1, "dog": 2}},
        [],
    ),
    "pictures beside classes": (
        ["cat/*2.png", "dog/*2.png", "montage.png"],
        {"train": {"cat": 2, "dog": 2}},
        ["1 picture of train beside the folders of classes"],
    ),
    "most beside folders": (
        ["*9.png", "cat/*1.png", "dog/*1.png"],
        {"train": {None: 11}},
        ["no classes: most pictures of train lie beside the folders cat, dog"],
    ),
    "pictures beside one folder": (["*3.png", "more/*2.png"], {"train": {None: 5}}, []),
    "junk": (
        ["cat/*2.png", "dog/*2.png", "__MACOSX/cat/*2.png", ".ipynb_checkpoints/*2.png", "cat/@eaDir/*1.png"]
        + ["cat/._0.png", ".DS_Store", "dog/Thumbs.db", "dog/.hidden.png", "desktop.ini", "@eaDir/*1.png"],
        {"train": {"cat": 2, "dog": 2}},
        [],
    ),
    "suffixes in capitals": (["cat/*2.PNG", "cat/3.Jpeg", "dog/*1.JFIF"], {"train": {"cat": 3, "dog": 1}}, []),
    "all of Pillow": (
        [f"a{suffix}" for suffix in sorted(image_suffixes())],
        {"train": {None: len(image_suffixes())}},
        [],
    ),
    "other files": (
        ["cat/*2.png", "dog/*2.png", "clip.mp4", "raw/*3.nef", "notes.pdf"],
        {"train": {"cat": 2, "dog": 2}},
        ["3 .nef", "1 .mp4", "1 .pdf"],
    ),
    "no suffix": (["cat/*3", "dog/*2"], {"train": {"cat": 3, "dog": 2}}, []),
    "names": (
        ["a class/*1.png", "Ünïcode/*1.png", "日本/*1.png", "[x]*2.png", "#1/100%.png"],
        {"train": {"#1": 1, "[x]": 0, "a class": 1, "Ünïcode": 1, "日本": 1}},
        ["2 pictures of train beside"],
    ),
    "dots": (["v1.0/*1.png", "v1.1/*2.png"], {"train": {"v1.0": 1, "v1.1": 2}}, []),
    "numbers": (
        ["0/*1.png", "1/*1.png", "10/*1.png", "2/*1.png"],
        {"train": dict.fromkeys(("0", "1", "10", "2"), 1)},
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_folders(tmp_path, name):
    files, expected, parts = CASES[name]
    found, notes = read(make(tmp_path / "set", *files))
    expected = {split: {c: count for c, count in classes.items() if count} for split, classes in expected.items()}
    assert found == expected
    assert len(notes) == len(parts), notes
    assert all(part in note for note, part in zip(notes, parts)), notes


def test_heic_is_named_where_it_cannot_be_read(tmp_path):
    root = make(tmp_path / "set", "*3.png")
    make(root, "IMG_*2.HEIC", content=b"\0\0\0\x18ftypheic")
    if ".heic" in image_suffixes():
        pytest.skip("pillow-heif is installed")
    assert read(root) == ({"train": {None: 3}}, ["2 .heic (pip install pillow-heif reads them)"])
    for path in root.glob("*.png"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"has no images, .* \(left out: 2 .heic \(pip install pillow-heif reads them\)\)"
    ):
        read(root)


def test_links_are_followed_once(tmp_path):
    root = make(tmp_path / "set", "cat/*2.png")
    pool = make(tmp_path / "pool", "dog/*3.png", "single.png")
    os.symlink(pool / "dog", root / "dog")
    os.symlink(pool / "dog", root / "zebra")  # the same folder again
    os.symlink(root, root / "cat" / "loop")
    os.symlink(pool / "single.png", root / "cat" / "linked.png")
    os.symlink(tmp_path / "nowhere.png", root / "cat" / "broken.tif")
    os.symlink(tmp_path / "nowhere.txt", root / "cat" / "broken.txt")
    os.remove(root / "cat" / "broken.tif")
    assert read(root) == ({"train": {"cat": 3, "dog": 3}}, ["1 broken links"])
    os.symlink(root, tmp_path / "link")
    assert read(tmp_path / "link")[0] == {"train": {"cat": 3, "dog": 3}}


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    root, scandir = make(tmp_path / "set", "cat/*1.png", "dog/*1.png"), os.scandir

    def refused(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match=r"^folder .*dog cannot be read: Permission denied\.$"):
        read(root)


def test_splits_beside_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="has test, train as splits, but extra beside them; use only folders of splits"):
        read(make(tmp_path / "set", "train/*1.png", "test/*1.png", "extra/*1.png"))


@pytest.mark.parametrize("asked", ["train", "training", "Train", "test", "testing", "eval", "val", "validation", "dev"])
def test_a_split_is_found_by_any_of_its_names(tmp_path, asked):
    root = make(tmp_path / "set", "Training/*3.png", "Testing/*2.png", "valid/*1.png")
    expected = {"train": 3, "test": 2, "validation": 1}[split_of(asked)]
    assert len(Splits(Source(str(root))).open(asked)) == expected


def test_the_same_split_by_another_name_is_not_validated_on():
    with pytest.raises(UserError, match="has images of its split 'training', which is trained on"):
        Source("a", split="training").refuse_to_validate_on("train")
    Source("a", split="training").refuse_to_validate_on("testing")


def test_a_link_a_split_and_a_class_are_the_same_in_a_stream(tmp_path):
    root = make(tmp_path / "set", "Training/cat/x/*2.png", "Testing/cat/*1.png", "Testing/dog/*1.png")
    os.symlink(make(tmp_path / "pool", "*3.png"), root / "Training" / "dog")
    data, validation = open_stream(Source(str(root)), sample_size=4, shuffle_buffer_size=1)
    assert (data.next(5)[1].tolist(), data.label_names) == ([0, 0, 1, 1, 1], ["cat", "dog"])
    assert validation.labels.tolist() == [0, 1]


def test_max_images_takes_from_all_classes(tmp_path):
    root = make(tmp_path / "set", "a/*9.png", "b/*9.png", "c/*3.png")
    for most, counts in ((12, [5, 4, 3]), (4, [2, 1, 1]), (3, [1, 1, 1]), (21, [9, 9, 3]), (99, [9, 9, 3])):
        labels = load_images(str(root), sample_size=4, max_images=most).labels.tolist()
        assert [labels.count(label) for label in range(3)] == counts
        assert labels == sorted(labels)


# ---- any folder


FOLDERS = st.sampled_from(
    ["cat", "dog", "Dog 2", "train", "Training", "test", "VAL", "dev", "__MACOSX", ".git", "@eaDir", "x"]
)
FILES = st.sampled_from(
    ["0.png", "1.JPG", "2.webp", "._0.png", ".DS_Store", "notes.txt", "t.csv", "s.parquet", "a.HEIC", "3.tif", "plain"]
)


def oracle(names: list[tuple[str, ...]]) -> dict:
    """What a folder of ``names`` is to be read as, by the rules of docs/data.md, in the plainest way."""
    junk = ("__MACOSX", ".git", "@eaDir")
    known = (".png", ".jpg", ".webp", ".tif", *({".heic"} & image_suffixes()))
    pictures = [n for n in names if not set(n[:-1]) & set(junk) and n[-1][0] != "." and n[-1].lower().endswith(known)]

    def inside(names):  # through single folders
        while len({n[0] for n in names}) == 1 and min(map(len, names)) > 1:
            names = [n[1:] for n in names]
        return names

    def classes(names):
        names = inside(names)
        folders = [n for n in names if len(n) > 1]
        if len({n[0] for n in folders}) < 2 or len(folders) < len(names) - len(folders):
            return Counter([None] * len(names))
        return Counter(n[0] for n in folders)

    splits = {"train": "train", "Training": "train", "test": "test", "VAL": "validation", "dev": "validation"}
    while len({n[0] for n in pictures}) == 1 and min(map(len, pictures)) > 1 and pictures[0][0] not in splits:
        pictures = [n[1:] for n in pictures]
    folders = [n for n in pictures if len(n) > 1]
    first = {n[0] for n in folders}
    if first and first <= set(splits):
        parts = {s: [n[1:] for n in folders if splits[n[0]] == s] for s in splits.values()}
        found = {s: dict(classes(part)) for s, part in parts.items() if part}
        for split, part in parts.items():  # a single folder is a class where it is one of the training split's
            if part and None in found[split] and {n[0] for n in part} <= set(found.get("train", ())):
                found[split] = dict(Counter(n[0] for n in part))
        return found
    known = {splits[name] for name in first if name in splits}
    if "train" in known and len(known) > 1:
        return {"error": {}}
    seconds = [splits.get(n[1]) if len(n) > 2 else None for n in pictures]
    if pictures and all(seconds) and "train" in seconds:
        parts = {s: [n for n, second in zip(pictures, seconds) if second == s] for s in seconds}
        return {s: dict(Counter(n[0] if len(first) > 1 else None for n in part)) for s, part in parts.items()}
    return {"train": dict(classes(pictures))} if pictures else {"error": {}}


@settings(deadline=None)
@given(st.sets(st.tuples(st.lists(FOLDERS, max_size=3).map(tuple), FILES), max_size=12), st.booleans())
def test_any_folder_is_read_as_the_rules_say(tmp_path_factory, entries, linked):
    root = tmp_path_factory.mktemp("tree") / "set"
    names = sorted((*folders, file) for folders, file in entries)
    place = root.with_name("pool") if linked else root
    for name in names:
        make(
            place,
            "/".join(name),
            content=PNG if not name[-1].endswith((".txt", ".csv", ".parquet", "plain")) else b"x,y\n1,2\n",
        )
    root.mkdir(exist_ok=True)
    place.mkdir(exist_ok=True)
    for entry in place.iterdir() if linked else ():  # every folder and file of the first level is a link
        os.symlink(entry, root / entry.name)
    try:
        found, notes = read(root)
    except UserError as error:
        assert "\n" not in str(error)
        found, notes = {"error": {}}, []
    assert found == oracle(names)
    used = sum(sum(classes.values()) for classes in found.values())
    assert json.dumps(notes)
    assert used <= len(names)


def test_a_folder_is_found_from_where_one_is(tmp_path, monkeypatch):
    """As the README gives it: relative to the working folder."""
    (tmp_path / "mine").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(tmp_path / "mine" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    assert load_images("mine", sample_size=8).images[:, 0, 0, 0].tolist() == [0, 50, 100]
