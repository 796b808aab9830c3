"""A few-step Fréchet distance while a run trains, made by all ranks together."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from ddpm_hf.data import ImageData
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.training.pictures import draw, seeds_of_rank, wait

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
        if self.num_images < 2:
            raise UserError("score_features needs at least 2 real images, for validation or else to train on.")
        example = torch.zeros(2, data.num_channels, *data.output_size)
        network = _load_features(features, example)
        network.num_features = network(example).shape[1]
        self.has_real = False
        self.metric = FrechetInceptionDistance(network, reset_real_features=False).to(accelerator.device)

    @torch.no_grad()
    def __call__(self, pipeline: MyDDPMPipeline, steps: int, check: Callable[[], None]) -> float:
        """The distance for ``pipeline``'s images, image i from seed i, of class i in turn. Collective.

        check: called before every step on all ranks; what it raises ends the work.
        """
        if not self.has_real:
            self.metric.reset_real_features = True
            self.metric.reset()  # of what a stop may have left half-done
            self._add_real(pipeline, check)
            self.has_real, self.metric.reset_real_features = True, False
        self.metric.reset()
        for seeds in seeds_of_rank(self.num_images, BATCH, self.accelerator):
            if seeds:
                sample = draw(pipeline, seeds, steps, self.accelerator, check)
                self.metric.update(pipeline.postprocess(sample, "pt"), real=False)
            else:
                wait(steps, check)
        return self.metric.compute().item()  # sums over the ranks

    def _add_real(self, pipeline: MyDDPMPipeline, check: Callable[[], None]):
        indices = torch.linspace(0, len(self.data) - 1, self.num_images).long()
        for seeds in seeds_of_rank(self.num_images, BATCH, self.accelerator):
            check()
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
