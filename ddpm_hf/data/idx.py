"""The IDX files of MNIST and its kin: 0, 0, type 8 (uint8), dimensions, big-endian sizes, data."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddpm_hf.errors import UserError
from ddpm_hf.memory import refuse_beyond_memory
from ddpm_hf.reading import open_regular
from ddpm_hf.source import FILE_KINDS

UNSIGNED_BYTES = 8
Files = tuple[Path, Path | None]  # of images, and of labels where there are any


def idx_splits(path: Path) -> dict[str, Files] | None:
    """The files of each split of a folder in the MNIST layout, or of one named image file; None for anything else."""
    if path.is_file():
        return {"train": (path, _labels_beside(path))} if path.name.endswith(FILE_KINDS["idx"]) else None
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
    packed = path.suffix == ".gz"
    try:
        with open_regular(path) as raw, gzip.open(raw) if packed else raw as file:
            shape = _shape(file)
            if shape and packed:
                size = math.prod(shape)
                refuse_beyond_memory(size, f"unpacking {path}")
                data = np.frombuffer(file.read(size + 1), np.uint8)  # a byte more shows that there is more
            elif shape:
                data = np.memmap(path, np.uint8, "r")[file.tell() :]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    if not shape or len(data) != math.prod(shape):
        raise UserError(f"{path} is not a whole IDX file of unsigned bytes.")
    return data.reshape(shape)


def _shape(file: BinaryIO) -> tuple[int, ...]:
    """What the header says; () where it is none of an array of unsigned bytes."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != bytes((0, 0, UNSIGNED_BYTES)):
        return ()
    sizes = file.read(4 * magic[3])
    return struct.unpack(f">{magic[3]}I", sizes) if len(sizes) == 4 * magic[3] else ()
