"""Sets of images that are judged: real ones, those of files, and those that a pipeline makes on all processes."""

import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image

from ddpm_hf.data import BadImage, ImageData, decode, image_suffixes, is_gray, to_mode
from ddpm_hf.devices import processes
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import generate


@dataclass(frozen=True)
class ImageSet:
    """images: uint8 (N, C, H, W). labels: int64 (N,), the classes they are meant to be of, or None."""

    images: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def take(self, indices) -> "ImageSet":
        """The images that ``indices``, a slice or a tensor, choose."""
        return ImageSet(self.images[indices], None if self.labels is None else self.labels[indices])


def image_set(data: ImageData, chunk: int = 4096) -> ImageSet:
    """All images of ``data`` at the size that generated ones have."""
    parts = [data.shown(np.arange(i, min(i + chunk, len(data)))) for i in range(0, len(data), chunk)]
    return ImageSet(torch.cat(parts), None if data.labels is None else torch.from_numpy(data.labels))


def on_all_ranks(work: Callable[[], list]) -> list:
    """What ``work`` gives on every rank, joined in the ranks' order; a UserError of one is raised on all.

    Where one rank alone ended, the others would wait for it, and nobody would tell why.
    """
    mine, error = [], None
    try:
        mine = work()
    except UserError as caught:
        error = caught
    if messages := gather_object([] if error is None else [str(error)]):
        raise UserError(messages[0]) from error
    return gather_object(mine)


def generated_images(
    pipeline: MyDDPMPipeline, num_images: int, *, seed: int = 0, batch_size: int = 64, **options
) -> ImageSet:
    """Images of the seeds seed, seed + 1, ..., of all classes in turn, made by all ranks together.

    Args:
        options: of ``ddpm_hf.sampling.generate``.

    Raises:
        UserError: for a value out of range.
    """
    state = processes()
    # whole batches: float32 rounds differently in others, which can change a pixel by one of its 256 values
    share = math.ceil(num_images / state.num_processes / batch_size) * batch_size
    start = min(state.process_index * share, num_images)
    count = min(share, num_images - start)
    options |= {"batch_size": batch_size, "progress": state.is_local_main_process}
    parts = on_all_ranks(lambda: [generate(pipeline, count, seed=seed + start, **options).arrays()] if count else [])
    images = np.concatenate([part["images"] for part in parts])
    labels = torch.from_numpy(np.concatenate([part["labels"] for part in parts])) if "labels" in parts[0] else None
    return ImageSet(_channels_first(images), labels)


# ---- files


def read_images(path: Path, label_names: Sequence[str] | None = None) -> ImageSet:
    """Images of a folder, or of an .npz as ``sample`` writes it.

    An .npz has ``images``, uint8 (N, H, W) or (N, H, W, 3), and perhaps ``labels`` (N,). Images of a folder become
    gray or RGB as for training; subfolders called like classes are the labels.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    return _read_npz(path) if path.suffix == ".npz" else _read_folder(path, list(label_names or ()))


def _read_npz(path: Path) -> ImageSet:
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with arrays:
            images, labels = arrays["images"], arrays.get("labels")
    # all that a file which is cut off, damaged or another makes numpy, zipfile and zlib raise
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); expected an .npz with images.") from None
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))[0])
        raise UserError(f"image {bad} of {path} has pixels that are not numbers.")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise UserError(
            f"images of {path} are {images.dtype} {images.shape}; expected uint8 (N, H, W) or (N, H, W, 3)."
        )
    if not images.size:
        raise UserError(f"{path} has no images.")
    return ImageSet(_channels_first(images), None if labels is None else _checked_labels(labels, len(images), path))


def _checked_labels(labels: np.ndarray, count: int, path: Path) -> torch.Tensor:
    if labels.shape != (count,):
        raise UserError(f"{path} has labels of shape {labels.shape} for {count} images.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError(f"labels of {path} must be whole numbers of at least 0, they are {labels.dtype}.")
    return torch.from_numpy(labels.astype(np.int64))


def _read_folder(path: Path, names: list[str]) -> ImageSet:
    suffixes = image_suffixes()
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes)
    if not files:
        raise UserError(f"folder {path} has no images; files ending in .png, .jpg and the like are read.")
    mode = "L" if all(is_gray(_decoded(file)) for file in files) else "RGB"
    arrays = []
    for file in files:
        arrays.append(_pixels(file, mode))
        if arrays[-1].shape != arrays[0].shape:
            here, first = ("x".join(map(str, array.shape[:2])) for array in (arrays[-1], arrays[0]))
            raise UserError(f"{file} is {here}, {files[0].name} is {first}; all images need the same size.")
    folders = [file.parent.name for file in files]
    labels = torch.tensor([names.index(name) for name in folders]) if names and set(folders) <= set(names) else None
    return ImageSet(_channels_first(np.stack(arrays)), labels)


def _decoded(file: Path) -> Image.Image:
    try:
        return decode(None, str(file))
    except BadImage as error:
        raise UserError(f"{file} {error}.") from None


def _pixels(file: Path, mode: str) -> np.ndarray:
    try:
        return np.asarray(to_mode(_decoded(file), mode))
    except BadImage as error:
        raise UserError(f"{file} {error}.") from None


def _channels_first(images: np.ndarray) -> torch.Tensor:
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W)."""
    tensor = torch.from_numpy(images)
    return tensor[:, None] if images.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
