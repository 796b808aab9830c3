"""A few-step Fréchet distance while a run trains, made by all ranks together."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ddpm_hf.data import ImageData
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.features import load_features
from ddpm_hf.evaluation.scores import frechet_distance, refuse_too_few
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.training.pictures import draw, seeds_of_rank, wait

BATCH = 50


class FrechetScore:
    """Distance of the features of generated and real images (Heusel et al. 2017, equation 6).

    It is of few images and few steps, so it compares a run with itself, not with published numbers. Every rank makes
    an equal share of the images, and none waits for more than the slowest of them.

    Args:
        features: as ``load_features`` takes it; images are at the data's own size.
        data: the real images; evenly spaced ones are taken.
        num_images: of each kind.

    Raises:
        UserError: if there are no such features.
    """

    def __init__(self, features: str, data: ImageData, num_images: int, accelerator: Accelerator):
        self.data, self.accelerator = data, accelerator
        self.num_images = min(num_images, len(data))
        if self.num_images < 2:
            raise UserError("score_features needs at least 2 real images, for validation or else to train on.")
        self.extractor = load_features(features, (data.num_channels, *data.output_size), accelerator.device)
        num_features = self.extractor.num_features((data.num_channels, *data.output_size))
        refuse_too_few(self.num_images, num_features, "score_images", self.extractor.name)
        self.real: torch.Tensor | None = None

    def __call__(
        self, pipeline: MyDDPMPipeline, check: Callable[[], None], prompts: Sequence[str] | None = None
    ) -> float:
        """The distance for ``pipeline``'s images of seeds 0, 1, ..., sampled in the model's own way. Collective.

        check: called before every step on all ranks; what it raises ends the work.
        prompts: taken in turn by the seeds, of a model that reads words.
        """
        if self.real is None:
            self.real = self._gathered(self._real_features(check))
        fake = []
        for seeds in seeds_of_rank(self.num_images, BATCH, self.accelerator):
            if seeds:
                images = pipeline.postprocess(draw(pipeline, seeds, self.accelerator, check, prompts), "pt")
                fake.append(self.extractor((images * 255).round().byte()).features)
            else:
                wait(pipeline, check)
        return frechet_distance(self._gathered(fake), self.real)

    def _real_features(self, check: Callable[[], None]) -> list[torch.Tensor]:
        """Features of this rank's share of the real images."""
        indices, found = torch.linspace(0, len(self.data) - 1, self.num_images).long(), []
        for seeds in seeds_of_rank(self.num_images, BATCH, self.accelerator):
            check()
            if seeds:
                found.append(self.extractor(self.data.shown(indices[seeds].numpy())).features)
        return found

    def _gathered(self, features: list[torch.Tensor]) -> torch.Tensor:
        """The features of all ranks, (num_images, D)."""
        return torch.cat(gather_object(features))
