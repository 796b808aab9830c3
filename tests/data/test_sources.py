"""Sources: every layout gives the same arrays, padding is exact, and what is wrong with a data set is one line."""

import gzip
import zipfile

import datasets
import numpy as np
import pytest
import torch
from helpers import BOTH_STORAGES, tiny_pipeline, tiny_unet
from making import LABELS, NAMES, PIXELS, RNG, table, told, write_idx
from PIL import Image

from ddpm_hf.data import Source, load_images, open_stream
from ddpm_hf.errors import UserError
from ddpm_hf.pipeline import MyDDPMPipeline


@pytest.fixture
def sources(tmp_path):
    """The same six images in every layout, by name."""
    idx = tmp_path / "idx"
    idx.mkdir()
    write_idx(idx / "train-images-idx3-ubyte.gz", PIXELS)
    write_idx(idx / "train-labels-idx1-ubyte.gz", LABELS)
    folder = tmp_path / "folder"
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS)):
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / NAMES[label] / f"{i}.png")
    table().to_parquet(tmp_path / "images.parquet")
    (tmp_path / "parquets").mkdir()
    table().to_parquet(tmp_path / "parquets" / "train-00000.parquet")
    table().save_to_disk(tmp_path / "saved")
    return {
        "idx": idx,
        "idx file": idx / "train-images-idx3-ubyte.gz",
        "folder": folder,
        "parquet": tmp_path / "images.parquet",
        "parquet folder": tmp_path / "parquets",
        "save_to_disk": tmp_path / "saved",
        "arrow": next((tmp_path / "saved").glob("*.arrow")),
    }


@pytest.mark.parametrize("kind", ["idx", "idx file", "folder", "parquet", "parquet folder", "save_to_disk", "arrow"])
def test_every_source_gives_the_same_images(sources, kind):
    data = load_images(str(sources[kind]), label_names=tuple(NAMES))
    assert (data.images.shape, data.images.dtype) == ((6, 1, 32, 32), np.uint8)
    assert (data.num_channels, data.num_classes, data.output_size) == (1, 3, (28, 28))
    assert data.label_names == NAMES
    cropped = data.images[:, 0, 2:30, 2:30]
    order = np.lexsort((np.arange(6), LABELS)) if kind == "folder" else np.arange(6)  # folders come sorted by class
    assert np.array_equal(cropped, PIXELS[order])
    assert np.array_equal(data.labels, LABELS[order])
    assert data.images.sum() == PIXELS.sum()


@BOTH_STORAGES
def test_from_the_hub(hub, sources):
    import huggingface_hub

    api = huggingface_hub.HfApi()
    api.create_repo("alice/clothes", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=sources["parquet"],
        path_in_repo="data/train-00000-of-00001.parquet",
        repo_id="alice/clothes",
        repo_type="dataset",
    )
    data = load_images("alice/clothes")
    assert np.array_equal(data.images[:, 0, 2:30, 2:30], PIXELS)
    assert data.label_names == NAMES
    for name, split, message in [
        ("alice/none", "train", "'alice/none' cannot be loaded"),
        ("alice/clothes", "validation", "'alice/clothes' cannot be loaded: .*validation"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            load_images(name, split=split)
        assert "\n" not in str(error.value)


def test_padding_is_undone_exactly_by_the_pipeline(sources):
    from ddpm_hf.scheduler import MyDDPMScheduler

    data = load_images(str(sources["idx"]))
    pipeline = MyDDPMPipeline(tiny_unet(), MyDDPMScheduler(), output_height=28, output_width=28)
    images = pipeline.postprocess(data.batch(np.arange(6))[0])
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), PIXELS)


@pytest.mark.parametrize("size", [(5, 8), (7, 7), (8, 3)])
def test_odd_paddings_are_undone_exactly(tmp_path, size):
    pixels = RNG.integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = load_images(str(tmp_path), sample_size=8)
    image = tiny_pipeline(output_size=data.output_size).postprocess(data.batch(np.array([0]))[0])[0]
    assert np.array_equal(np.asarray(image), pixels)


def test_batches_are_in_minus_one_to_one(sources):
    images, labels = load_images(str(sources["idx"])).batch(np.array([3, 0]))
    assert (images.shape, images.dtype) == ((2, 1, 32, 32), torch.float32)
    assert torch.equal(((images[0, 0, 2:30, 2:30] + 1) * 127.5).round().byte(), torch.from_numpy(PIXELS[3]))
    assert images.min() >= -1
    assert images.max() <= 1
    assert labels.tolist() == [2, 2]


