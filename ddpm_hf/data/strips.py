"""Whole pictures of any proportions in one array, for crops that differ from draw to draw."""

import numpy as np


class Strips:
    """Whole pictures, their shorter sides S pixels. As an array it is (N, C, S, S): the pictures' centres.

    Args:
        lines: uint8 (sum of lengths, C, S), which may be memory-mapped: the columns of a picture from left to right or,
            of an upright one, its rows.
        lengths: the longer side of each picture, int64 (N,), at least S; negative for an upright one.
    """

    def __init__(self, lines: np.ndarray, lengths: np.ndarray):
        self.lines, self.lengths = lines, np.asarray(lengths, np.int64)
        self._ends = np.cumsum(np.abs(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        _, channels, size = self.lines.shape
        return len(self), channels, size, size

    def __getitem__(self, chosen):
        """Of a slice the pictures themselves; of indices (B,) their centres, uint8 (B, C, S, S)."""
        if isinstance(chosen, slice):
            first, last, _ = chosen.indices(len(self))
            bounds = [0, *self._ends]
            return Strips(self.lines[bounds[first] : bounds[max(first, last)]], self.lengths[first:last])
        return self.crops(chosen, np.full(len(chosen), 0.5))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or np.uint8, copy=False)

    def crops(self, indices: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Squares uint8 (B, C, S, S) of pictures; ``places`` (B,), in [0, 1), are along their longer sides."""
        size, lengths = self.lines.shape[2], self.lengths[indices]
        squares = np.empty((len(lengths), *self.shape[1:]), np.uint8)
        for square, length, end, place in zip(squares, lengths, self._ends[indices], places):
            first = end - abs(length) + int(place * (abs(length) - size + 1))
            square[:] = self.lines[first : first + size].transpose((1, 0, 2) if length < 0 else (1, 2, 0))
        return squares


def as_lines(images: list[np.ndarray], channels: int, size: int) -> tuple[np.ndarray, list[int]]:
    """The lines and lengths of ``Strips`` of pictures uint8 (C, H, W), the shorter of H and W being ``size``."""
    upright = [image.shape[1] > image.shape[2] for image in images]
    lines = [image.transpose((1, 0, 2) if tall else (2, 0, 1)) for image, tall in zip(images, upright)]
    lengths = [-len(piece) if tall else len(piece) for piece, tall in zip(lines, upright)]
    return np.concatenate([np.empty((0, channels, size), np.uint8), *lines]), lengths
