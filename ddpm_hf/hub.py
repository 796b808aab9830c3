"""Pipelines in folders and on the Hub: export, load, push.

An exported folder carries the source of its components, so ``DiffusionPipeline.from_pretrained(x,
trust_remote_code=True)`` loads it where ddpm_hf is not installed. ``load_pipeline`` loads the same folder with the
installed classes and runs nothing that came with it.
"""

import copy
import fnmatch
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
from ddpm_hf.checkpoints import newest_whole
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.unet import MyUNet

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "pretrained" / "fashion_mnist_small"
CARD_TEMPLATE = Path(__file__).resolve().parent.parent / "model_card.md"
OWN_CLASSES = {"MyUNet": MyUNet, "MyDDPMScheduler": MyDDPMScheduler}
PIPELINE_OPTIONS = ("id2label", "output_height", "output_width", "output_resize")
LARGEST_OUTPUT = 4096  # pixels a side that images are scaled to
LOADED_FILES = ["model_index.json", "unet/*.json", "unet/*.safetensors", "scheduler/*.json"]


# ---- export


def export_pipeline(
    folder: str | Path,
    pipeline: DiffusionPipeline,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str | None = None,
) -> Path:
    """Write ``pipeline`` as a folder that loads with diffusers alone, from the folder or from the Hub.

    Component files have the hash of their content in their names: diffusers puts the component files of all
    repositories into one place, where same-named files of two versions would replace each other.

    Args:
        folder: created; an exported pipeline in its place is replaced as a whole.
        pipeline: the weights are written as safetensors.
        dtype: floating-point type of the stored weights; None keeps them as they are.
        max_shard_size: largest file of weights, such as "15MB"; None is diffusers' own limit.

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
            _write_pipeline(partial, pipeline, dtype, max_shard_size)
        except Exception as error:  # safetensors and the system each raise their own for a full disk
            raise UserError(f"pipeline {folder.name} could not be written: {one_line(error)}") from error
        if folder.exists():
            folder.rename(Path(parent) / "old")  # deleted with ``parent``, when the new one is in place
        partial.rename(folder)
    return folder


def as_stock(pipeline: MyDDPMPipeline) -> DiffusionPipeline:
    """diffusers' own DDPMPipeline, which loads without any code of ours, where network and scheduler are stock.

    A pipeline with settings of its own, such as class names or an output size, stays as it is.
    """
    components = (type(pipeline.unet).__name__, type(pipeline.scheduler).__name__)
    own = any(pipeline.config.get(name) is not None for name in PIPELINE_OPTIONS)
    if own or components != ("UNet2DModel", "DDPMScheduler") or pipeline.num_classes is not None:
        return pipeline
    return diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler)


def is_replaceable(folder: Path) -> bool:
    """Whether ``folder`` is empty, or an exported pipeline that is not a checkout."""
    if not folder.is_dir():
        return False
    return not any(folder.iterdir()) or ((folder / "model_index.json").is_file() and not (folder / ".git").exists())


def _write_pipeline(folder: Path, pipeline, dtype: torch.dtype | None, max_shard_size: str | None):
    unet = pipeline.unet if dtype is None else _cast(pipeline.unet, dtype)
    shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    unet.save_pretrained(folder / "unet", safe_serialization=True, **shards)
    _forget_origin(folder / "unet" / "config.json")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    components = {
        "_diffusers_version": diffusers.__version__,
        "unet": _component(folder / "unet", pipeline.unet, unet_module),
        "scheduler": _component(folder / "scheduler", pipeline.scheduler, scheduler_module),
    }
    if isinstance(pipeline, MyDDPMPipeline):
        index = {"_class_name": [_write_source(folder, pipeline_module), "MyDDPMPipeline"], **components}
        index |= {name: pipeline.config.get(name) for name in PIPELINE_OPTIONS}
    else:  # one of diffusers' own, which needs no code
        index = {"_class_name": type(pipeline).__name__, **components}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


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


# ---- load


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
    index = _read_json(folder / "model_index.json", model)
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
        return _pipeline_in(Path(model))
    name = str(model)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or Path(model).exists():
        raise UserError(f"model {name} is not there: give the folder of an exported pipeline, or a Hub id.")
    return _download(name, revision, token)


def _pipeline_in(folder: Path) -> Path:
    """The folder itself, or, where it is that of a training run, its pipeline: finished, or of its last checkpoint."""
    if (folder / "model_index.json").exists():
        return folder
    if (folder / "pipeline").is_dir():
        return folder / "pipeline"
    checkpoint, _ = newest_whole(folder)
    return checkpoint / "pipeline" if checkpoint else folder


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
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=LOADED_FILES))
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


def _read_json(path: Path, model) -> dict:
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise UserError(f"model {model} has no {path.name}: it is not an exported pipeline.") from None
    except ValueError as error:
        raise UserError(f"model {model}: {path.name} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"model {model}: {path.name} must hold an object, not a {type(values).__name__}.")
    return values


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


# ---- push


def push(folder: str | Path, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload an exported folder to the Hub in one commit, creating the repository if need be; returns its address.

    A folder without README.md of its own is given one there, the model card, filled in from the model's settings.
    Component files of older versions go.

    Raises:
        UserError: if the folder is no exported pipeline, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    folder = Path(folder)
    _read_json(folder / "model_index.json", folder)
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if "README.md" not in files and CARD_TEMPLATE.exists():
        files["README.md"] = _model_card(folder, repo_id).encode()
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        operations = _changes(api.list_repo_files(repo_id), files)
        api.create_commit(repo_id, operations, commit_message="Upload MyDDPMPipeline")
    except HFValidationError:
        raise UserError(f"{repo_id!r} is not a Hub id such as name/model.") from None
    except Exception as error:  # the client raises its own, the HTTP library's and the system's
        raise UserError(f"pushing to {repo_id} failed: {one_line(error)}") from error
    return str(url)


def _changes(present: list[str], files: dict) -> list:
    """Operations of one commit: add ``files``, and delete component files of ours that are not among them."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    old = [name for name in present if fnmatch.fnmatch(name, "*ddpm_hf_*_*.py") and name not in files]
    added = [CommitOperationAdd(name, source) for name, source in files.items()]
    return added + [CommitOperationDelete(name) for name in old]


def _model_card(folder: Path, repo_id: str) -> str:
    """The card's text, from the template and the model's own settings."""
    from huggingface_hub import ModelCard, ModelCardData

    pipeline = load_pipeline(folder)
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.out_channels
    card = ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation",
            tags=["diffusers", "ddpm", "ddpm_hf"],
        ),
        template_path=str(CARD_TEMPLATE),
        model_name=repo_id.split("/")[-1],
        repo_id=repo_id,
        channels=channels,
        height=pipeline.config.output_height or size,
        width=pipeline.config.output_width or size,
        classes=[name for _, name in sorted((pipeline.config.id2label or {}).items(), key=lambda item: int(item[0]))],
        parameters=sum(parameter.numel() for parameter in pipeline.unet.parameters()),
        num_train_timesteps=pipeline.scheduler.config.num_train_timesteps,
        prediction_type=pipeline.scheduler.config.prediction_type,
    )
    return str(card)
