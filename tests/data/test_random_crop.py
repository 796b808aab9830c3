"""Random crops: over time all of a rectangular picture is trained on, and where is a function of seed and draw."""

import json

import numpy as np
import pytest
from making import write_idx
from PIL import Image

from ddpm_hf.config import build_config
from ddpm_hf.data import Source, load_images, open_data, open_stream
from ddpm_hf.data.order import crop_places
from ddpm_hf.errors import UserError
from ddpm_hf.training.batches import ImageBatches

SIZE = 8
SHAPES = [(8, 24), (24, 8), (16, 40), (8, 8), (60, 20), (5, 7)]  # (height, width)
CROP = {"sample_size": SIZE, "resize": "crop"}
BOTH_PLACES = pytest.mark.parametrize("memory", [1, 1e-9], ids=["memory", "file"])


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))


def ramp(height, width) -> Image.Image:
    """Bright along the longer side: the mean of a square tells where it was cut out."""
    line = np.linspace(0, 250, max(height, width)).round().astype(np.uint8)
    return Image.fromarray(np.tile(line, (height, 1)) if width >= height else np.tile(line[:, None], (1, width)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for i, shape in enumerate(SHAPES):
        ramp(*shape).save(tmp_path / "set" / f"{i}.png")
    return str(tmp_path / "set")


@BOTH_PLACES
def test_over_time_the_whole_picture_is_used(folder, memory):
    data = load_images(folder, **CROP, random_crop=True, max_memory_gb=memory)
    assert isinstance(data.images.lines, np.memmap) == (memory < 1)
    assert (data.images.shape, len(data), data.output_size) == ((6, 1, SIZE, SIZE), 6, (SIZE, SIZE))
    batches = ImageBatches(data, 0, 6, 0, 1)
    crops = [[] for _ in SHAPES]
    for epoch in range(60):
        for index, image in zip(batches.share_of(6 * epoch), batches.batch(6 * epoch)[0].numpy()[:, 0]):
            crops[index].append(image)
    for (height, width), seen in zip(SHAPES, crops):
        scaled = np.asarray(ramp(height, width).resize(scaled_size(height, width), Image.Resampling.LANCZOS))
        if height > width:
            scaled, seen = scaled.T, [image.T for image in seen]
        squares = [scaled[:, i : i + SIZE] for i in range(scaled.shape[1] - SIZE + 1)]
        which = [next(i for i, square in enumerate(squares) if np.array_equal(square, image)) for image in seen]
        assert {0, len(squares) - 1} <= set(which)
        assert len(set(which)) > 0.9 * len(squares)


def scaled_size(height, width) -> tuple[int, int]:
    return round(width * SIZE / min(height, width)), round(height * SIZE / min(height, width))


@BOTH_PLACES
def test_the_centres_are_what_crop_gives(folder, memory):
    centres, whole = load_images(folder, **CROP), load_images(folder, **CROP, random_crop=True, max_memory_gb=memory)
    differences = np.abs(centres.images.astype(int) - np.asarray(whole.images)).max((1, 2, 3))
    assert differences.tolist()[:5] == [0] * 5
    assert differences[5] <= 20  # half a pixel: its longer side is odd
    assert np.array_equal(whole.shown(np.arange(6)).numpy(), np.asarray(whole.images))
    assert whole.fingerprint == load_images(folder, **CROP, random_crop=True).fingerprint


@BOTH_PLACES
def test_what_is_validated_on_is_cropped_to_the_centre(tmp_path, memory):
    for split, count in (("train", 30), ("test", 4)):
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(count):
            ramp(8, 24).save(tmp_path / "set" / split / f"{i}.png")
    sources = [Source(str(tmp_path / "set"))]
    centre = open_data(sources, **CROP)[1].images
    options = {**CROP, "random_crop": True, "max_memory_gb": memory}
    train, other = open_data(sources, **options)
    assert np.array_equal(other.images, centre)
    held = open_data([Source(str(tmp_path / "set" / "train"))], **options)[1]
    assert held.splits == ("held out of train",)
    assert isinstance(held.images, np.ndarray)
    assert np.array_equal(held.images, centre[:1])
    assert len(train) == 30


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_crops_depend_on_seed_and_draw_alone(folder, batch_size, num_processes):
    """The same with other batches, with more processes and after a resume; others in every epoch and of every seed."""
    data = load_images(folder, **CROP, random_crop=True)

    def drawn(seed, first=0):
        ranks = [ImageBatches(data, seed, batch_size, rank, num_processes) for rank in range(num_processes)]
        steps = range(first, 24, batch_size)
        return np.concatenate([batches.batch(seen)[0] for seen in steps for batches in ranks])

    reference = np.concatenate([ImageBatches(data, 5, 6, 0, 1).batch(6 * epoch)[0] for epoch in range(4)])
    assert np.array_equal(drawn(5), reference)
    assert np.array_equal(drawn(5, first=12), reference[12:])
    assert not np.array_equal(drawn(6), reference)


def test_places_are_of_each_draw():
    whole = crop_places(3, 0, 1000)
    assert np.array_equal(np.concatenate([crop_places(3, 0, 7), crop_places(3, 7, 993)]), whole)
    assert np.abs(np.histogram(whole, 4, (0, 1))[0] - 250).max() < 60
    assert whole.min() >= 0 and whole.max() < 1
    others = [crop_places(4, 0, 9), crop_places(3, 0, 9, 0, 1), crop_places(3, 0, 9, 1, 0)]
    assert len({tuple(places) for places in [whole[:9], *others]}) == 4


def test_arrays_and_bad_images(tmp_path, folder):
    write_idx(tmp_path / "a-images-idx3-ubyte", np.stack([np.asarray(ramp(8, 24))] * 5))
    data = load_images(str(tmp_path / "a-images-idx3-ubyte"), **CROP, random_crop=True)
    assert (data.images.lengths.tolist(), data.images.lines.shape) == ([24] * 5, (120, 1, 8))
    (tmp_path / "set" / "1.png").write_bytes(b"no picture")
    for memory in (1, 1e-9):
        options = {"random_crop": True, "on_bad_image": "skip", "max_memory_gb": memory}
        data = load_images(folder, **CROP, **options)
        assert data.images.lengths.tolist() == [24, 20, 8, -24, 11]
        assert len(data.images.lines) == 87


def test_a_stream_crops_at_random_and_resumes(folder):
    def opened(**options):
        source = Source(folder)
        return open_stream(source, **CROP, validation_split=None, shuffle_buffer_size=4, random_crop=True, **options)[0]

    stream = opened()
    whole = stream.next(240)[0].numpy()
    wide = [image for image in whole if image[0, 0, 7] - image[0, 0, 0] > 60]  # of the first picture, as it is
    assert len({int(image[0, 0, 0]) for image in wide}) > 12
    other = opened()
    other.next(50)
    again = opened()
    again.load_state_dict(json.loads(json.dumps(other.state_dict())))
    assert np.array_equal(again.next(100)[0], whole[50:150])
    assert not np.array_equal(opened(seed=1).next(240)[0], whole)


@pytest.mark.parametrize("resize", ["auto", "pad", "area"])
def test_other_ways_to_fit_have_nothing_to_crop(resize):
    with pytest.raises(UserError, match=f"random_crop needs resize: crop, got {resize}"):
        build_config({"dataset": "x", "resize": resize, "random_crop": True})
