"""Pipelines from folders, runs and the Hub, with the installed classes: nothing that came with a model is run."""

from pathlib import Path

import diffusers
import torch

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub.contents import pipeline_in, read_object
from ddpm_hf.hub.retries import again
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.unet import MyUNet

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent.parent / "pretrained" / "fashion_mnist_small"
OWN_CLASSES = {"MyUNet": MyUNet, "MyDDPMScheduler": MyDDPMScheduler}
LARGEST_OUTPUT = 4096  # pixels a side that images are scaled to
LOADED_FILES = ["model_index.json", "unet/*.json", "unet/*.safetensors", "scheduler/*.json"]


def load_pipeline(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> MyDDPMPipeline:
    """Load a pipeline that ``export_pipeline`` wrote, or one of diffusers' own UNet2DModel, without remote code.

    Args:
        model: folder of a pipeline or of a training run, or Hub id; None is the model that ships with the repository.
        revision, token: branch, tag or commit of a Hub id, and the token to fetch it with.
        dtype: what the network computes in. Sampling keeps the images in float32.
        device: where the network runs.

    Raises:
        UserError: if there is no such model, it is not such a pipeline, or its weights are pickles.
    """
    folder = _local_folder(model, revision, token)
    index = read_object(folder / "model_index.json", model)
    unet_class = _class_of(index, "unet", {"UNet2DModel"}, model)
    scheduler_class = _class_of(index, "scheduler", set(MyDDPMScheduler._compatibles), model)
    if not any((folder / "unet").glob("*.safetensors")):
        raise UserError(f"model {model} has no safetensors weights; pickled weights can run code and are not loaded.")
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise UserError(f"model {model} has no scheduler/scheduler_config.json: it is not an exported pipeline.")
    try:
        unet, info = unet_class.from_pretrained(
            folder / "unet", use_safetensors=True, torch_dtype=dtype, output_loading_info=True
        )
        _check_weights(unet, info)
        unet = unet.eval().to(torch.device(device))
        scheduler = scheduler_class.from_pretrained(folder / "scheduler")
        return MyDDPMPipeline(unet, scheduler, **_pipeline_options(index, unet, scheduler))
    except Exception as error:
        raise UserError(f"model {model} cannot be loaded: {one_line(error)}") from error


def _check_weights(unet: torch.nn.Module, info: dict):
    """Refuse weights that are not those of the configured network, all of them, and finite."""
    for problem in ("missing", "unexpected"):
        if names := sorted(info.get(f"{problem}_keys", ())):
            raise ValueError(f"its weights do not fit its config.json: {names[0]} is {problem}.")
    for name, parameter in unet.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"its weights are broken: {name} is not finite.")


def _pipeline_options(index: dict, unet: torch.nn.Module, scheduler) -> dict:
    """The pipeline's own settings from model_index.json, checked."""
    size, options = unet.config.sample_size, {"output_resize": index.get("output_resize")}
    if options["output_resize"] is not None and not isinstance(options["output_resize"], bool):
        raise ValueError(f"output_resize in model_index.json must be true or false, got {options['output_resize']!r}.")
    limits = (size, size) if isinstance(size, int) else size
    limits = (LARGEST_OUTPUT, LARGEST_OUTPUT) if options["output_resize"] else limits
    for name, largest in zip(("output_height", "output_width"), limits):
        value = options[name] = index.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= largest):
            raise ValueError(f"{name} in model_index.json must be a whole number in [1, {largest}], got {value!r}.")
    names = options["id2label"] = index.get("id2label")
    if names is not None and not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
        raise ValueError("id2label in model_index.json must give a name for every label.")
    rows = getattr(unet.config, "num_train_timesteps", None)
    if rows is not None and scheduler.config.num_train_timesteps > rows:
        raise ValueError(
            f"its scheduler has {scheduler.config.num_train_timesteps} timesteps, its network knows only {rows}."
        )
    return options


def _local_folder(model: str | Path | None, revision: str | None, token: str | None) -> Path:
    if model is None:
        if not EMBEDDED_MODEL.is_dir():
            raise UserError("no model was named, and the one that ships with the repository is not there.")
        return EMBEDDED_MODEL
    if Path(model).is_dir():
        return pipeline_in(Path(model))
    name = str(model)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or Path(model).exists():
        raise UserError(f"model {name} is not there: give the folder of an exported pipeline, or a Hub id.")
    return _download(name, revision, token)


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """The repository's configuration and weights in the local cache, fetched or, offline, found there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            again(lambda: snapshot_download(repo_id, revision=revision, token=token, allow_patterns=LOADED_FILES))
        )
    except GatedRepoError:
        raise UserError(f"model {repo_id} is gated: ask for access on its page, then log in.") from None
    except RepositoryNotFoundError:
        raise UserError(f"model {repo_id} is neither a folder here nor a repository you can see on the Hub.") from None
    except RevisionNotFoundError:
        raise UserError(f"model {repo_id} has no revision {revision!r}.") from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"model {repo_id} is no folder here, not in the cache, and the Hub cannot be reached."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"model {repo_id} cannot be fetched: {one_line(error)}") from None
    except HFValidationError:
        raise UserError(f"{repo_id!r} is neither a folder here nor a Hub id such as name/model.") from None


def _class_of(index: dict, component: str, stock: set[str], model):
    """The class of a component: ours by name, or one of the ``stock`` classes of diffusers; never code of the repo."""
    entry = index.get(component)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name in OWN_CLASSES:
        return OWN_CLASSES[name]
    if name in stock and hasattr(diffusers, name):
        return getattr(diffusers, name)
    known = ", ".join(sorted({*OWN_CLASSES, *stock}))
    raise UserError(f"model {model} has a {component} of class {name}; known are {known}.")