def test_large_images_are_scaled_and_cropped(tmp_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 200  # the centre
    Image.fromarray(wide).save(tmp_path / "a.png")
    data = load_images(str(tmp_path), sample_size=16)
    assert np.abs(data.images[0].astype(int) - 200).max() < 60
    assert (data.images[0, :, :, 4:12] == 200).all()


# ---- what is wrong with a data set


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: p.mkdir(), {}, "has no images, no parquet, arrow or idx files"),
        (lambda p: (p.mkdir(), (p / "a.txt").write_text("x")), {}, "has no images"),
        (lambda p: p.write_text("x"), {}, "must end in .parquet"),
        (lambda p: None, {}, "does not exist"),
        (
            lambda p: (p.mkdir(), Image.new("L", (9, 9)).save(p / "a.png"), Image.new("L", (8, 9)).save(p / "b.png")),
            {"resize": "pad"},
            "row 1 of data set .* is 9x8, others are 9x9; use resize: crop",
        ),
        (
            lambda p: (p.mkdir(), Image.new("L", (40, 9)).save(p / "a.png")),
            {"resize": "pad"},
            "cannot be padded to 32x32",
        ),
    ],
)
def test_wrong_folders_are_one_clear_line(tmp_path, make, options, message):
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message) as error:
        load_images(str(tmp_path / "data"), **options)
    assert "\n" not in str(error.value)


def test_columns_by_name(tmp_path):
    table().rename_column("image", "picture").to_parquet(tmp_path / "a.parquet")
    assert len(load_images(str(tmp_path / "a.parquet"), image_column="picture", label_column="label")) == 6
    for options, message in [
        ({"image_column": "pictures"}, "no column 'pictures'; did you mean 'picture'"),
        ({"label_column": "labels"}, "no column 'labels'; did you mean 'label'"),
        ({"image_column": "label"}, "does not hold images"),
    ]:
        with pytest.raises(UserError, match=message):
            load_images(str(tmp_path / "a.parquet"), **options)
    table().remove_columns("image").to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="has no images: its columns are label"):
        load_images(str(tmp_path / "b.parquet"))


def parquet(tmp_path, labels, feature=None):
    features = datasets.Features({"image": datasets.Image(), "label": feature}) if feature else None
    data = {"image": [Image.fromarray(pixels) for pixels in PIXELS], "label": labels}
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def test_plain_labels_are_numbered_in_order(tmp_path):
    data = load_images(parquet(tmp_path, [10**6, 3, 3, 10**6, 5, 3]))
    assert data.labels.tolist() == [2, 0, 0, 2, 1, 0]
    assert (data.num_classes, data.label_names) == (3, ["3", "5", "1000000"])
    data = load_images(parquet(tmp_path, ["b", "a", "b", "b", "c", "a"]))
    assert (data.labels.tolist(), data.label_names) == ([1, 0, 1, 1, 2, 0], ["a", "b", "c"])


def test_labels_that_are_none(tmp_path):
    names = datasets.ClassLabel(names=NAMES)
    for labels, feature, message in [
        ([0, 1, None, 2, 0, 1], names, "row 2 of data set .* has no label"),
        ([0, 1, None, 2, 0, 1], None, "row 2 of data set .* has no label"),
        ([0.5] * 6, None, "column 'label' of data set .* holds no labels"),
        ([0, 1, 2, -1, 0, 1], names, "row 3 of data set .* has no label"),
        ([0, 1, 2, -1, 0, 1], None, "row 3 of data set .* has no label"),
    ]:
        with pytest.raises(UserError, match=message):
            load_images(parquet(tmp_path, labels, feature), label_column="label")
    with pytest.raises(UserError, match=r"column .image. of data set .* holds no labels"):
        load_images(parquet(tmp_path, LABELS), label_column="image")


