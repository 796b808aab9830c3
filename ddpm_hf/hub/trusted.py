"""Models that bring code of their own: run only where the user has asked for it, having seen which.

``load_pipeline`` knows its classes by name and never runs such code. The app and the command line come here.
"""

from pathlib import Path

import torch

from ddpm_hf.errors import LONGEST_LINE, UserError, one_line
from ddpm_hf.hub.loading import (
    UnknownClass,
    component_settings,
    is_hub_id,
    is_module_name,
    load_pipeline,
    pipeline_options,
)
from ddpm_hf.hub.run_files import read_object
from ddpm_hf.pipeline import MyDDPMPipeline

LONGEST_CODE = 2000  # characters of the names of a model's code files: what a person may still read


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
        UserError: as of ``load_pipeline``; and, naming the files and the commit, where code may not be run.
    """
    try:
        pipeline = load_pipeline(model, revision=revision, variant=variant, dtype=dtype, device=device)
        pipeline.unet.to(memory_format=torch.channels_last)  # convolutions then copy no weights
        return pipeline
    except UnknownClass as unknown:
        if unknown.folder is None:
            raise
        folder = unknown.folder
    files = _code_files(folder, model)
    commit = folder.name if is_hub_id(model) else None
    if not trust_remote_code or (commit and revision != commit):
        raise UserError(_how_to_allow(model, folder, files, commit), longest=10 * LONGEST_LINE) from None
    return _run(folder, model, variant, dtype).to(torch.device(device))


def _code_files(folder: Path, model) -> list[str]:
    """The model's files that its own code may import. diffusers finds some by their names in model_index.json, others
    by the imports in these, which may be of any file of the folder.

    Raises:
        UserError: if it names modules that are none, or has more files than one line can name.
    """
    for name, entry in read_object(folder / "model_index.json", model).items():
        module = entry[0] if isinstance(entry, list) and entry else None
        if module is not None and not (name.isidentifier() and is_module_name(module)):
            raise UserError(f"model {model}: model_index.json names {module!r} as the module of {name!r}.")
    paths = [path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}*.py")]
    found = sorted(path.relative_to(folder).as_posix() for path in paths)
    if sum(map(len, found)) > LONGEST_CODE:
        raise UserError(f"model {model} brings {len(found):,} files of code, more than can be shown; it is not loaded.")
    return found


def _how_to_allow(model, folder: Path, files: list[str], commit: str | None) -> str:
    from huggingface_hub import constants

    where = folder if commit is None else f"{constants.ENDPOINT}/{model}/tree/{commit}"
    pinned = "" if commit is None else f" --revision {commit}"
    return (
        f"model {model} brings code of its own, {', '.join(files)}, which could do anything on this machine: read it "
        f"({where}), and if you trust it, add --trust-remote-code{pinned}."
    )


def _run(folder: Path, model, variant: str | None, dtype: torch.dtype) -> MyDDPMPipeline:
    from diffusers import DiffusionPipeline

    component_settings(folder, model)
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
