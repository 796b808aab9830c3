"""Labels and captions beside pictures: found where they are plain, listed where several columns could be meant."""

import csv
import io
import json

import datasets
import pytest
from making import flat, told
from PIL import Image

from ddpm_hf.data import load_images, open_data
from ddpm_hf.errors import UserError
from ddpm_hf.source import Source, split_of


@pytest.fixture
def folder(tmp_path):
    """Six pictures, 0.png to 5.png, whose brightness is ten times their number."""
    for i in range(6):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("L", (8, 8), 10 * i).save(tmp_path / "set" / f"{i}.png")
    return tmp_path / "set"


def table(path, rows: list[dict], delimiter=",", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))


KINDS = ["cat", "dog"] * 3
NAMED = [{"file_name": f"{i}.png", "label": kind} for i, kind in enumerate(KINDS)]
TABLES = {
    # name -> (file, rows, options, labels by name, captions)
    "metadata.csv": ("metadata.csv", NAMED, {}, KINDS, None),
    "metadata.jsonl": ("metadata.jsonl", NAMED, {}, KINDS, None),
    "semicolons": ("metadata.csv", NAMED, {"delimiter": ";"}, KINDS, None),
    "tabs": ("labels.tsv", NAMED, {"delimiter": "\t"}, KINDS, None),
    "a byte order mark": ("metadata.csv", NAMED, {"encoding": "utf-8-sig"}, KINDS, None),
    "UTF-16, of a spreadsheet": ("metadata.csv", NAMED, {"encoding": "utf-16", "delimiter": "\t"}, KINDS, None),
    "another name": ("train.csv", NAMED, {}, KINDS, None),
    "stems, as of Kaggle": (
        "labels.csv",
        [{"id": str(i), "breed": kind} for i, kind in enumerate(KINDS)],
        {},
        KINDS,
        None,
    ),
    "paths": (
        "metadata.csv",
        [{"path": f".\\{i}.png", "class": kind} for i, kind in enumerate(KINDS)],
        {},
        KINDS,
        None,
    ),
    "a column of another name": (
        "metadata.jsonl",
        [{"file_name": f"{i}.png", "breed": i % 2} for i in range(6)],
        {},
        ["0", "1"] * 3,
        None,
    ),
    "captions": (
        "metadata.csv",
        [{"file_name": f"{i}.png", "text": f"a {kind}, {i}"} for i, kind in enumerate(KINDS)],
        {},
        None,
        [f"a {kind}, {i}" for i, kind in enumerate(KINDS)],
    ),
    "labels and captions": (
        "metadata.csv",
        [{"file_name": f"{i}.png", "label": kind, "caption": f"a {kind}"} for i, kind in enumerate(KINDS)],
        {},
        KINDS,
        [f"a {kind}" for kind in KINDS],
    ),
    "a caption is missing": (
        "metadata.csv",
        [{"file_name": f"{i}.png", "text": "" if i else "first"} for i in range(6)],
        {},
        None,
        ["first", "", "", "", "", ""],
    ),
    "measures are no labels": (
        "metadata.csv",
        [{"file_name": f"{i}.png", "width": 8, "depth": i / 7, "note": f"n{i}"} for i in range(6)],
        {},
        None,
        None,
    ),
    "large numbers": (
        "metadata.csv",
        [{"file_name": f"{i}.png", "label": 10**6 * (i % 2)} for i in range(6)],
        {},
        ["0", "1000000"] * 3,
        None,
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_beside_pictures(folder, name):
    file, rows, options, labels, captions = TABLES[name]
    table(folder / file, rows, **options)
    data = load_images(str(folder), sample_size=8)
    assert data.images[:, 0, 4, 4].tolist() == [0, 10, 20, 30, 40, 50]
    assert (data.labels is None) == (labels is None)
    assert labels is None or [data.label_names[label] for label in data.labels] == labels
    assert data.captions == captions
    assert not data.notes


def test_several_columns_that_could_be_labels_are_listed(folder):
    rows = [{"file_name": f"{i}.png", "breed": KINDS[i], "sex": "mf"[i // 3], "age": i / 2} for i in range(6)]
    table(folder / "metadata.csv", rows)
    data = load_images(str(folder), sample_size=8)
    assert data.labels is None
    assert data.notes[0].startswith("columns breed, sex of data set ")
    assert data.notes[0].endswith("could be labels: label_column names the one")
    data = load_images(str(folder), sample_size=8, label_column="sex")
    assert (data.labels.tolist(), data.label_names) == ([1, 1, 1, 0, 0, 0], ["f", "m"])
    with pytest.raises(UserError, match="has no column 'sexes'; did you mean 'sex'"):
        load_images(str(folder), label_column="sexes")
    assert load_images(str(folder), sample_size=8, caption_column="breed").captions == KINDS


def test_pictures_that_the_table_does_not_name_are_left_out(folder):
    table(folder / "metadata.csv", [*NAMED[:4], {"file_name": "gone.png", "label": "dog"}])
    data = load_images(str(folder), sample_size=8)
    assert len(data) == 4
    assert data.left_out == ("2 pictures that metadata.csv does not name",)
    table(folder / "metadata.csv", NAMED[:2])  # of few pictures: it is of something else
    data = load_images(str(folder), sample_size=8)
    assert (len(data), data.labels, data.left_out) == (6, None, ("1 .csv",))


def test_a_table_wins_over_classes_only_with_labels(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "set" / name)
    rows = [{"file_name": name, "text": f"no. {name[2]}"} for name in ("a/0.png", "a/1.png", "b/2.png")]
    table(tmp_path / "set" / "metadata.csv", rows)
    data = load_images(str(tmp_path / "set"), sample_size=8)
    assert (data.labels.tolist(), data.label_names, data.captions) == (
        [0, 0, 1],
        ["a", "b"],
        ["no. 0", "no. 1", "no. 2"],
    )
    rows = [{**row, "label": "xyy"[i]} for i, row in enumerate(rows)]
    table(tmp_path / "set" / "metadata.csv", rows)
    data = load_images(str(tmp_path / "set"), sample_size=8)
    assert (data.labels.tolist(), data.label_names) == ([0, 1, 1], ["x", "y"])


def test_a_table_in_each_split(tmp_path):
    for split, kinds in (("train", "abab"), ("test", "ba")):
        for i in range(len(kinds)):
            (tmp_path / "set" / split).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(tmp_path / "set" / split / f"{i}.png")
        rows = [{"file_name": f"{i}.png", "label": kind} for i, kind in enumerate(kinds)]
        table(tmp_path / "set" / split / "metadata.csv", rows)
    train, test = open_data([Source(str(tmp_path / "set"))], sample_size=8)
    assert (train.labels.tolist(), test.labels.tolist(), train.label_names) == ([0, 1, 0, 1], [1, 0], ["a", "b"])


@pytest.mark.parametrize("column", ["split", "Subset", "data set"])
@pytest.mark.parametrize("words", [("train", "test"), ("TRAINING", "eval"), ("train", "val")])
def test_a_table_that_tells_the_splits(folder, column, words):
    rows = [{**row, column: words[i == 2]} for i, row in enumerate(NAMED)]
    table(folder / "metadata.csv", rows)
    train, other = open_data([Source(str(folder))], sample_size=8)
    assert (told(train.images), told(other.images)) == ([0, 10, 30, 40, 50], [20])
    assert (train.labels.tolist(), other.labels.tolist(), other.splits) == ([0, 1, 1, 0, 1], [0], (split_of(words[1]),))
    rows[1][column] = "unknown"  # then it is nothing but a column
    table(folder / "metadata.csv", rows)
    assert len(open_data([Source(str(folder))], sample_size=8)[0]) == 6


def test_a_damaged_metadata_file_is_one_line(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png"\n')
    with pytest.raises(UserError, match=r"metadata.jsonl cannot be read: ") as error:
        load_images(str(folder))
    assert "\n" not in str(error.value)
    (folder / "metadata.jsonl").rename(folder / "log.jsonl")
    assert load_images(str(folder), sample_size=8).left_out == ("1 .jsonl",)


def test_texts_beside_pictures_are_captions(folder):
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"a picture,\nnumber {i}\n")
    data = load_images(str(folder), sample_size=8)
    assert data.captions == [*(f"a picture, number {i}" for i in range(5)), ""]
    assert not data.notes
    train, held = open_data([Source(str(folder))], sample_size=8, max_images=3)
    assert (train.captions, held) == (data.captions[:3], None)


def test_boxes_beside_pictures_are_no_captions(folder):
    for i in range(6):
        (folder / f"{i}.txt").write_text("0 0.5 0.5 0.1 1e-3\n1 0.2 0.2 0.1 0.1\n")
    data = load_images(str(folder), sample_size=8)
    assert data.captions is None
    assert data.notes[0].startswith("the .txt files beside the pictures hold numbers")


# ---- tables with the pictures in them


@pytest.mark.parametrize(
    ("column", "values", "names"),
    [
        ("labels", [3, 7, 3, 7], ["3", "7"]),
        ("Label", ["b", "a", "b", "a"], ["a", "b"]),
        ("category", ["b", "a", "b", "a"], ["a", "b"]),
        ("cls", [0, 1, 0, 1], ["0", "1"]),
        ("breed", ["b", "a", "b", "a"], ["a", "b"]),
        ("is_cat", [False, True, False, True], ["False", "True"]),
        ("caption", ["b", "a", "b", "a"], None),
        ("weight", [0.5, 1.5, 0.5, 1.5], None),
        ("id", [0, 1, 0, 1], None),
        ("name", ["w", "x", "y", "z"], None),
    ],
)
def test_columns_of_parquet(tmp_path, column, values, names):
    images = [{"bytes": flat(i, (8, 8)), "path": None} for i in range(4)]
    rows = datasets.Dataset.from_dict({"image": images, column: values})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    data = load_images(str(tmp_path / "a.parquet"), sample_size=8)
    assert data.label_names == names
    assert names is None or [names[label] for label in data.labels] == [str(value) for value in values]
    assert data.captions == (values if column == "caption" else None)


def test_classes_without_images_stay_classes_and_are_told(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    images = [{"bytes": flat(i, (8, 8)), "path": None} for i in range(4)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 2, 0, 2]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    data = load_images(str(tmp_path / "a.parquet"), sample_size=8)
    assert (data.num_classes, data.label_names) == (3, ["a", "b", "c"])
    assert data.notes == ("classes without images (1): b",)
    data = load_images(str(tmp_path / "a.parquet"), sample_size=8, label_names=("x", "y", "z", "w"))
    assert data.notes == ("classes without images (2): y, w",)
