"""Fitted images in Arrow files of the cache: made once, whole or not at all, and mapped by every later start."""

import contextlib
import errno
import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ddpm_hf.data.arrays import MappedImages
from ddpm_hf.errors import UserError
from ddpm_hf.files import sync

FORMAT = 1  # of what is stored; another number makes everything anew
BATCH_BYTES = 8 * 2**20
CHECKED_IMAGES = 256


def cache_root() -> Path:
    """The folder of all stored images, in the Hub client's own cache folder."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME).expanduser() / "ddpm_hf" / "images"


def stored_images(key: str, keep: bool, make: Callable[["ImageWriter"], dict]) -> tuple[MappedImages, dict]:
    """The images stored under ``key``, and what ``make`` told of them; made now where they are not there, or damaged.

    Of several processes the first makes them, the others wait and map the same file.

    Args:
        key: text that names the images and everything done to them.
        keep: False takes the name away again: the file vanishes with the process.
        make: writes the images, and returns what is to be kept beside them, as JSON.

    Raises:
        UserError: if the disk is full, or the folder cannot be written.
    """
    from filelock import FileLock

    root, name = cache_root(), hashlib.sha256(f"{FORMAT} {key}".encode()).hexdigest()[:32]
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not keep:
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as parent:
                return _opened(_made(Path(parent) / name, make))
        with FileLock(root / f"{name}.lock"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                return _opened(root / name)
            for left in [root / name, *root.glob(f".{name}-*")]:  # damaged, or of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as parent:
                _made(Path(parent) / name, make).rename(root / name)
            sync(root)
            return _opened(root / name)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"the disk of {root} is full; HF_HOME on another, or a larger max_memory_gb, would do."
        ) from None


def _made(folder: Path, make) -> Path:
    folder.mkdir()
    with ImageWriter(folder / "images.arrow") as writer:
        told = make(writer)
    images = MappedImages(folder / "images.arrow", writer.image_shape)
    info = {
        "image_shape": writer.image_shape,
        "bytes": (folder / "images.arrow").stat().st_size,
        "checksum": _checksum(images),
        "told": told,
    }
    (folder / "info.json").write_text(json.dumps(info))
    for path in (folder / "images.arrow", folder / "info.json", folder):
        sync(path)
    return folder


def _opened(folder: Path) -> tuple[MappedImages, dict]:
    """The images of a stored folder; any exception if it is not there, or not what was written."""
    info = json.loads((folder / "info.json").read_text())
    path = folder / "images.arrow"
    if path.stat().st_size != info["bytes"]:
        raise ValueError("the file is cut")
    images = MappedImages(path, info["image_shape"])
    if _checksum(images) != info["checksum"]:
        raise ValueError("the file is damaged")
    return images, info["told"]


def _checksum(images: MappedImages) -> int:
    """Of evenly spaced images: reading all of them would take as long as it saves."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), CHECKED_IMAGES)).astype(np.int64)
    return zlib.crc32(images[chosen])


class ImageWriter:
    """Writes images into an Arrow file as they come, in record batches of one length."""

    def __init__(self, path: Path):
        self.path, self.image_shape = path, None
        self._writer, self._batch, self._filled = None, None, 0

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, kind, error, trace):
        if kind is None and self._filled:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def write(self, images: np.ndarray):
        """Append uint8 (B, C, S, S)."""
        if self._writer is None:
            self._open(images.shape[1:])
        for piece in self._pieces(images):
            self._batch[self._filled : self._filled + len(piece)] = piece.reshape(len(piece), -1)
            self._filled += len(piece)
            if self._filled == len(self._batch):
                self._flush()

    def _pieces(self, images: np.ndarray) -> Iterator[np.ndarray]:
        while len(images):
            room = len(self._batch) - self._filled
            yield images[:room]
            images = images[room:]

    def _open(self, image_shape):
        import pyarrow as pa

        self.image_shape = tuple(int(side) for side in image_shape)
        image_bytes = int(np.prod(image_shape))
        self._batch = np.empty((max(1, BATCH_BYTES // image_bytes), image_bytes), np.uint8)
        self._schema = pa.schema([pa.field("image", pa.binary(image_bytes), nullable=False)])
        self._writer = pa.ipc.new_file(str(self.path), self._schema)

    def _flush(self):
        import pyarrow as pa

        filled = self._batch[: self._filled]
        column = pa.Array.from_buffers(self._schema.field(0).type, len(filled), [None, pa.py_buffer(filled)])
        self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        self._filled = 0


def refuse_full_disk(num_bytes: int):
    """Raise a UserError where ``num_bytes`` more do not fit on the disk of the cache."""
    root = cache_root()
    existing = next(path for path in [root, *root.parents] if path.exists())
    if (free := shutil.disk_usage(existing).free) < num_bytes:
        raise UserError(
            f"the images take {num_bytes / 2**30:.1f} GB, and the disk of {root} has {free / 2**30:.1f} GB left; "
            f"HF_HOME on another, or a smaller sample_size or max_images, would be right."
        )
