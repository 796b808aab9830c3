"""The order in which a run sees the images: a function of (seed, position) alone, so a resume needs no state."""

import functools
from collections.abc import Sequence

import numpy as np


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several whole numbers, by NumPy's SeedSequence, which overlooks zeros at the end."""
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order of one epoch: a permutation of range(num_images) that depends on (seed, epoch) alone."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def crop_places(seed: int, position: int, count: int, *stream: int) -> np.ndarray:
    """Where draws ``position`` to ``position + count`` are cropped, (count,) in [0, 1): a function of the seed and each
    draw's number, and of the numbers ``stream`` of what has an order of its own."""
    generator = np.random.PCG64((len(stream), seed, *stream)).advance(position)  # as if all before had been drawn
    return np.random.Generator(generator).random(count)


class ImageOrder:
    """Which images a step sees, of one data set or of several that are mixed.

    An epoch is as many draws as there are images. Without weights it shows every image once. With weights it has
    ``round(N w)`` draws from each set (largest remainders, together N), in an order that is a permutation from (seed,
    epoch), and a set gives its images by a permutation, all of them, before it gives one again.

    Args:
        seed: of all permutations.
        sizes: number of images of each set; global indices count through the sets in this order.
        weights: share of each set, of any sum, or None.
    """

    def __init__(self, seed: int, sizes: Sequence[int], weights: Sequence[float] | None = None):
        self.seed, self.sizes = seed, [int(size) for size in sizes]
        self.num_images = sum(self.sizes)
        weighted = weights is not None and len(self.sizes) > 1
        self.draws = largest_remainders(self.num_images, weights) if weighted else None
        self._epochs = functools.lru_cache(maxsize=2)(self._mixed_epoch)  # a batch may touch two

    def indices(self, position: int, batch_size: int) -> np.ndarray:
        """Global image indices (batch_size,), int64, of the batch that follows the first ``position`` images."""
        pieces, missing = [], batch_size
        while missing:
            epoch, offset = divmod(position, self.num_images)
            pieces.append(self._epoch(epoch)[offset : offset + missing])
            position += len(pieces[-1])
            missing -= len(pieces[-1])
        return np.concatenate(pieces)

    def _epoch(self, epoch: int) -> np.ndarray:
        """All draws of an epoch, int64 (N,)."""
        return epoch_order(self.seed, epoch, self.num_images) if self.draws is None else self._epochs(epoch)

    def _mixed_epoch(self, epoch: int) -> np.ndarray:
        slots = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
        source_of_draw = np.searchsorted(np.cumsum(self.draws), slots, side="right")
        indices, first = np.empty(self.num_images, np.int64), 0
        for source, (size, draws) in enumerate(zip(self.sizes, self.draws)):
            # assigned in the order of the epoch: the set's own stream goes on where the epoch before left it
            indices[source_of_draw == source] = first + self._stream(source, epoch * draws, draws)
            first += size
        return indices

    def _stream(self, source: int, start: int, count: int) -> np.ndarray:
        """Draws ``start`` to ``start + count`` of a set's endless permutations, as indices into the set."""
        pieces, missing = [np.empty(0, np.int64)], count
        while missing:
            turn, offset = divmod(start, self.sizes[source])
            # the third number tells these permutations from those of the epochs
            order = np.random.default_rng((self.seed, turn, source + 1)).permutation(self.sizes[source])
            pieces.append(order[offset : offset + missing])
            start += len(pieces[-1])
            missing -= len(pieces[-1])
        return np.concatenate(pieces)


def largest_remainders(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to ``weights`` that add up to ``total``, each off by less than 1."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    for index in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    return counts.tolist()
