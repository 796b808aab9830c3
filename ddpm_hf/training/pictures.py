"""Pictures of a run's average while it trains, made by all ranks together."""

import math
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from ddpm_hf.figures import class_columns, make_grid
from ddpm_hf.pipeline import MyDDPMPipeline

BATCH = 64


def draw(
    pipeline: MyDDPMPipeline,
    seeds: list[int],
    accelerator: Accelerator,
    check: Callable[[], None],
    prompts: Sequence[str] | None = None,
) -> torch.Tensor:
    """Images (B, C, S, S) in [-1, 1] from ``seeds``, sampled in the model's own way; ``check`` between steps.

    prompts: taken in turn by the seeds, of a model that reads words.
    """
    prompt = [prompts[seed % len(prompts)] for seed in seeds] if prompts else None
    denoising = pipeline.denoise(len(seeds), seed=seeds, prompt=prompt)
    step = None
    while True:
        with accelerator.autocast():  # of a step alone: what ``check`` raises must not leave it on
            last, step = step, next(denoising, None)
        if step is None:
            return last.sample
        check()


def seeds_of_rank(count: int, batch: int, accelerator: Accelerator) -> list[list[int]]:
    """This rank's seeds of 0 .. count - 1, in as many batches as every other rank has; some may be empty."""
    share = math.ceil(count / accelerator.num_processes)
    mine = range(accelerator.process_index * share, min((accelerator.process_index + 1) * share, count))
    return [list(mine[i * batch : (i + 1) * batch]) for i in range(math.ceil(share / batch))]


def sample_grid(
    pipeline: MyDDPMPipeline,
    count: int,
    accelerator: Accelerator,
    check: Callable[[], None],
    prompts: Sequence[str] | None = None,
) -> Image.Image:
    """A grid of ``count`` images, always from the same noise; columns are classes where there are. Collective.

    prompts: taken in turn by the images, of a model that reads words.

    Image i depends on its seed alone, so the grid does not depend on the number of ranks (but for half precision,
    which rounds differently in batches of other sizes).
    """
    images = []
    for seeds in seeds_of_rank(count, BATCH, accelerator):
        if seeds:
            images += pipeline.postprocess(draw(pipeline, seeds, accelerator, check, prompts))
        else:  # more ranks than images: the others' checks are answered all the same
            wait(pipeline, check)
    return make_grid(gather_object(images), class_columns(count, pipeline.num_classes or 0))


def wait(pipeline: MyDDPMPipeline, check: Callable[[], None]):
    """Take part in the checks of the ranks that have images to make."""
    for _ in range(pipeline.config.num_inference_steps):
        check()
