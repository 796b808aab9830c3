"""A pipeline as a folder that carries the source of its components.

``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` loads it where ddpm_hf is not installed.
"""

import copy
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.ownership import PIPELINE, may_replace, replace_folder
from ddpm_hf.pipeline import MyDDPMPipeline, write_pipeline

WEIGHTS_KEY = "_weights"  # of model_index.json
SAMPLING_OPTIONS = ("num_inference_steps", "guidance_scale", "guidance_interval")
PIPELINE_OPTIONS = ("id2label", "output_height", "output_width", "output_resize", *SAMPLING_OPTIONS)


def export_pipeline(
    folder: str | Path,
    pipeline: DiffusionPipeline,
    *,
    dtype: torch.dtype | None = None,
    fp16_variant: bool = False,
    max_shard_size: str | None = None,
    weights: str | None = None,
) -> Path:
    """Write ``pipeline`` as a folder that loads with diffusers alone, from the folder or from the Hub.

    The files are those of ``pipeline.save_pretrained``; but here they replace an older export all at once.

    Args:
        folder: created; an exported pipeline in its place is replaced. Other files in it stay as they are.
        pipeline: the weights are written as safetensors.
        dtype: floating-point type of the stored weights; None keeps them as they are.
        fp16_variant: store float16 weights too, beside them, which ``from_pretrained(..., variant="fp16")`` takes.
        max_shard_size: largest file of weights, such as "15MB"; None is diffusers' own limit.
        weights: which of a run they are, in words (``weights_name``); None is what the pipeline was loaded with.

    Raises:
        UserError: if ``folder`` holds something else than an exported pipeline, or if the pipeline has classes that
            nobody could load, or adapters that are not merged. Nothing in the folder changes.
    """
    folder = Path(folder).resolve()
    if not may_replace(folder, PIPELINE):
        raise UserError(f"{folder} exists and is not an exported pipeline; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as parent:
        partial = Path(parent) / "new"
        try:
            options = {"max_shard_size": max_shard_size}
            write_pipeline(_copy_of(pipeline, weights, dtype), partial, **options)
            if fp16_variant:
                write_pipeline(_copy_of(pipeline, weights, torch.float16), partial, variant="fp16", **options)
        except Exception as error:  # safetensors and the system each raise their own for a full disk
            raise UserError(f"pipeline {folder.name} could not be written: {one_line(error)}") from error
        try:
            replace_folder(folder, partial, PIPELINE)
        except OSError as error:  # as of Windows, where a program has a file of it open
            raise UserError(f"pipeline {folder.name} could not be replaced: {one_line(error)}") from error
    return folder


def as_stock(pipeline: MyDDPMPipeline) -> DiffusionPipeline:
    """diffusers' own DDPMPipeline, which loads without any code of ours, where network and scheduler are stock.

    A pipeline with settings of its own, such as class names or an output size, stays as it is.
    """
    components = (type(pipeline.unet).__name__, type(pipeline.scheduler).__name__)
    own = any(pipeline.config.get(name) is not None for name in PIPELINE_OPTIONS)
    if own or components != ("UNet2DModel", "DDPMScheduler") or pipeline.num_classes is not None:
        return pipeline
    stock = diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler)
    stock.weights = getattr(pipeline, "weights", None)
    return stock


def weights_name(decay: float | str) -> str:
    """In words: the trained weights, ``decay`` "raw" or 0, or the average of that largest decay."""
    return "raw" if decay in ("raw", 0) else f"average, largest decay {decay}"


def _copy_of(pipeline: DiffusionPipeline, weights: str | None, dtype: torch.dtype | None) -> DiffusionPipeline:
    """The pipeline with other words for its weights, or with copies of its networks in ``dtype``, where they are given.

    Module.to would warn of the table of timesteps, and diffusers' of parts that are to stay in float32.
    """
    other = copy.copy(pipeline)
    if weights is not None:
        other.weights = weights
    if dtype is not None:
        networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        for name, network in networks.items():
            network = copy.deepcopy(getattr(network, "_orig_mod", network))
            for tensor in [*network.parameters(), *network.buffers()]:
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
            other.register_modules(**{name: network})
    return other
