"""Pictures in one file: arrays, CIFAR's batches, archives, tables of bytes or paths, WebDataset."""

import io
import itertools
import json
import pickle
import tarfile
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import flat, told
from PIL import Image

from ddpm_hf.data import load_images, open_data, open_stream
from ddpm_hf.errors import UserError
from ddpm_hf.source import FILE_KINDS, Source

GRAY = np.arange(6, dtype=np.uint8)[:, None, None] * 10 + np.zeros((6, 8, 8), np.uint8)  # 0, 10, ..., 50
COLOR = np.stack([GRAY, GRAY + 1, GRAY + 2], 3)
LABELS = np.array([0, 1, 2] * 2)
VALUES = [0, 10, 20, 30, 40, 50]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def opened(path, **options):
    return open_data([Source(str(path))], sample_size=8, **options)


# ---- arrays

ARRAYS = {
    # name -> (arrays, channels, labels of the training images, number of validation images or None)
    "images and labels": ({"images": GRAY, "labels": LABELS}, 1, LABELS, None),
    "N, H, W, 3": ({"images": COLOR, "labels": LABELS}, 3, LABELS, None),
    "N, H, W, 1": ({"images": GRAY[..., None]}, 1, None, None),
    "N, 3, H, W": ({"images": np.moveaxis(COLOR, 3, 1)}, 3, None, None),
    "N, 1, H, W": ({"x": GRAY[:, None], "y": LABELS}, 1, LABELS, None),
    "flat": ({"data": GRAY.reshape(6, 64), "target": LABELS}, 1, LABELS, None),
    "flat planes": ({"data": np.moveaxis(COLOR, 3, 1).reshape(6, 192)}, 3, None, None),
    "x_train and x_test": (
        {"x_train": GRAY, "y_train": LABELS, "x_test": GRAY[:2], "y_test": LABELS[:2]},
        1,
        LABELS,
        2,
    ),
    "MedMNIST": (
        {"train_images": GRAY, "train_labels": LABELS[:, None], "val_images": GRAY[:3], "val_labels": LABELS[:3, None]}
        | {"test_images": GRAY[:2], "test_labels": LABELS[:2, None]},
        1,
        LABELS,
        3,
    ),
    "without names": ({"arr_0": GRAY, "arr_1": LABELS}, 1, LABELS, None),
    "one-hot": ({"images": GRAY, "labels": np.eye(3, dtype=np.float32)[LABELS]}, 1, LABELS, None),
    "names for labels": ({"images": GRAY, "labels": np.array(["a", "b", "c"] * 2)}, 1, LABELS, None),
    "large labels": ({"images": GRAY, "labels": LABELS * 10**6}, 1, LABELS, None),
    "64-bit pixels": ({"images": GRAY.astype(np.int64)}, 1, None, None),
    "floats in 0..1, color": ({"images": (COLOR / 255).astype(np.float32)}, 3, None, None),
    "floats in -1..1, color": (
        {"images": (np.append(COLOR, np.full((1, 8, 8, 3), 255), 0) / 127.5 - 1)},
        3,
        None,
        None,
    ),
    "other arrays beside": ({"images": GRAY, "seed": np.array(3), "features": np.zeros((6, 2))}, 1, None, None),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(tmp_path, name):
    arrays, channels, labels, held = ARRAYS[name]
    np.savez(tmp_path / "a.npz", **arrays)
    train, validation = opened(tmp_path / "a.npz")
    assert told(train.images)[:6] == VALUES
    assert train.num_channels == channels
    assert channels == 1 or train.images[1, :, 4, 4].tolist() == [10, 11, 12]
    assert (train.labels is None) == (labels is None)
    assert labels is None or train.labels.tolist() == labels.tolist()
    assert (validation and len(validation)) == held


def test_deep_arrays_are_scaled(tmp_path):
    np.save(tmp_path / "a.npy", GRAY.astype(np.uint16) * 20)
    np.save(tmp_path / "b.npy", (GRAY / 50).astype(np.float32))
    for name in "ab":
        assert told(opened(tmp_path / f"{name}.npy")[0].images) == [0, 51, 102, 153, 204, 255]


def test_arrays_in_a_folder(tmp_path):
    np.save(tmp_path / "train_0.npy", GRAY)
    np.save(tmp_path / "train_1.npy", GRAY + 100)
    np.save(tmp_path / "test.npy", GRAY[:1] + 7)
    train, validation = opened(tmp_path)
    assert (told(train.images), told(validation.images)) == ([*VALUES, *(v + 100 for v in VALUES)], [7])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": GRAY[0]}, r"has no images: its arrays are weights uint8 \(8, 8\); call them images and labels"),
        ({"images": GRAY[0]}, r"images of .* are uint8 \(8, 8\); expected"),
        ({"images": np.zeros((2, 8, 8, 7), np.uint8)}, r"are uint8 \(2, 8, 8, 7\); expected"),
        ({"images": GRAY[:0]}, "has no images"),
        ({"images": GRAY, "labels": LABELS[:4]}, r"has labels of shape \(4,\) for 6 images"),
        ({"images": GRAY, "labels": LABELS + 0.5}, "labels of .* are float64; expected whole numbers or names"),
        ({"images": np.array([None])}, "cannot be read: "),
        ({"images": COLOR.astype(np.float32) * 9}, r"lie in 0..468; expected 0..1, -1..1 or 0..255"),
        ({"images": np.full((2, 8, 8, 3), np.nan)}, "have pixels that are not numbers"),
    ],
)
def test_other_arrays_are_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


