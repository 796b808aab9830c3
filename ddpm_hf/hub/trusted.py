"""Models that bring code of their own: run only where the user has asked for it, having seen which.

``load_pipeline`` knows its classes by name and never runs such code. The app and the command line come here.
"""

from pathlib import Path

import torch

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub.contents import read_object
from ddpm_hf.hub.loading import UnknownClass, is_hub_id, load_pipeline, pipeline_options
from ddpm_hf.pipeline import MyDDPMPipeline


def load_allowed(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> MyDDPMPipeline:
    """``load_pipeline``; of a model whose network or scheduler are of its own code, that too, if it may.

    Args:
        revision: of a Hub id whose code is to be run, the hash of the commit, so that what runs is what was read.
        trust_remote_code: run the code that comes with the model. Weights are never unpickled.

    Raises:
        UserError: as of ``load_pipeline``; and, naming the commit, where code would have to be run but may not.
    """
    try:
        return load_pipeline(model, revision=revision, variant=variant, dtype=dtype, device=device)
    except UnknownClass as unknown:
        if unknown.code is None:
            raise
        folder, code = unknown.folder, unknown.code
    commit = folder.name if is_hub_id(model) else None
    if not trust_remote_code or (commit and revision != commit):
        raise UserError(_how_to_allow(model, folder / code, commit)) from None
    return _run(folder, model, variant, dtype).to(torch.device(device))


def _how_to_allow(model, code: Path, commit: str | None) -> str:
    from huggingface_hub import constants

    where = code if commit is None else f"{constants.ENDPOINT}/{model}/tree/{commit}"
    pinned = "" if commit is None else f" --revision {commit}"
    return (
        f"model {model} brings code of its own, {code.name}, which could do anything on this machine: read it "
        f"({where}), and if you trust it, add --trust-remote-code{pinned}."
    )


def _run(folder: Path, model, variant: str | None, dtype: torch.dtype) -> MyDDPMPipeline:
    from diffusers import DiffusionPipeline

    try:
        loaded = DiffusionPipeline.from_pretrained(
            folder, trust_remote_code=True, use_safetensors=True, variant=variant
        )
        unet, scheduler = loaded.unet.eval(), loaded.scheduler
        if unet.dtype != dtype:
            unet.to(dtype)
        options = pipeline_options(read_object(folder / "model_index.json", model), unet, scheduler)
        pipeline = MyDDPMPipeline(unet, scheduler, **options)
        channels, size = unet.config.in_channels, unet.config.sample_size
        if channels not in (1, 3) or not size:
            raise ValueError(f"its network is for {channels} channels of {size} pixels, not for pictures.")
    except Exception as error:  # of any code
        raise UserError(f"model {model} cannot be loaded with its code: {one_line(error)}") from error
    return pipeline
