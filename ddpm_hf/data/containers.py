"""Pictures in one file: arrays of NumPy, CIFAR's batches, archives."""

import math
import pickle
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_hf.data.store import cache_root, refuse_full_disk
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.reading import open_regular
from ddpm_hf.source import FILE_KINDS, SPLIT_WORDS

IMAGE_KEYS = ("images", "image", "x", "data", "imgs", "img", "pictures", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "targets", "target", "arr_1")
NAME_KEYS = ("label_names", "class_names", "names")
CHANNELS = (1, 3, 4)
MOST_NUMBERS = 10_000  # labels below this are numbers of classes; larger ones are numbered anew


class Arrays(NamedTuple):
    """images: (N, H, W) or (N, H, W, C), uint8, uint16, int32 or float32. labels: int64 (N,), -1 for none, or None."""

    images: np.ndarray
    labels: np.ndarray | None
    names: list[str] | None


def read_arrays(path: Path) -> dict[str, Arrays]:
    """The arrays of each split of an .npz or .npy file, by the usual names of their keys: images, x_train, labels.

    Raises:
        UserError: for a file that cannot be read, and for arrays that are no images or no labels.
    """
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        arrays = {"images": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}.") from None
    found, names = {}, None
    for key, array in arrays.items():
        words = re.split(r"[\W_]+", key.lower())
        split = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")
        rest = key.lower() if key.startswith("arr_") else "_".join(word for word in words if word not in SPLIT_WORDS)
        if rest in NAME_KEYS:
            names = [str(name) for name in array.ravel()]
        elif rest in IMAGE_KEYS or (not rest and array.ndim >= 3):
            found.setdefault(split, {})["images"] = array
        elif rest in LABEL_KEYS:
            found.setdefault(split, {})["labels"] = array
    if not found or any("images" not in parts for parts in found.values()):
        shapes = ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items())
        raise UserError(f"{path} has no images: its arrays are {shapes}; call them images and labels.")
    return {
        split: checked(parts["images"], parts.get("labels"), names, path)
        for split, parts in sorted(found.items(), key=lambda item: list(SPLIT_WORDS.values()).index(item[0]))
    }


def checked(images: np.ndarray, labels: np.ndarray | None, names: list[str] | None, path: Path) -> Arrays:
    """Arrays of one split in the form of ``Arrays``, or a UserError that names ``path``."""
    given = f"{images.dtype} {images.shape}"
    if images.ndim == 2 and math.isqrt(images.shape[1]) ** 2 == images.shape[1] > 1:
        images = images.reshape(len(images), math.isqrt(images.shape[1]), -1)
    elif images.ndim == 2 and images.shape[1] % 3 == 0 and math.isqrt(images.shape[1] // 3) ** 2 * 3 == images.shape[1]:
        images = images.reshape(len(images), 3, math.isqrt(images.shape[1] // 3), -1)
    if images.ndim == 4 and images.shape[3] not in CHANNELS and images.shape[1] in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if (
        images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in CHANNELS)
        or images.dtype.kind not in "buif"
    ):
        raise UserError(f"images of {path} are {given}; expected uint8 (N, H, W) or (N, H, W, 3).")
    if not images.size:
        raise UserError(f"{path} has no images.")
    if images.ndim == 4 and images.dtype.kind == "f":
        images = _eight_bits(images, path)
    elif images.dtype == bool:
        images = images * np.uint8(255)
    elif images.dtype.kind == "f":
        images = images.astype(np.float32)
    elif images.dtype not in (np.uint8, np.uint16):
        low, high = images.min(), images.max()
        fits = np.uint8 if low >= 0 and high < 256 else np.uint16 if low >= 0 and high < 65536 else np.int32
        images = images.astype(fits)
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))[0])
        raise UserError(f"image {bad} of {path} has pixels that are not numbers.")
    if images.ndim == 4 and images.dtype != np.uint8:
        raise UserError(f"color images of {path} are {given}; expected uint8, or floating point in 0..1.")
    if labels is None:
        return Arrays(images, None, names)
    return Arrays(images, *_numbered(labels, len(images), names, path))


def _eight_bits(images: np.ndarray, path: Path) -> np.ndarray:
    """uint8 of color images in 0..1, -1..1 or 0..255."""
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"images of {path} have pixels that are not numbers.")
    if low < -1 or high > 255 or (low < 0 and high > 1):
        raise UserError(f"images of {path} lie in {low:g}..{high:g}; expected 0..1, -1..1 or 0..255.")
    scaled = images * 127.5 + 127.5 if low < 0 else images * 255 if high <= 1 else images
    return scaled.round().astype(np.uint8)


