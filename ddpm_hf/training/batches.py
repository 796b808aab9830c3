"""What a step trains on: a rank's share of a batch, from images at hand or from a stream."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from ddpm_hf.data import ImageData, ImageOrder, ImageStream
from ddpm_hf.data.order import crop_places
from ddpm_hf.data.strips import Strips

Batch = tuple[torch.Tensor, torch.Tensor | None]


class ImageBatches:
    """Images in memory or mapped: a batch is a function of the seed and the number of images seen before it.

    While a step computes, a thread fetches the next batch, so that a slow disk costs nothing.
    """

    def __init__(self, data: ImageData, seed: int, batch_size: int, rank: int, num_processes: int):
        self.data, self.batch_size, self.rank, self.num_processes = data, batch_size, rank, num_processes
        self.seed, self.order = seed, ImageOrder(seed, data.sizes, data.weights)
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future] | None = None

    def share_of(self, images_seen: int) -> np.ndarray:
        """Indices of this rank's images of the batch after ``images_seen``, (batch_size / num_processes,)."""
        return self._share(self.order.indices(images_seen, self.batch_size))

    def _share(self, batch: np.ndarray) -> np.ndarray:
        return batch.reshape(self.num_processes, -1)[self.rank]

    def _take(self, images_seen: int) -> Batch:
        places = None
        if isinstance(self.data.images, Strips):
            places = self._share(crop_places(self.seed, images_seen, self.batch_size))
        return self.data.take(self.share_of(images_seen), places)

    def batch(self, images_seen: int) -> Batch:
        """This rank's uint8 images (B, C, S, S) of the batch after ``images_seen``, and their labels (B,) or None."""
        if self._next is not None and self._next[0] == images_seen:
            batch = self._next[1].result()
        else:
            batch = self._take(images_seen)
        after = images_seen + self.batch_size
        self._next = after, self._pool.submit(self._take, after)
        return batch

    def state(self):
        """Nothing: the number of images seen is enough."""
        return

    def restore(self, state):
        """Nothing to restore."""


class StreamBatches:
    """Images of a stream, one after the other; where it is has to be remembered."""

    def __init__(self, stream: ImageStream, count: int):
        self.stream, self.count = stream, count

    def batch(self, images_seen: int) -> Batch:
        """This rank's next ``count`` images and labels."""
        return self.stream.next(self.count)

    def state(self) -> dict:
        """Where this rank's stream is."""
        return self.stream.state_dict()

    def restore(self, state: dict):
        """Go on from there."""
        self.stream.load_state_dict(state)
