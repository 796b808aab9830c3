"""Options that several commands have, and what is checked before the work begins."""

import argparse
import math
import tempfile
from pathlib import Path

from ddpm_hf.errors import UserError
from ddpm_hf.ownership import refuse_other_kind

LARGEST_SEED = 2**32 - 1


def whole_number(low: int, high: float = math.inf):
    """The argparse type of a whole number in [low, high]."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
        if not low <= value <= high:
            bounds = f"lie in [{low}, {high}]" if high < math.inf else f"be at least {low}"
            raise argparse.ArgumentTypeError(f"it must {bounds}, got {value}")
        return value

    return parse


def interval(text: str) -> tuple[float, float]:
    """The argparse type of an interval of timesteps: (0, 400) of "0,400"."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 <= low <= high < math.inf:
        raise argparse.ArgumentTypeError(f"two timesteps LOW,HIGH such as 0,400 are expected, got {text!r}")
    return tuple(int(value) if value == int(value) else value for value in (low, high))


def add_seed(parser: argparse.ArgumentParser, of: str):
    """Add --seed, by default 0."""
    parser.add_argument("--seed", type=whole_number(0, LARGEST_SEED), default=0, help=f"{of} (default 0)")


def add_sampling(parser: argparse.ArgumentParser, default: str = "the model's own"):
    """Add how to sample; what is left out is None."""
    parser.add_argument(
        "--scheduler", help=f"dpm, dpm-sde, unipc, ddim, euler, heun, ddpm, ddpm-small (default {default})"
    )
    parser.add_argument("--steps", type=int, help=f"denoising steps (default {default})")
    parser.add_argument("--guidance-scale", type=float, help=f"classifier-free guidance; 1 is off (default {default})")
    parser.add_argument(
        "--guidance-interval",
        type=interval,
        metavar="LOW,HIGH",
        help=f"timesteps that are guided; the others take half the work (default {default})",
    )


def add_loading(parser: argparse.ArgumentParser):
    """Add how a model is loaded and run."""
    parser.add_argument("--batch-size", type=whole_number(1), default=64, help="images made at once (default 64)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="network's precision")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a foreign model brings")


def load(arguments, device):
    """The pipeline that ``arguments`` (of ``add_loading``) name, on ``device``."""
    from ddpm_hf.hub import load_allowed

    return load_allowed(
        arguments.model,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        dtype=dtype(arguments, device),
        device=device,
    )


def dtype(arguments, device):
    """The precision that was asked for."""
    import torch

    from ddpm_hf.devices import best_dtype

    return best_dtype(device) if arguments.dtype == "auto" else getattr(torch, arguments.dtype)


def chosen_sampling(pipeline, arguments):
    """How to sample: as asked for (``add_sampling``), else in the model's own way. ``arguments`` get it too."""
    from ddpm_hf.sampling import Sampling, checked_guidance, own_sampling

    own = own_sampling(pipeline)
    arguments.scheduler = own.sampler if arguments.scheduler is None else arguments.scheduler
    arguments.steps = own.steps if arguments.steps is None else arguments.steps
    guidance = checked_guidance(pipeline, arguments.guidance_scale, arguments.guidance_interval)
    arguments.guidance_scale, arguments.guidance_interval = guidance
    return Sampling(arguments.scheduler, arguments.steps, *guidance)


def output_file(arguments, suffixes: tuple[str, ...]) -> Path:
    """``--output`` as a path, once it is known that the command can write it and that it replaces no other file.

    Raises:
        UserError: for another suffix, a folder that is not there or cannot be written, or a file of somebody's own.
    """
    path = Path(arguments.output)
    if path.suffix not in suffixes:
        raise UserError(f"--output {path} must end in {', '.join(suffixes)}.")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}.")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder.")
    refuse_unwritable(path, path.parent)
    refuse_other_kind(path)
    return path


def refuse_unwritable(path: Path, folder: Path | None = None):
    """Raise a UserError unless a file can be written in ``folder``; None is the nearest folder above ``path``."""
    folder = folder or next(folder for folder in path.absolute().parents if folder.exists())
    try:  # permissions tell nothing of a disk that is read-only or full
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output {path} cannot be written in {folder}: {error.strerror or error}.") from error
