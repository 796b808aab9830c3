"""A few-step Fréchet distance while a run trains, made by all ranks together."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from ddpm_hf.data import ImageData
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.pipeline import MyDDPMPipeline

BATCH = 50


class FrechetScore:
    """Distance of the features of generated and real images (Heusel et al. 2017, equation 6), by torchmetrics.

    It is of few images and few steps, so it compares a run with itself, not with published numbers. Every rank makes
    an equal share of the images, and none waits for more than the slowest of them.

    Args:
        features: file of a network from images, float32 (B, C, H, W) in [0, 1] at the data's own size, to features
            (B, D): TorchScript, or a .pt2 of torch.export.
        data: the real images; evenly spaced ones are taken.
        num_images: of each kind.

    Raises:
        UserError: if the file is no such network.
    """

    def __init__(self, features: str, data: ImageData, num_images: int, accelerator: Accelerator):
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.data, self.accelerator = data, accelerator
        self.num_images = min(num_images, len(data))
        example = torch.zeros(2, data.num_channels, *data.output_size)
        network = _load_features(features, example)
        network.num_features = network(example).shape[1]
        self.metric = FrechetInceptionDistance(network, reset_real_features=False).to(accelerator.device)

    @torch.no_grad()
    def __call__(self, pipeline: MyDDPMPipeline, steps: int, check: Callable[[], None]) -> float:
        """The distance for ``pipeline``'s images, image i from seed i, of class i in turn. Collective.

        check: called before every step on all ranks; what it raises ends the work.
        """
        self.metric.reset()
        if not self.metric.real_features_num_samples:
            self._add_real(pipeline)
        for seeds in self._batches():
            for image in self._generate(pipeline, seeds, steps, check):
                self.metric.update(image, real=False)
        return self.metric.compute().item()  # sums over the ranks

    def _batches(self) -> list[list[int]]:
        """This rank's seeds, in as many batches as every other rank has."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = math.ceil(self.num_images / world)
        mine = range(rank * share, min((rank + 1) * share, self.num_images))
        return [list(mine[i * BATCH : (i + 1) * BATCH]) for i in range(math.ceil(share / BATCH))]

    def _generate(self, pipeline: MyDDPMPipeline, seeds: list[int], steps: int, check: Callable[[], None]):
        if not seeds:  # more ranks than images: the others' checks are answered all the same
            for _ in range(steps):
                check()
            return
        classes = pipeline.num_classes
        labels = None if classes is None else [seed % classes for seed in seeds]
        with self.accelerator.autocast():
            for step in pipeline.denoise(len(seeds), labels, num_inference_steps=steps, seed=seeds):
                check()
                sample = step.sample
        yield pipeline.postprocess(sample, "pt").to(self.accelerator.device)

    def _add_real(self, pipeline: MyDDPMPipeline):
        indices = torch.linspace(0, len(self.data) - 1, self.num_images).long()
        for seeds in self._batches():
            if seeds:
                images, _ = self.data.batch(indices[seeds].numpy())
                self.metric.update(pipeline.postprocess(images.to(self.accelerator.device), "pt"), real=True)


def _load_features(path: str, example: torch.Tensor) -> torch.nn.Module:
    if not Path(path).is_file():
        raise UserError(f"score_features {path} does not exist; a TorchScript or .pt2 file would be right.")
    try:
        network = torch.export.load(path).module() if path.endswith(".pt2") else torch.jit.load(path).eval()
        shape = tuple(network(example).shape)
    except Exception as error:  # torch raises RuntimeError for nearly all of it
        raise UserError(f"score_features {path} cannot be used: {one_line(error)}") from error
    if len(shape) != 2 or shape[0] != len(example):
        raise UserError(f"score_features {path} gives shape {shape} for 2 images; (2, features) would be right.")
    return _Features(network)


class _Features(torch.nn.Module):
    """The network as torchmetrics wants it, with its number of features."""

    num_features: int

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)
