"""Image data: a Hub data set, a folder or a file becomes uint8 images and labels in one array.

The order in which a run sees the images is a function of (seed, position) alone, so a run that resumes needs no
iterator state.
"""

import functools
import gzip
import io
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ddpm_hf.errors import UserError, nearest, one_line

IDX_SUFFIXES = ("-ubyte.gz", "-ubyte", ".idx.gz")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLITS = ("train", "test", "validation")
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "F")


@dataclass(frozen=True)
class ImageData:
    """Images of one size in memory or in a memory-mapped file.

    images: uint8 (N, C, S, S), 0..255, S being the network's sample size.
    labels: int64 (N,) in [0, number of classes), or None.
    label_names: class names in the order of the labels, or None.
    output_size: (height, width) to crop generated images to, centred; (S, S) unless the images were padded.
    """

    images: np.ndarray
    labels: np.ndarray | None
    label_names: list[str] | None
    output_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_channels(self) -> int:
        return self.images.shape[1]

    @property
    def num_classes(self) -> int | None:
        if self.labels is None:
            return None
        return max(int(self.labels.max()) + 1, len(self.label_names or ()))

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images (B, C, S, S) in [-1, 1], float32, and their labels (B,) or None."""
        images = torch.from_numpy(self.images[indices]).float() / 127.5 - 1
        return images, None if self.labels is None else torch.from_numpy(self.labels[indices])


# ---- the order of the images


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several whole numbers, by NumPy's SeedSequence."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order of one epoch: a permutation of range(num_images) that depends on (seed, epoch) alone."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def indices_of_step(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """Image indices (batch_size,) of optimizer step ``step``: the epochs' orders, end to end, cut into batches."""
    position = step * batch_size
    pieces, missing = [], batch_size
    while missing:
        epoch, offset = divmod(position, num_images)
        pieces.append(epoch_order(seed, epoch, num_images)[offset : offset + missing])
        position += len(pieces[-1])
        missing -= len(pieces[-1])
    return np.concatenate(pieces)


# ---- reading


def load_images(
    dataset: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: tuple[str, ...] | None = None,
    max_images: int | None = None,
    sample_size: int = 32,
    resize: str = "auto",
    max_memory_gb: float = 4.0,
) -> ImageData:
    """Read a data set whole, as described in ``TrainConfig``.

    Raises:
        UserError: naming the data set, column or row that is wrong.
    """
    path = Path(dataset).expanduser()
    if path.exists() and _idx_files(path, split):
        rows, labels, names = _read_idx(*_idx_files(path, split))
    else:
        table = _open_table(dataset, split, config_name, revision)
        rows, labels, names = _columns(table, dataset, image_column, label_column)
    if max_images:
        rows, labels = rows[:max_images], None if labels is None else labels[:max_images]
    if len(rows) == 0:
        raise UserError(f"data set {dataset!r} has no images in split {split!r}.")
    images, output_size = _fit_all(rows, dataset, sample_size, resize, max_memory_gb)
    return ImageData(images, labels, _check_names(labels, label_names or names), output_size)


def _check_names(labels, names) -> list[str] | None:
    if labels is None:
        return None
    if labels.min() < 0:
        raise UserError(f"row {int(labels.argmin())} has the label {labels.min()}; labels count from 0.")
    if names is None:
        return None
    if labels.max() >= len(names):
        raise UserError(f"{len(names)} label_names do not cover labels {labels.min()} to {labels.max()}.")
    return list(names)


def _idx_files(path: Path, split: str) -> tuple[Path, Path | None] | None:
    """The image and label files of a folder in the MNIST layout, or of one named image file."""
    if path.is_file():
        if not path.name.endswith(IDX_SUFFIXES):
            return None
        labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        return path, labels if labels != path and labels.exists() else None
    prefix = {"train": "train", "test": "t10k"}.get(split, split)
    images = sorted(path.glob(f"{prefix}-images*ubyte*"))
    labels = sorted(path.glob(f"{prefix}-labels*ubyte*"))
    if not images and any(path.glob("*-images*ubyte*")):
        raise UserError(f"{path} has no split {split!r}; its files hold 'train' and 'test'.")
    return (images[0], labels[0] if labels else None) if images else None


