"""A pipeline as a folder that carries the source of its components.

``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` loads it where ddpm_hf is not installed.
"""

import copy
import hashlib
import json
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ddpm_hf import pipeline as pipeline_module
from ddpm_hf import scheduler as scheduler_module
from ddpm_hf import unet as unet_module
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.pipeline import MyDDPMPipeline

OWN_CLASSES = ("MyUNet", "MyDDPMScheduler")
WEIGHTS_KEY = "_weights"  # of model_index.json
PIPELINE_OPTIONS = ("id2label", "output_height", "output_width", "output_resize")


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

    Component files have the hash of their content in their names: diffusers puts the component files of all
    repositories into one place, where same-named files of two versions would replace each other.

    Args:
        folder: created; an exported pipeline in its place is replaced as a whole.
        pipeline: the weights are written as safetensors.
        dtype: floating-point type of the stored weights; None keeps them as they are.
        fp16_variant: store float16 weights too, beside them, which ``from_pretrained(..., variant="fp16")`` takes.
        max_shard_size: largest file of weights, such as "15MB"; None is diffusers' own limit.
        weights: which of a run they are, in words (``weights_name``); None is what the pipeline was loaded with.

    Raises:
        UserError: if something else than an exported pipeline is in its place. It is not touched.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not is_replaceable(folder):
        raise UserError(f"{folder} exists and is not an exported pipeline; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as parent:
        partial = Path(parent) / "new"
        try:
            _write_pipeline(partial, pipeline, dtype, fp16_variant, max_shard_size)
            _note_weights(partial / "model_index.json", weights or getattr(pipeline, "weights", None))
        except Exception as error:  # safetensors and the system each raise their own for a full disk
            raise UserError(f"pipeline {folder.name} could not be written: {one_line(error)}") from error
        if folder.exists():
            folder.rename(Path(parent) / "old")  # deleted with ``parent``, when the new one is in place
        partial.rename(folder)
    return folder


def is_ours(pipeline: DiffusionPipeline) -> bool:
    """Whether it is a MyDDPMPipeline: the installed class, or that of the code which came with a model."""
    return type(pipeline).__name__ == MyDDPMPipeline.__name__


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


def is_replaceable(folder: Path) -> bool:
    """Whether ``folder`` is empty, or an exported pipeline that is not a checkout."""
    if not folder.is_dir():
        return False
    return not any(folder.iterdir()) or ((folder / "model_index.json").is_file() and not (folder / ".git").exists())


def _write_pipeline(folder: Path, pipeline, dtype, fp16_variant: bool, max_shard_size: str | None):
    shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    unet = pipeline.unet if dtype is None else _cast(pipeline.unet, dtype)
    unet.save_pretrained(folder / "unet", safe_serialization=True, **shards)
    if fp16_variant:
        half = _cast(pipeline.unet, torch.float16)
        half.save_pretrained(folder / "unet", safe_serialization=True, variant="fp16", **shards)
    _forget_origin(folder / "unet" / "config.json")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    components = {
        "_diffusers_version": diffusers.__version__,
        "unet": _component(folder / "unet", pipeline.unet, unet_module),
        "scheduler": _component(folder / "scheduler", pipeline.scheduler, scheduler_module),
    }
    if is_ours(pipeline):
        index = {"_class_name": [_write_source(folder, pipeline_module), "MyDDPMPipeline"], **components}
        index |= {name: pipeline.config.get(name) for name in PIPELINE_OPTIONS}
    else:  # one of diffusers' own, which needs no code
        index = {"_class_name": type(pipeline).__name__, **components}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def weights_name(decay: float | str) -> str:
    """In words: the trained weights, ``decay`` "raw" or 0, or the average of that largest decay."""
    return "raw" if decay in ("raw", 0) else f"average, largest decay {decay}"


def _note_weights(index_file: Path, weights: str | None):
    """Keep which weights they are; diffusers passes over names that begin with an underscore."""
    if weights is not None:
        index = json.loads(index_file.read_text()) | {WEIGHTS_KEY: weights}
        index_file.write_text(json.dumps(index, indent=2) + "\n")


def _forget_origin(config_file: Path):
    """Drop the path that the weights were loaded from: it is nobody's business, and no longer true."""
    config = json.loads(config_file.read_text())
    config.pop("_name_or_path", None)
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def _cast(unet: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    unet = copy.deepcopy(unet)
    for tensor in [*unet.parameters(), *unet.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return unet


def _component(folder: Path, component, module) -> list[str]:
    """The [module, class] entry of model_index.json, the module's source written beside the weights if it is ours."""
    name = type(component).__name__
    return [_write_source(folder, module), name] if name in OWN_CLASSES else ["diffusers", name]


def _write_source(folder: Path, module) -> str:
    """Copy a module's source into ``folder`` under a name that holds its hash; returns that name."""
    source = Path(module.__file__).read_bytes()
    name = f"{module.__name__.replace('.', '_')}_{hashlib.sha256(source).hexdigest()[:12]}"
    (folder / f"{name}.py").write_bytes(source)
    return name
