"""Pictures of a run's average while it trains, made by all ranks together."""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from ddpm_hf.config import TrainConfig
from ddpm_hf.figures import class_columns, make_grid
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.samplers import make_scheduler
from ddpm_hf.training.parts import build_pipeline

STEPS = 20
BATCH = 64


def fast_pipeline(config: TrainConfig, data, unet: torch.nn.Module) -> tuple[MyDDPMPipeline, int]:
    """A network's pipeline with a fast sampler, and the steps to take with it."""
    pipeline = build_pipeline(config, data, unet)
    pipeline.scheduler = make_scheduler("dpm", pipeline.scheduler)
    return pipeline, min(STEPS, config.num_train_timesteps)


def draw(
    pipeline: MyDDPMPipeline, seeds: list[int], steps: int, accelerator: Accelerator, check: Callable[[], None]
) -> torch.Tensor:
    """Images (B, C, S, S) in [-1, 1] from ``seeds``, image of seed i of class i in turn; ``check`` between steps."""
    classes = pipeline.num_classes
    labels = None if classes is None else [seed % classes for seed in seeds]
    denoising = pipeline.denoise(len(seeds), labels, num_inference_steps=steps, seed=seeds)
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
    pipeline: MyDDPMPipeline, count: int, steps: int, accelerator: Accelerator, check: Callable[[], None]
) -> Image.Image:
    """A grid of ``count`` images, always from the same noise; columns are classes where there are. Collective.

    Image i depends on its seed alone, so the grid does not depend on the number of ranks (but for half precision,
    which rounds differently in batches of other sizes).
    """
    images = []
    for seeds in seeds_of_rank(count, BATCH, accelerator):
        if seeds:
            images += pipeline.postprocess(draw(pipeline, seeds, steps, accelerator, check))
        else:  # more ranks than images: the others' checks are answered all the same
            wait(steps, check)
    return make_grid(gather_object(images), class_columns(count, pipeline.num_classes or 0))


def wait(steps: int, check: Callable[[], None]):
    """Take part in the checks of the ranks that have images to make."""
    for _ in range(steps):
        check()
