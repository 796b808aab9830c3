"""Fitted images in files of the cache: made once, whole or not at all, and mapped by every later start."""

import contextlib
import errno
import hashlib
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm_hf.errors import UserError
from ddpm_hf.files import sync
from ddpm_hf.reading import read_json

FORMAT = 3  # of what is stored; another number makes everything anew
CHECKED_IMAGES = 256


def cache_root() -> Path:
    """The folder of all stored images, in the Hub client's own cache folder."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME).expanduser() / "ddpm_hf" / "images"


def find_images(key: str) -> tuple[np.ndarray, dict] | None:
    """The images stored under ``key``, memory-mapped, and what was kept beside them; None if there are none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _opened(_folder(key))
    return None


def store_images(
    key: str, keep: bool, shape: tuple[int, ...], make: Callable[[Callable], dict]
) -> tuple[np.ndarray, dict]:
    """The images stored under ``key``, memory-mapped; made now where they are not there, or damaged.

    Of several processes the first makes them, the others wait and map the same file.

    Args:
        key: text that names the images and everything done to them.
        keep: False takes the name away again: the file vanishes with the process.
        shape: (N, ...) of all images together; ``make`` may write fewer or more.
        make: calls the function that it is given with images uint8 (B, ...), as often as it likes, and returns what is
            to be kept beside them, as JSON.

    Raises:
        UserError: if the disk is full, or the folder cannot be written.
    """
    from filelock import FileLock

    folder = _folder(key)
    root = folder.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not keep:
            # Windows deletes no file that is mapped: there, it stays until the set is kept or the cache cleared
            aside = tempfile.TemporaryDirectory(dir=root, prefix=f".{folder.name}-", ignore_cleanup_errors=True)
            with aside as parent:
                return _opened(_made(Path(parent) / folder.name, shape, make))
        with FileLock(root / f"{folder.name}.lock"):
            if found := find_images(key):
                return found
            for left in [folder, *root.glob(f".{folder.name}-*")]:  # damaged, or of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{folder.name}-") as parent:
                _made(Path(parent) / folder.name, shape, make).rename(folder)
            sync(root)
            return _opened(folder)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"the disk of {root} is full; set HF_HOME to another disk, or use a larger max_memory_gb."
        ) from None


def _folder(key: str) -> Path:
    return cache_root() / hashlib.sha256(f"{FORMAT} {key}".encode()).hexdigest()[:32]


def _made(folder: Path, shape: tuple[int, ...], make) -> Path:
    refuse_full_disk(int(np.prod(shape)))
    folder.mkdir()
    path, count = folder / "images", 0
    with open(path, "wb") as file:

        def write(images: np.ndarray):  # not through a memory map, which a full disk would end with a signal
            nonlocal count
            file.write(np.ascontiguousarray(images).data)
            count += len(images)

        kept = make(write)
    shape = (count, *map(int, shape[1:]))
    info = {"shape": shape, "checksum": _checksum(_mapped(path, shape)), "kept": kept}
    (folder / "info.json").write_text(json.dumps(info))
    for written in (path, folder / "info.json", folder):
        sync(written)
    return folder


def _opened(folder: Path) -> tuple[np.ndarray, dict]:
    """The images of a stored folder; any exception if it is not there, or not what was written."""
    info = read_json(folder / "info.json")
    path, shape = folder / "images", tuple(info["shape"])
    if path.stat().st_size != math.prod(shape):
        raise ValueError("the file is cut")
    images = _mapped(path, shape)
    if _checksum(images) != info["checksum"]:
        raise ValueError("the file is damaged")
    return images, info["kept"]


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if not shape[0]:  # which no system maps
        return np.empty(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", shape=shape)


def _checksum(images: np.ndarray) -> int:
    """Of evenly spaced images: reading all of them would take as long as it saves."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), CHECKED_IMAGES)).astype(np.int64)
    return zlib.crc32(np.ascontiguousarray(images[chosen]))


def refuse_full_disk(num_bytes: int):
    """Raise a UserError where ``num_bytes`` more do not fit on the disk of the cache."""
    root = cache_root()
    existing = next(path for path in [root, *root.parents] if path.exists())
    if (free := shutil.disk_usage(existing).free) < num_bytes:
        raise UserError(
            f"the images take {num_bytes / 2**30:.1f} GB, and the disk of {root} has {free / 2**30:.1f} GB left; "
            f"set HF_HOME to another disk, or use a smaller sample_size or max_images."
        )
