"""Small data sets for the tests of ddpm_hf.data."""

import gzip
import io
import struct
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

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


def numbered(path, values, *, labels=None, names=None, shape=(8, 8)) -> str:
    """A parquet file of flat gray images; the brightness tells which image it is."""
    images = [None if value is None else {"bytes": flat(value, shape), "path": None} for value in values]
    features, data = {"image": datasets.Image()}, {"image": images}
    if labels is not None:
        features["label"] = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
        data["label"] = labels
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).to_parquet(str(path))
    return str(path)


def flat(value, shape) -> bytes:
    """The PNG of an image of one color, whole number or RGB; bytes stay bytes."""
    if isinstance(value, bytes):
        return value
    buffer = io.BytesIO()
    gray = np.ndim(value) == 0
    Image.new("L" if gray else "RGB", shape[::-1], int(value) if gray else value).save(buffer, "PNG")
    return buffer.getvalue()


def told(images) -> list[int]:
    """Which images of ``numbered`` these are."""
    return np.asarray(images)[:, 0, 0, 0].tolist()
