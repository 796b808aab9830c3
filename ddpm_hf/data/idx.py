"""The IDX files of MNIST and its kin: 0, 0, type 8 (uint8), dimensions, big-endian sizes, data."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from ddpm_hf.errors import UserError

IDX_SUFFIXES = ("-ubyte.gz", "-ubyte", ".idx.gz")
Files = tuple[Path, Path | None]  # of images, and of labels where there are any


def idx_splits(path: Path) -> dict[str, Files] | None:
    """The files of each split of a folder in the MNIST layout, or of one named image file; None for anything else."""
    if path.is_file():
        return {"train": (path, _labels_beside(path))} if path.name.endswith(IDX_SUFFIXES) else None
    prefixes = {file.name.split("-images")[0]: file for file in sorted(path.glob("*-images*ubyte*"))}
    names = {"t10k": "test"}
    return {names.get(prefix, prefix): (file, _labels_beside(file)) for prefix, file in prefixes.items()} or None


def _labels_beside(images: Path) -> Path | None:
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    candidates = (name, name.removesuffix(".gz"), f"{name}.gz")  # one may be packed, the other not
    return next((images.with_name(other) for other in candidates if _is_other(images, other)), None)


def _is_other(images: Path, name: str) -> bool:
    return name != images.name and images.with_name(name).exists()


def read_idx(files: list[Files]) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Images uint8 (N, H, W), labels int64 (N,) or None, and what tells these files from changed ones.

    Raises:
        UserError: naming the file that cannot be read or does not fit the others.
    """
    parts = [_read_pair(*pair) for pair in files]
    shapes = {images.shape[1:] for images, _ in parts}
    if len(shapes) > 1:
        raise UserError(f"{files[1][0]} has images of another size than {files[0][0]}; give them as two data sets.")
    images = parts[0][0] if len(parts) == 1 else np.concatenate([images for images, _ in parts])
    labels = [labels for _, labels in parts]
    if any(part is None for part in labels) and not all(part is None for part in labels):
        raise UserError(f"{files[[part is None for part in labels].index(True)][0]} has no file of labels beside it.")
    states = [
        (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for pair in files for file in pair if file
    ]
    return images, None if labels[0] is None else np.concatenate(labels), repr(states)


def _read_pair(image_file: Path, label_file: Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    images = _read_array(image_file)
    if images.ndim != 3:
        raise UserError(f"{image_file} holds an array of {images.ndim} dimensions, images need 3.")
    labels = None if label_file is None else _read_array(label_file).astype(np.int64)
    if labels is not None and labels.shape != images.shape[:1]:
        raise UserError(f"{image_file} has {len(images)} images, but {label_file} has {len(labels)} labels.")
    return images, labels


def _read_array(path: Path) -> np.ndarray:
    try:
        data = np.memmap(path, np.uint8, "r") if path.suffix != ".gz" else np.frombuffer(_unpacked(path), np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    dimensions = int(data[3]) if len(data) > 4 and not data[:2].any() and data[2] == 8 else 0
    start = 4 + 4 * dimensions
    shape = data[4:start].view(">u4") if dimensions and len(data) >= start else ()
    if not dimensions or len(data) - start != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path} is not a whole IDX file of unsigned bytes.")
    return data[start:].reshape(shape)


def _unpacked(path: Path) -> bytes:
    with gzip.open(path) as file:
        return file.read()
