"""The validation loss: the network's error on held-out images, with noise that is the same every time."""

import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator

from ddpm_hf.data import ImageData, mixed_seed
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.training.loss import squared_error

BUCKETS = 10  # equal ranges of the timesteps
BATCH = 50
LEAST_PAIRS = 500  # of an image and a noise: few images are seen with several noises


class Validation:
    """Mean squared error at timesteps spread evenly over 0 .. T - 1, whole and by ``BUCKETS`` ranges of them.

    Pair i is of image i (again from the start where there are few) with noise and a timestep of its own, the same at
    every step of a run. Batches are dealt to the ranks in turn.
    """

    def __init__(self, data: ImageData, scheduler: MyDDPMScheduler, seed: int, accelerator: Accelerator, words=None):
        self.words = words  # of the images' captions, a CaptionWords, or None
        self.data, self.scheduler, self.seed, self.accelerator = data, scheduler, seed, accelerator
        self.num_pairs = max(len(data), LEAST_PAIRS)
        steps = len(scheduler)
        spread = (np.arange(self.num_pairs) + 0.5) / self.num_pairs * steps
        self.timesteps = np.random.default_rng((seed, self.num_pairs)).permutation(spread.astype(np.int64))
        self.buckets = self.timesteps * BUCKETS // steps

    def __call__(self, unet: torch.nn.Module, conditional: bool, check: Callable[[], None]) -> tuple[float, list]:
        """The loss of ``unet``, and its means by range of timesteps (None where a range is empty). Collective.

        check: called before every batch on all ranks; what it raises ends the work.
        """
        sums = torch.zeros(2, BUCKETS, dtype=torch.float64)
        num_batches = math.ceil(self.num_pairs / BATCH)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for turn in range(math.ceil(num_batches / world)):
            check()
            if (index := turn * world + rank) < num_batches:
                pairs = np.arange(index * BATCH, min((index + 1) * BATCH, self.num_pairs))
                errors = self._errors(unet, pairs, index, conditional)
                buckets = torch.from_numpy(self.buckets[pairs])
                sums[0].index_add_(0, buckets, errors.double().cpu())
                sums[1].index_add_(0, buckets, torch.ones(len(pairs), dtype=torch.float64))
        total, count = self.accelerator.reduce(sums.float().to(self.accelerator.device), "sum").double().cpu()
        means = [(total[i] / count[i]).item() if count[i] else None for i in range(BUCKETS)]
        return (total.sum() / count.sum()).item(), means

    @torch.no_grad()
    def _errors(self, unet: torch.nn.Module, pairs: np.ndarray, index: int, conditional: bool) -> torch.Tensor:
        device = self.accelerator.device
        images, labels = self.data.batch(pairs % len(self.data))
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, index, len(pairs)))
        noise = torch.randn(images.shape, generator=generator).to(device)
        timesteps = torch.from_numpy(self.timesteps[pairs]).to(device)
        labels = labels.to(device) if conditional else None
        words = self.words and self.words.take(pairs % len(self.data)).to(device)
        with self.accelerator.autocast():
            return squared_error(unet, self.scheduler, images.to(device), labels, noise, timesteps, words)