# ---- CIFAR


def batch(path, images, labels, more=None):
    data = np.moveaxis(images, 3, 1).reshape(len(images), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({b"data": data, b"labels": labels.tolist()} | (more or {}), protocol=2))


def test_cifar_10_and_100(tmp_path):
    ten = tmp_path / "ten" / "cifar-10-batches-py"
    batch(ten / "data_batch_1", COLOR[:4], LABELS[:4])
    batch(ten / "data_batch_2", COLOR[4:], LABELS[4:])
    batch(ten / "test_batch", COLOR[:2], LABELS[:2])
    (ten / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"a", b"b", b"c"]}, protocol=2))
    hundred = tmp_path / "hundred"
    for split in ("train", "test"):
        batch(hundred / split, COLOR, LABELS * 0, {b"fine_labels": LABELS.tolist()})
    (hundred / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"a", b"b", b"c"]}, protocol=2))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(ten, ten.name)
    for path, held in ((ten.parent, 2), (ten, 2), (hundred, 6), (tmp_path / "cifar-10-python.tar.gz", 2)):
        train, validation = opened(path)
        assert told(train.images) == VALUES
        assert train.images[1, :, 4, 4].tolist() == [10, 11, 12]
        assert (train.labels.tolist(), train.label_names) == (LABELS.tolist(), ["a", "b", "c"])
        assert len(validation) == held


class Harm:
    def __reduce__(self):
        return print, ("harm",)


def test_a_pickle_that_does_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Harm()}))
    with pytest.raises(UserError, match=r"cannot be read as a batch of CIFAR: it asks for builtins.print") as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": 3}))
    with pytest.raises(UserError, match="is no batch of CIFAR"):
        opened(tmp_path)


# ---- archives

TREES = {
    # name -> (files, brightness of the training images by class)
    "flat": ([f"{i}.png" for i in range(3)], {None: [0, 1, 2]}),
    "classes": (["set/a/0.png", "set/b/1.png", "set/b/2.png"], {"a": [0], "b": [1, 2]}),
    "junk of a Mac": (["a/0.png", "b/1.png", "__MACOSX/a/2.png", "a/._3.png"], {"a": [0], "b": [1]}),
    "splits": (["train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png"], {"a": [0], "b": [1]}),
}


def archive(path, files) -> str:
    contents = {name: flat(i, (8, 8)) for i, name in enumerate(files)}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in contents.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w:" + {".tar": "", ".tgz": "gz", ".xz": "xz", ".gz": "gz"}[path.suffix]) as file:
            add(file, contents)
    return str(path)


def add(file, contents):
    for name, content in contents.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".tar.xz"])
@pytest.mark.parametrize("name", TREES)
def test_archives(tmp_path, suffix, name):
    files, expected = TREES[name]
    path = archive(tmp_path / f"a{suffix}", files)
    train, validation = opened(path)
    classes = [None] * len(train) if train.labels is None else [train.label_names[i] for i in train.labels]
    assert {c: [v for v, other in zip(told(train.images), classes) if other == c] for c in classes} == expected
    assert (validation and len(validation)) == (2 if name == "splits" else None)
    stream, _ = open_stream(Source(path), sample_size=8, validation_split=None, shuffle_buffer_size=1)
    assert told(stream.next(len(train))[0]) == told(train.images)


