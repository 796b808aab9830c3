"""The images a run trains on: one array in memory, or a memory-mapped Arrow file that is indexed like one."""

import copy
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

FINGERPRINT_IMAGES = 4096


class MappedImages:
    """Images in an Arrow file: uint8 (N, C, S, S), indexed like an array.

    They are read as they are asked for; all processes of a machine share the page cache, no copy is held.

    Args:
        path: an Arrow file with one column of fixed-size binary, no nulls, in record batches of one length.
        image_shape: (C, S, S).
        rows: int64 (N,), the rows that are the images, in order; None is all of them.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: Path, image_shape: tuple[int, int, int], rows: np.ndarray | None = None):
        self.path, self.image_shape, self.rows = Path(path), tuple(image_shape), rows
        self._batches, self._batch_rows, self._count = _batches_of(self.path, int(np.prod(image_shape)))

    def subset(self, rows: np.ndarray) -> "MappedImages":
        """The same file, but only the images of ``rows``."""
        chosen = copy.copy(self)
        chosen.rows = rows if self.rows is None else self.rows[rows]
        return chosen

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.image_shape

    def __len__(self) -> int:
        return self._count if self.rows is None else len(self.rows)

    def __getitem__(self, key) -> np.ndarray:
        """A copy of the images that ``key`` chooses: a number, a slice, or an array of numbers or truth values."""
        if isinstance(key, tuple):
            images = self[key[0]]
            return images[(slice(None), *key[1:]) if images.ndim == self.ndim else key[1:]]
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        key = np.asarray(key)
        indices = np.flatnonzero(key) if key.dtype == bool else key.astype(np.int64)
        if indices.size and (indices.min() < -len(self) or indices.max() >= len(self)):
            raise IndexError(f"image {indices.max()} is asked for, there are {len(self)}.")
        indices = np.where(indices < 0, indices + len(self), indices)
        rows = indices if self.rows is None else self.rows[indices]
        images = self._batches[rows // self._batch_rows, rows % self._batch_rows]
        return images.reshape(*indices.shape, *self.image_shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


def _batches_of(path: Path, image_bytes: int) -> tuple[np.ndarray, int, int]:
    """All batches as one view, uint8 (batches, rows of a batch, bytes of an image); rows of a batch, of the file.

    Batches of one schema and length take the same room in the file, so they lie at even distances. Of the last one,
    which may be shorter, only the rows that are there may be touched.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
        reader = pa.ipc.open_file(whole)
        last = reader.num_record_batches - 1
        first_rows, last_rows = reader.get_batch(0).num_rows, reader.get_batch(last).num_rows
        starts = [
            _start(reader.get_batch(index), image_bytes) - whole.address for index in sorted({0, min(1, last), last})
        ]
    stride = starts[1] - starts[0] if last else first_rows * image_bytes
    if starts[-1] != starts[0] + last * stride:
        raise ValueError("its batches do not lie at even distances")
    data = np.memmap(path, np.uint8, "r")[starts[0] :]
    view = np.lib.stride_tricks.as_strided(
        data, (last + 1, first_rows, image_bytes), (stride, image_bytes, 1), writeable=False
    )
    return view, first_rows, last * first_rows + last_rows


def _start(batch, image_bytes: int) -> int:
    """Address of the first image of a record batch."""
    column = batch.column(0)
    if column.type.byte_width != image_bytes or column.null_count:
        raise ValueError("its images have another size")
    return column.buffers()[1].address + column.offset * image_bytes


@dataclass(frozen=True)
class ImageData:
    """Images of one size, and their classes.

    images: uint8 (N, C, S, S), 0..255, S being the network's sample size; an array or what is indexed like one.
    labels: int64 (N,) in [0, num_classes), or None.
    label_names: class names in the order of the labels, or None.
    output_size: (height, width) in pixels that generated images are to have; (S, S) where the sets have several.
    output_resize: True: images were averaged to (S, S), scale generated ones; False: they were padded, crop them.
    sizes: images of each set; they lie one set after the other.
    weights: share of each set of the draws, of sum 1, or None where they are drawn by their number.
    source_names: what each set is called.
    skipped: a line for every image that could not be used.
    known_classes: classes that the sets have, images of which need not be among these.
    splits: of each set, the split that they are of; "held out of train" where they were taken from that.
    """

    images: np.ndarray | MappedImages
    labels: np.ndarray | None
    label_names: list[str] | None
    output_size: tuple[int, int]
    output_resize: bool = False
    sizes: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    source_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    known_classes: int = 0
    splits: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_channels(self) -> int:
        return self.images.shape[1]

    @property
    def num_classes(self) -> int | None:
        if self.labels is None:
            return None
        return max(int(self.labels.max()) + 1, len(self.label_names or ()), self.known_classes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the number of images, their shape, any label or class name, or a
        pixel of up to 4096 evenly spaced images."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), FINGERPRINT_IMAGES)).astype(np.int64)
        digest = hashlib.sha256(repr((self.images.shape, self.label_names)).encode())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, "<i8"))
        for part in np.array_split(chosen, -(-len(chosen) // 256)):
            digest.update(np.ascontiguousarray(self.images[part]))
        return digest.hexdigest()[:16]

    def take(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images uint8 (B, C, S, S), 0..255, and their labels int64 (B,) or None."""
        images = torch.from_numpy(self.images[indices])
        return images, None if self.labels is None else torch.from_numpy(self.labels[indices])

    def shown(self, indices: np.ndarray) -> torch.Tensor:
        """Images uint8 (B, C, height, width) as generated ones come out: padding cut off, or scaled back."""
        images, (height, width) = self.take(indices)[0], self.output_size
        if self.output_resize:
            scaled = F.interpolate(images.float(), (height, width), mode="bicubic", antialias=True)
            return scaled.round().clamp(0, 255).to(torch.uint8)
        top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
        return images[..., top : top + height, left : left + width]

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images float32 (B, C, S, S) in [-1, 1], and their labels int64 (B,) or None."""
        images, labels = self.take(indices)
        return images.float() / 127.5 - 1, labels