def _read_idx(image_file: Path, label_file: Path | None):
    images = _read_idx_array(image_file)
    if images.ndim != 3:
        raise UserError(f"{image_file} holds an array of {images.ndim} dimensions, images need 3.")
    labels = None if label_file is None else _read_idx_array(label_file).astype(np.int64)
    if labels is not None and len(labels) != len(images):
        raise UserError(f"{image_file} has {len(images)} images, but {label_file} has {len(labels)} labels.")
    return images, labels, None


def _read_idx_array(path: Path) -> np.ndarray:
    """The IDX format of MNIST: 0, 0, type 8 (uint8), dimensions, big-endian sizes, data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    dimensions = data[3] if len(data) > 4 and data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data, ">u4", dimensions, offset=4) if len(data) >= 4 + 4 * dimensions else ()
    if not dimensions or len(data) - 4 - 4 * dimensions != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path} is not a whole IDX file of unsigned bytes.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _open_table(dataset: str, split: str, config_name: str | None, revision: str | None):
    """A ``datasets.Dataset`` from a local file or folder, or from the Hub."""
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = Path(dataset).expanduser()
    try:
        if not path.exists():
            if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or path.suffix in (".parquet", ".arrow"):
                raise UserError(f"data set {dataset!r} does not exist: no such file or folder.")
            return load_dataset(dataset, config_name, split=split, revision=revision)
        return _open_local(path, dataset, split)
    except UserError:
        raise
    except Exception as error:  # the library raises dozens of types; the user needs the one line
        raise UserError(f"data set {dataset!r} cannot be loaded: {one_line(error)}") from error


def _open_local(path: Path, dataset: str, split: str):
    from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk

    if path.is_file():
        _refuse_split(dataset, split, ["train"])
        return load_dataset(_file_format(path), data_files=str(path), split="train")
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        table = load_from_disk(str(path))
        splits = {"train": table} if isinstance(table, Dataset) else dict(table)
        _refuse_split(dataset, split, splits)
        return concatenate_datasets([splits[name] for name in split.split("+")])
    for suffix in ("parquet", "arrow"):
        if files := sorted(str(file) for file in path.rglob(f"*.{suffix}")):
            return load_dataset(suffix, data_files=_files_of_splits(files, dataset, split), split="train")
    if not any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.rglob("*")):
        raise UserError(f"data set {dataset!r} has no images, no parquet, arrow or idx files in it.")
    present = [name for name in SPLITS if (path / name).is_dir()]
    _refuse_split(dataset, split, present or ["train"])
    folders = [path / name for name in split.split("+")] if present else [path]
    return concatenate_datasets(
        [load_dataset("imagefolder", data_dir=str(folder), split="train") for folder in folders]
    )


def _files_of_splits(files: list[str], dataset: str, split: str) -> list[str]:
    """Those of ``files`` that belong to ``split``, by their names: 'train-00000-of-00001.parquet'."""
    present = {name: [file for file in files if Path(file).name.startswith(name)] for name in SPLITS}
    present = {name: chosen for name, chosen in present.items() if chosen} or {"train": files}
    _refuse_split(dataset, split, present)
    return [file for name in split.split("+") for file in present[name]]


def _refuse_split(dataset: str, split: str, present):
    for name in split.split("+"):
        if name not in present:
            raise UserError(f"data set {dataset!r} has no split {name!r}; it has {', '.join(present)}.")


def _file_format(path: Path) -> str:
    suffix = path.suffix.removeprefix(".")
    if suffix not in ("parquet", "arrow"):
        raise UserError(f"data set file {path} must end in .parquet, .arrow or {', '.join(IDX_SUFFIXES)}.")
    return suffix


def _columns(table, dataset: str, image_column: str | None, label_column: str | None):
    """The image rows (undecoded), the labels and their names."""
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    features = table.features
    image_column = image_column or _column_of_type(features, ImageFeature)
    if image_column is None:
        raise UserError(f"data set {dataset!r} has no images: its columns are {', '.join(features) or 'none'}.")
    for column in filter(None, (image_column, label_column)):
        if column not in features:
            raise UserError(f"data set {dataset!r} has no column {column!r}; {nearest(column, features)}")
    if not isinstance(features[image_column], ImageFeature):
        raise UserError(f"column {image_column!r} of data set {dataset!r} does not hold images.")
    label_column = label_column or _column_of_type(features, ClassLabel)
    if label_column is None and isinstance(features.get("label"), Value):
        label_column = "label"
    labels, names = _labels(table, label_column) if label_column else (None, None)
    return table.cast_column(image_column, ImageFeature(decode=False))[image_column], labels, names


def _column_of_type(features, kind) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)


def _labels(table, column: str) -> tuple[np.ndarray, list[str] | None]:
    from datasets import ClassLabel, Value

    feature = table.features[column]
    kind = feature.dtype if isinstance(feature, Value) else ""
    if not isinstance(feature, ClassLabel) and not kind.startswith(("int", "uint", "string", "large_string", "bool")):
        raise UserError(f"column {column!r} holds no labels: whole numbers or names would be right.")
    values = table.with_format("arrow")[column]
    if values.null_count:
        missing = values.is_null().to_pylist().index(True)
        raise UserError(f"row {missing} has no label in column {column!r}.")
    values = values.to_numpy(zero_copy_only=False)
    if isinstance(feature, ClassLabel):
        return values.astype(np.int64), feature.names
    # numbered in order: a label of 1,000,000 must not make a million classes
    found, labels = np.unique(values.astype(str) if "string" in kind else values, return_inverse=True)
    return labels.astype(np.int64), [str(name) for name in found]


# ---- decoding and fitting


def _fit_all(rows, dataset: str, size: int, resize: str, max_memory_gb: float):
    """Decode every row and bring it to size x size: uint8 (N, C, size, size), and the output size."""
    first = _decode(rows[0], dataset, 0)
    channels = 1 if first.mode in GRAY_MODES else 3
    pad = resize == "pad" or (resize == "auto" and max(first.size) <= size)
    if min(first.size) < 2:
        raise UserError(f"images of {first.height}x{first.width} are too small; at least 2x2 pixels would be right.")
    if pad and max(first.size) > size:
        raise UserError(f"images of {first.height}x{first.width} cannot be padded to {size}x{size}; use resize: crop.")
    images = _allocate((len(rows), channels, size, size), max_memory_gb)
    fit = _pad if pad else _scale_and_crop
    for i in tqdm(range(len(rows)), desc="reading images", unit="image", mininterval=1, disable=len(rows) < 2000):
        image = _decode(rows[i], dataset, i)
        if (image.mode in GRAY_MODES) != (channels == 1):
            raise UserError(
                f"row {i} of data set {dataset!r} is of mode {image.mode}, the first of {first.mode}: make all images "
                f"gray or all of them RGB."
            )
        if pad and image.size != first.size:
            if resize == "auto":  # not all of one size after all
                return _fit_all(rows, dataset, size, "crop", max_memory_gb)
            raise UserError(
                f"row {i} of data set {dataset!r} is {image.height}x{image.width}, the first is "
                f"{first.height}x{first.width}; use resize: crop for images of several sizes."
            )
        images[i] = fit(_to_mode(image, "L" if channels == 1 else "RGB"), size)
    return images, (first.height, first.width) if pad else (size, size)


def _allocate(shape: tuple[int, ...], max_memory_gb: float) -> np.ndarray:
    """An array in memory, or, where it would be too large, in a temporary file that vanishes with the process."""
    if np.prod(shape, dtype=np.int64) <= max_memory_gb * 2**30:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), int(np.prod(shape, dtype=np.int64)))
        return np.memmap(file, np.uint8, "r+", shape=shape)


def _decode(row, dataset: str, index: int) -> Image.Image:
    """A PIL image from a row: an array (IDX) or the bytes and path of an image feature."""
    if isinstance(row, np.ndarray):
        return Image.fromarray(row)
    if row is None:
        raise UserError(f"row {index} of data set {dataset!r} has no image.")
    try:
        source = row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"])
        image = Image.open(source)
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, DecompressionBombError, ...
        name = row.get("path") or ""
        raise UserError(
            f"row {index} of data set {dataset!r}{f' ({Path(name).name})' if name else ''} is not a readable image: "
            f"{str(error) or type(error).__name__}."
        ) from None


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I"):  # 16-bit grayscale: keep the upper 8 bits
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 (C, H, W)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _pad(image: Image.Image, size: int) -> np.ndarray:
    """Zeros around a smaller image, the odd row and column below and right; the pipeline's postprocess undoes it."""
    pixels = _pixels(image)
    top, left = (size - pixels.shape[1]) // 2, (size - pixels.shape[2]) // 2
    bottom, right = size - pixels.shape[1] - top, size - pixels.shape[2] - left
    return np.pad(pixels, ((0, 0), (top, bottom), (left, right)))


def _scale_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """Shorter side to ``size`` with an antialiasing filter, then the centre."""
    return _pixels(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))