def test_a_changed_archive_is_extracted_anew(tmp_path):
    path = archive(tmp_path / "a.zip", ["0.png", "1.png"])
    assert len(load_images(path, sample_size=8)) == 2
    archive(tmp_path / "a.zip", ["0.png", "1.png", "2.png"])
    assert len(load_images(path, sample_size=8)) == 3


def test_several_archives(tmp_path):
    for folder, names in (
        ("splits", ["train.zip", "test.zip"]),
        ("parts", ["p1.zip", "p2.zip"]),
        ("kinds", ["a.zip", "b.zip"]),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            archive(tmp_path / folder / name, [f"{name[0:2]}{i}.png" for i in range(2)])
    train, validation = opened(tmp_path / "splits")
    assert (len(train), len(validation)) == (2, 2)
    parts = opened(tmp_path / "parts")[0]
    assert (len(parts), parts.labels) == (4, None)
    assert opened(tmp_path / "kinds")[0].label_names == ["a", "b"]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_a_damaged_archive_is_one_line_and_leaves_nothing(tmp_path, suffix):
    path = archive(tmp_path / f"a{suffix}", ["0.png", "1.png", "2.png"])
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: 1550 if suffix == ".tar" else len(data) // 3])
    with pytest.raises(UserError, match="cannot be extracted: ") as error:
        opened(path)
    assert "\n" not in str(error.value)
    assert not [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_dir() and len(entry.name) > 30]


def test_a_tar_does_not_write_elsewhere(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        add(file, {"../../outside.png": flat(1, (8, 8)), "0.png": flat(0, (8, 8))})
    with pytest.raises(UserError, match="cannot be extracted: "):
        opened(tmp_path / "a.tar")
    assert not list(tmp_path.rglob("outside.png"))


# ---- WebDataset


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path, streaming):
    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard:03}.tar", "w") as file:
            for i in range(3):
                key, value = f"{3 * shard + i:05}", 10 * (3 * shard + i)
                add(
                    file, {f"{key}.png": flat(value, (8, 8)), f"{key}.cls": str(i).encode(), f"{key}.txt": b"a picture"}
                )
    if streaming:
        data, _ = open_stream(
            Source(str(tmp_path), label_column="cls", label_names=("a", "b", "c")),
            sample_size=8,
            validation_split=None,
            shuffle_buffer_size=1,
        )
        images, labels = data.next(6)
        assert (told(images), labels.tolist()) == (VALUES, LABELS.tolist())
        return
    train, _ = opened(tmp_path)
    assert (told(train.images), train.labels.tolist()) == (VALUES, LABELS.tolist())
    assert train.captions == ["a picture"] * 6
    assert told(opened(tmp_path / "shard-001.tar")[0].images) == VALUES[3:]


# ---- tables


def paths_of(folder) -> list[str]:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for i, value in enumerate(VALUES):
        Image.new("L", (8, 8), value).save(folder / "pictures" / f"{i}.png")
    return [f"pictures/{i}.png" for i in range(6)]


BYTES = [flat(value, (8, 8)) for value in VALUES]
TABLES = {
    "struct": lambda folder: {"image": [{"bytes": data, "path": None} for data in BYTES]},
    "struct with names": lambda folder: {"img": [{"bytes": data, "path": "x.png"} for data in BYTES]},
    "struct, path first": lambda folder: {"image": [{"path": "x.png", "bytes": data} for data in BYTES]},
    "struct with more": lambda folder: {"image": [{"bytes": data, "path": "x", "size": 3} for data in BYTES]},
    "struct of bytes": lambda folder: {"image": [{"bytes": data} for data in BYTES]},
    "bytes": lambda folder: {"image": BYTES},
    "bytes of another name": lambda folder: {"content": BYTES},
    "paths": lambda folder: {"image": [str(folder / path) for path in paths_of(folder)]},
    "paths from the folder": lambda folder: {"image": paths_of(folder)},
    "paths of another name": lambda folder: {"file_name": paths_of(folder)},
    "struct of paths": lambda folder: {"image": [{"bytes": None, "path": path} for path in paths_of(folder)]},
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name, streaming):
    columns = TABLES[name](tmp_path / "set")
    (tmp_path / "set").mkdir(exist_ok=True)
    path = tmp_path / "set" / "a.parquet"
    pq.write_table(pa.table({**columns, "label": LABELS}), path)
    if streaming:
        source = Source(str(path), label_names=("a", "b", "c"))
        data, _ = open_stream(source, sample_size=8, validation_split=None, shuffle_buffer_size=1)
        images, labels = data.next(6)
        assert (told(images), labels.tolist()) == (VALUES, LABELS.tolist())
        return
    data = load_images(str(path), sample_size=8)
    assert (told(data.images), data.labels.tolist(), data.label_names) == (VALUES, LABELS.tolist(), ["0", "1", "2"])