def test_gray_and_color_together_are_color(tmp_path):
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "b.png")
    data = load_images(str(tmp_path), sample_size=8)
    assert data.images[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_auto_crops_where_sizes_differ(tmp_path):
    Image.new("L", (9, 9), 50).save(tmp_path / "a.png")
    Image.new("L", (8, 40), 60).save(tmp_path / "b.png")
    data = load_images(str(tmp_path))
    assert (data.images.shape, data.output_size) == ((2, 1, 32, 32), (32, 32))
    assert data.images[1].min() == 60


def test_splits_of_local_data(tmp_path):
    for split, pixels in (("train", PIXELS[:4]), ("test", PIXELS[4:])):
        (tmp_path / "folder" / split).mkdir(parents=True)
        (tmp_path / "files").mkdir(exist_ok=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "folder" / split / f"{i}.png")
        rows = {"image": [Image.fromarray(image) for image in pixels]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "files" / f"{split}-00000-of-00001.parquet")
    for kind in ("folder", "files"):
        source = str(tmp_path / kind)
        counts = [len(load_images(source, split=split)) for split in ("train", "test", "train+test")]
        assert counts == [4, 2, 6]
        with pytest.raises(UserError, match="has no split 'validation'; it has train, test"):
            load_images(source, split="validation")


def pictures(path, *names):
    for value, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), value).save(path / name)
    return str(path)


def test_classes_called_like_a_split(tmp_path):
    vehicles = pictures(tmp_path / "a", "bus/0.png", "car/1.png", "train/2.png")
    data = load_images(vehicles, sample_size=8)
    assert (data.label_names, told(data.images)) == (["bus", "car", "train"], [0, 1, 2])
    with pytest.raises(UserError, match="has no split 'train'; it has test, validation"):
        load_images(pictures(tmp_path / "b", "test/0.png", "val/1.png"), sample_size=8)
    # what holds no pictures, or is hidden, is no class
    splits = pictures(tmp_path / "c", "train/x/0.png", "train/y/1.png", "val/x/2.png", "__MACOSX/3.png", ".old/4.png")
    (tmp_path / "c" / "notes").mkdir()
    assert told(load_images(splits, sample_size=8).images) == [0, 1]
    assert told(load_images(splits, split="val", sample_size=8).images) == [2]
    mixed = pictures(tmp_path / "d", "train/0.png", "test/1.png", "extra/2.png")
    with pytest.raises(UserError, match="has test, train as splits, but extra beside them; use only folders"):
        load_images(mixed)


def test_only_pictures_are_read_of_a_folder(tmp_path):
    path = pictures(tmp_path / "set", "a/0.png", "a/1.PNG", "b/[2]*.Png", "b/3.tiff", "b/4.jp2")
    names = ["a", "b"]
    (tmp_path / "set" / "a.zip").write_text("x")
    with zipfile.ZipFile(tmp_path / "set" / "a" / "b.zip", "w") as archive:
        archive.write(tmp_path / "set" / "a" / "0.png", "5.png")
    (tmp_path / "set" / "metadata.csv").write_text("file_name,label\na/0.png,7\n")
    (tmp_path / "set" / "a" / "metadata.jsonl").write_text('{"file_name": "0.png"}\n')
    data = load_images(path, sample_size=8)
    assert (told(data.images), data.labels.tolist(), data.label_names) == ([0, 1, 3, 4, 2], [0, 0, 1, 1, 1], names)
    data, _ = open_stream(Source(path), sample_size=8, validation_split=None, shuffle_buffer_size=1)
    assert told(data.next(5)[0]) == [0, 1, 3, 4, 2]
    Image.new("L", (8, 8), 9).save(tmp_path / "set" / "a" / "0.png")
    assert told(load_images(path, sample_size=8).images)[0] == 9


def test_damaged_idx_files(sources):
    file = sources["idx"] / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-50])
    with pytest.raises(UserError, match="cannot be read"):
        load_images(str(sources["idx"]))
    file.write_bytes(gzip.compress(b"\0\0\x08\x03" + bytes(20)))
    with pytest.raises(UserError, match="not a whole IDX file"):
        load_images(str(sources["idx"]))
    file.write_bytes(whole)
    with pytest.raises(UserError, match="no split 'validation'"):
        load_images(str(sources["idx"]), split="validation")
    with pytest.raises(UserError, match="2 label_names do not cover labels 0 to 2"):
        load_images(str(sources["idx"]), label_names=("a", "b"))


def test_the_shipped_data_are_real_and_small(root):
    file = root / "data" / "fashion_mnist_tiny.parquet"
    assert file.stat().st_size < 500_000
    data = load_images(str(file))
    assert (len(data), data.num_channels, data.output_size) == (950, 1, (28, 28))
    assert np.bincount(data.labels).tolist() == [95] * 10
    assert data.label_names[8] == "Bag"
