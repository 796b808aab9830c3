"""Reading images: every source gives the same arrays, padding is exact, the order is a function of the seed."""

import gzip
import struct

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.data import MappedImages, epoch_order, indices_of_step, load_images
from ddpm_hf.errors import UserError
from ddpm_hf.pipeline import MyDDPMPipeline

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 2, 1, 0])
NAMES = ["bag", "boot", "coat"]


def write_idx(path, array):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        file.write(struct.pack(">BBBB" + "I" * array.ndim, 0, 0, 8, array.ndim, *array.shape))
        file.write(array.astype(np.uint8).tobytes())


def table(**columns):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    data = {"image": [Image.fromarray(pixels) for pixels in PIXELS], "label": LABELS}
    return datasets.Dataset.from_dict(data | columns, features=datasets.Features(features))


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


def test_from_the_hub(hub, sources):
    import huggingface_hub

    if hub.storage == "xet":
        pytest.importorskip("hf_xet")
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
    from helpers import tiny_unet

    from ddpm_hf.scheduler import MyDDPMScheduler

    data = load_images(str(sources["idx"]))
    pipeline = MyDDPMPipeline(tiny_unet(), MyDDPMScheduler(), output_height=28, output_width=28)
    images = pipeline.postprocess(data.batch(np.arange(6))[0])
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), PIXELS)


@pytest.mark.parametrize("size", [(5, 8), (7, 7), (8, 3)])
def test_odd_paddings_are_undone_exactly(tmp_path, size):
    from helpers import tiny_pipeline

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


def test_color_and_other_modes(tmp_path):
    red = Image.new("RGB", (40, 20), (255, 0, 0))
    variants = {
        "a.png": red,
        "b.png": red.convert("RGBA"),
        "c.png": red.convert("P"),
        "d.jpg": red.convert("CMYK"),
        "e.png": Image.new("RGBA", (40, 20), (255, 0, 0, 0)),
    }
    for name, image in variants.items():
        image.save(tmp_path / name)
    data = load_images(str(tmp_path), sample_size=16)
    assert (data.images.shape, data.output_size, data.labels) == ((5, 3, 16, 16), (16, 16), None)
    for pixels in data.images[:4]:
        assert np.abs(pixels.astype(int) - np.array([255, 0, 0])[:, None, None]).max() <= 5
    assert (data.images[4] == 255).all()  # what is transparent is white, not what happens to lie beneath


def test_sixteen_bit_grayscale_keeps_its_range(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "a.png")
    data = load_images(str(tmp_path), sample_size=8)
    assert (data.images.min(), data.images.max(), data.num_channels) == (0, 255, 1)


def test_large_images_are_scaled_and_cropped(tmp_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 200  # the centre
    Image.fromarray(wide).save(tmp_path / "a.png")
    data = load_images(str(tmp_path), sample_size=16)
    assert np.abs(data.images[0].astype(int) - 200).max() < 60
    assert (data.images[0, :, :, 4:12] == 200).all()


def test_what_does_not_fit_in_memory_goes_to_a_file(sources):
    held, mapped = load_images(str(sources["idx"])), load_images(str(sources["idx"]), max_memory_gb=1e-9)
    assert isinstance(mapped.images, MappedImages)
    assert not isinstance(held.images, MappedImages)
    assert np.array_equal(held.images, mapped.images)
    assert torch.equal(mapped.batch(np.array([4]))[0], held.batch(np.array([4]))[0])


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


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_corrupt_image_is_named_with_its_row(tmp_path, damage):
    for i in range(3):
        Image.fromarray(PIXELS[i]).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes({"cut": whole[: len(whole) // 2], "text": b"no picture", "empty": b""}[damage])
    with pytest.raises(UserError, match=r"row 1 of data set .* \(1\.png\) is not a readable image") as error:
        load_images(str(tmp_path))
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
        ([0, 1, None, 2, 0, 1], names, "row 2 of data set .* has no label in column 'label'"),
        ([0, 1, None, 2, 0, 1], None, "row 2 of data set .* has no label"),
        ([0.5] * 6, None, "column 'label' holds no labels"),
        ([0, 1, 2, -1, 0, 1], names, "row 3 of data set .* has the label -1"),
    ]:
        with pytest.raises(UserError, match=message):
            load_images(parquet(tmp_path, labels, feature), label_column="label")
    with pytest.raises(UserError, match=r"column .image. holds no labels"):
        load_images(parquet(tmp_path, LABELS), label_column="image")


def test_gray_and_color_together_are_color(tmp_path):
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "b.png")
    data = load_images(str(tmp_path), sample_size=8)
    assert data.images[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_images_of_one_pixel_are_refused(tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="is 1x1 pixels; at least 2x2"):
        load_images(str(tmp_path), sample_size=8)


def test_auto_crops_where_sizes_differ(tmp_path):
    Image.new("L", (9, 9), 50).save(tmp_path / "a.png")
    Image.new("L", (8, 40), 60).save(tmp_path / "b.png")
    data = load_images(str(tmp_path))
    assert (data.images.shape, data.output_size) == ((2, 1, 32, 32), (32, 32))
    assert data.images[1].min() == 60


def test_a_missing_image_is_named(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    images = [Image.fromarray(PIXELS[0]), None]
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"row 1 of data set .* has no image"):
        load_images(str(tmp_path / "a.parquet"))


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


# ---- the order of the images


def test_an_epoch_shows_every_image_once_and_depends_on_seed_and_epoch():
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (10, 10), (3, 8), (1, 5)])
def test_steps_walk_through_the_epochs_without_gap(num_images, batch_size):
    steps = 12
    seen = np.concatenate([indices_of_step(7, step, batch_size, num_images) for step in range(steps)])
    assert len(seen) == steps * batch_size
    for epoch in range(len(seen) // num_images):
        chunk = seen[epoch * num_images : (epoch + 1) * num_images]
        assert np.array_equal(chunk, epoch_order(7, epoch, num_images))