def test_a_table_of_the_pictures_beside_it_wins_and_a_stray_one_does_not(tmp_path):
    root = tmp_path / "set"
    paths = paths_of(root)
    pq.write_table(pa.table({"image": paths, "label": LABELS}), root / "all.parquet")
    assert load_images(str(root), sample_size=8).labels.tolist() == LABELS.tolist()
    for rows in ({"image": paths[:2]}, {"a": [1, 2]}, {"text": ["x"] * 9}):
        pq.write_table(pa.table(rows), root / "all.parquet")
        data = load_images(str(root), sample_size=8)
        assert (len(data), data.left_out) == (6, ("1 .parquet",))


def test_splits_of_tables_by_files_and_by_folders(tmp_path):
    for name, values in (("train/0", VALUES), ("test/0", VALUES[:2]), ("valid/0", VALUES[:1])):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        rows = pa.table({"image": [flat(value, (8, 8)) for value in values]})
        pq.write_table(rows, tmp_path / "set" / f"{name}.parquet")
    train, validation = opened(tmp_path / "set")
    assert (len(train), len(validation), validation.splits) == (6, 1, ("validation",))
    assert len(opened(tmp_path / "set", validation_split="testing")[1]) == 2


def test_saved_sets_with_any_names_for_splits(tmp_path):
    rows = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in BYTES]})
    rows = rows.cast_column("image", datasets.Image())
    datasets.DatasetDict({"training": rows, "dev": rows.select([0])}).save_to_disk(tmp_path / "saved")
    train, validation = opened(tmp_path / "saved")
    assert (len(train), len(validation)) == (6, 1)


def test_every_kind_of_file_is_in_the_docs_and_in_the_message(tmp_path, root):
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "a.h5"))
    told = (root / "docs" / "data.md").read_text()
    for suffix in itertools.chain(*FILE_KINDS.values()):
        assert suffix in str(error.value)
        assert f"`{suffix}`" in told or suffix in FILE_KINDS["idx"]


def test_a_file_that_is_named_like_a_split_is_trained_on(tmp_path):
    np.save(tmp_path / "test.npy", GRAY)
    pq.write_table(pa.table({"image": BYTES}), tmp_path / "val.parquet")
    assert [len(opened(tmp_path / name)[0]) for name in ("test.npy", "val.parquet")] == [6, 6]


def test_splits_by_folders_from_anywhere(tmp_path, monkeypatch):
    """The names above the data set's own folder say nothing."""
    for split, values in (("train", VALUES), ("test", VALUES[:2])):
        (tmp_path / "test set" / "mine" / split).mkdir(parents=True)
        np.save(tmp_path / "test set" / "mine" / split / "0.npy", GRAY[: len(values)])
        np.save(tmp_path / "test set" / "mine" / split / "1.npy", GRAY[: len(values)])
    monkeypatch.chdir(tmp_path)
    for path in ("test set/mine", str(tmp_path / "test set" / "mine")):
        train, validation = open_data([Source(path)], sample_size=8)
        assert (len(train), len(validation)) == (12, 4)


# ---- what is no data set


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/pictures.zip", r"is an address; download it first and give the file or folder, or a Hub"),
        ("s3://bucket/pictures", "is an address; download it first"),
        ("hf://datasets/a/b", "is an address; download it first"),
        ("0.png", "is a single picture; give the folder of pictures"),
        ("metadata.csv", r"must end in \.parquet, .*; give the folder that it lies in"),
        ("weights.safetensors", r"must end in \.parquet, \.arrow, \.npz, \.npy, \.zip"),
    ],
)
def test_other_things_are_one_line(tmp_path, name, message):
    path = name if "://" in name else str(tmp_path / name)
    if "://" not in name:
        (tmp_path / name).write_text(json.dumps("x"))
    with pytest.raises(UserError, match=message) as error:
        load_images(path)
    assert "\n" not in str(error.value)


def test_an_array_with_a_pixel_that_is_no_number_is_one_line(tmp_path):
    images = np.full((5, 8, 8), 0.5, np.float32)
    images[3, 2, 2] = np.nan
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(UserError, match=r"image 3 of .*a.npz has pixels that are not numbers"):
        open_data([Source(str(tmp_path / "a.npz"))], sample_size=8)
