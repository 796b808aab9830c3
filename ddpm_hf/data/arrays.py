"""The images a run trains on: one array, in memory or memory-mapped."""

import functools
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ddpm_hf.data.strips import Strips

FINGERPRINT_IMAGES = 4096


@dataclass(frozen=True)
class ImageData:
    """Images of one size, and their classes.

    images: uint8 (N, C, S, S), 0..255, S being the network's sample size; may be memory-mapped. With random crops
        ``Strips``, which are the centres of whole pictures.
    labels: int64 (N,) in [0, num_classes), or None.
    label_names: class names in the order of the labels, or None.
    output_size: (height, width) in pixels that generated images are to have; (S, S) where the sets have several.
    output_resize: True: images were averaged to (S, S), scale generated ones; False: they were padded, crop them.
    sizes: images of each set; they lie one set after the other.
    weights: share of each set of the draws, of sum 1, or None where they are drawn by their number.
    source_names: what each set is called.
    skipped: a line for every image that could not be used.
    known_classes: classes that the sets have, images of which need not be among these.
    captions: a text for each image, "" where it has none, or a list of texts; or None.
    left_out: what is not used, with its number and the reason. notes: lines on what may surprise.
    splits: of each set, the split that they are of; "held out of train" where they were taken from that.
    """

    images: np.ndarray | Strips
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
    captions: list[str | list[str]] | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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

    @property
    def unlabelled_fingerprint(self) -> str:
        """``fingerprint`` without labels: of a version that found none in these data."""
        return replace(self, labels=None, label_names=None).fingerprint

    def take(self, indices: np.ndarray, places: np.ndarray | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images uint8 (B, C, S, S), 0..255, and their labels int64 (B,) or None.

        Args:
            places: (B,) in [0, 1), where to crop whole pictures along their longer side; None is their centre.
        """
        images = torch.from_numpy(self.images[indices] if places is None else self.images.crops(indices, places))
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