def _numbered(labels: np.ndarray, count: int, names: list[str] | None, path: Path):
    """Labels int64 (N,), and the names of the classes where there are any."""
    if labels.ndim == 2 and labels.shape[1] > 1 and (labels.sum(1) == 1).all() and labels.max() == 1:  # one-hot
        labels = labels.argmax(1)
    labels = labels.reshape(-1) if labels.size == len(labels) else labels
    if labels.shape != (count,):
        raise UserError(f"{path} has labels of shape {labels.shape} for {count} images.")
    if labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind in "bui" and labels.min() >= -1 and labels.max() < MOST_NUMBERS:
        return labels.astype(np.int64), names
    if labels.dtype.kind not in "iuSU":
        raise UserError(f"labels of {path} are {labels.dtype}; expected whole numbers or names.")
    found, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64), [x.decode() if isinstance(x, bytes) else str(x) for x in found.tolist()]


# ---- CIFAR


class _Unpickler(pickle.Unpickler):
    """Reads arrays, numbers and texts; nothing else that a pickle could do."""

    def find_class(self, module: str, name: str):
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if module.partition(".")[0] == "numpy" and name in allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def cifar_batches(folder: Path, names: Iterable[str]) -> dict[str, list[Path]]:
    """The files of each split where ``names`` in ``folder`` are CIFAR's python version; {} otherwise."""
    names = set(names)
    ten = sorted(name for name in names if re.fullmatch(r"data_batch_\d+", name))
    if ten:
        return {
            "train": [folder / name for name in ten],
            **({"test": [folder / "test_batch"]} if "test_batch" in names else {}),
        }
    if {"train", "meta"} <= names:
        return {split: [folder / split] for split in ("train", "test") if split in names}
    return {}


def read_cifar(files: list[Path]) -> Arrays:
    """The images and fine labels of CIFAR's python batches.

    Raises:
        UserError: for a file that cannot be read, or holds anything else.
    """
    batches = [_unpickled(path) for path in files]
    meta = next((path for name in ("batches.meta", "meta") if (path := files[0].with_name(name)).exists()), None)
    told = _unpickled(meta) if meta else {}
    names = next((told[key] for key in ("label_names", "fine_label_names") if key in told), None)
    try:
        images = np.concatenate([np.asarray(batch["data"], np.uint8) for batch in batches])
        labels = np.concatenate([batch.get("fine_labels", batch.get("labels")) for batch in batches])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{files[0]} is no batch of CIFAR.") from None
    names = names and [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    return checked(images, labels, names, files[0])


def _unpickled(path: Path) -> dict:
    try:
        with open_regular(path) as file:
            found = _Unpickler(file, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} cannot be read as a batch of CIFAR: {one_line(error)}.") from None


# ---- archives


def is_webdataset(path: Path) -> bool:
    """Whether a tar has several files of one key, 0001.png and 0001.cls, as WebDataset has them."""
    if path.suffix != ".tar":
        return False
    keys = {}
    with _readable(path), tarfile.open(path) as archive:
        for _, member in zip(range(100), archive):
            folder, _, name = member.name.rpartition("/")
            key, _, suffix = name.partition(".")
            if member.isfile() and keys.setdefault((folder, key), suffix) != suffix:
                return True
    return False


def extracted(paths: list[Path]) -> Path:
    """The folder of the cache that all archives are extracted into, each into one of its name.

    Numbered ones, part1.zip and part2.zip, go into one folder together.

    Raises:
        UserError: for an archive that cannot be read, or a disk that is full.
    """
    from filelock import FileLock

    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    root = cache_root().with_name("extracted")
    folder = root / sha256(repr(states).encode()).hexdigest()[:32]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{folder.name}-") as parent:
            made = Path(parent) / folder.name
            for path in paths:
                name = path.name[: -len(next(s for s in FILE_KINDS["archive"] if path.name.lower().endswith(s)))]
                _extract(path, made / (re.sub(r"[\W_]*\d+$", "", name) or "pictures"))
            made.rename(folder)
    return folder


def _extract(path: Path, folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    with _readable(path):
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                refuse_full_disk(sum(info.file_size for info in archive.infolist()))
                archive.extractall(folder)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter=_that_fits)


def _that_fits(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    refuse_full_disk(member.size)  # a tar's list of members is known only once all of it has been unpacked
    return tarfile.data_filter(member, folder)


class _readable:
    """What an archive that is cut off, damaged or encrypted raises, as one line."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(
            error, (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, zlib.error, NotImplementedError)
        ):
            raise UserError(f"{self.path} cannot be extracted: {one_line(error)}.") from None
