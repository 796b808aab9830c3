"""Pipelines from folders, runs and the Hub, with the installed classes: nothing that came with a model is run."""

from pathlib import Path

import diffusers
import torch

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub.contents import pipeline_in, read_object
from ddpm_hf.hub.export import WEIGHTS_KEY
from ddpm_hf.hub.fetching import fetch, weight_files
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.unet import MyUNet

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent.parent / "pretrained" / "fashion_mnist_small"
OWN_CLASSES = {"MyUNet": MyUNet, "MyDDPMScheduler": MyDDPMScheduler}
LARGEST_OUTPUT = 4096  # pixels a side that images are scaled to


class UnknownClass(UserError):
    """A component is of a class that is neither ours nor diffusers'. folder: of the model, code: its file there."""

    def __init__(self, line: str, folder: Path | None = None, code: str | None = None):
        super().__init__(line)
        self.folder, self.code = folder, code


def public_name(model: str | Path | None) -> str:
    """How a model is called where others read it: a Hub id as it is, of a folder its name, never where it is."""
    if model is None:
        return EMBEDDED_MODEL.name
    return Path(model).resolve().name if Path(model).exists() else str(model)


def load_pipeline(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> MyDDPMPipeline:
    """Load a pipeline that ``export_pipeline`` wrote, or one of diffusers' own UNet2DModel, without remote code.

    Args:
        model: folder of a pipeline or of a training run, or Hub id; None is the model that ships with the repository.
        revision, token: branch, tag or commit of a Hub id, and the token to fetch it with.
        variant: of the weights, such as fp16, where the model has several.
        dtype: what the network computes in. Sampling keeps the images in float32.
        device: where the network runs.

    Raises:
        UserError: if there is no such model, it is not such a pipeline, or its weights are pickles.
    """
    folder = _local_folder(model, revision, token, variant)
    index = read_object(folder / "model_index.json", model)
    unet_class, scheduler_class = check_classes(index, model, folder)
    _check_weight_files(folder, variant, model)
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise UserError(f"model {model} has no scheduler/scheduler_config.json: it is not an exported pipeline.")
    try:
        unet, info = unet_class.from_pretrained(
            folder / "unet", use_safetensors=True, variant=variant, torch_dtype=dtype, output_loading_info=True
        )
        _check_weights(unet, info)
        # without accelerate, diffusers leaves some in the type they were; its own ``to`` warns of a cast
        unet = torch.nn.Module.to(unet.eval(), torch.device(device), dtype)
        scheduler = scheduler_class.from_pretrained(folder / "scheduler")
        pipeline = MyDDPMPipeline(unet, scheduler, **pipeline_options(index, unet, scheduler))
        pipeline.weights = weights if isinstance(weights := index.get(WEIGHTS_KEY), str) else None
        return pipeline
    except Exception as error:
        raise UserError(f"model {model} cannot be loaded: {one_line(error)}") from error


def _check_weight_files(folder: Path, variant: str | None, model):
    if any(next(folder.glob(pattern), None) for pattern in weight_files(variant)):
        return
    if variant is not None:
        raise UserError(f"model {model} has no safetensors weights of the variant {variant!r}.")
    raise UserError(f"model {model} has no safetensors weights; pickled weights can run code and are not loaded.")


def _check_weights(unet: torch.nn.Module, info: dict):
    """Refuse weights that are not those of the configured network, all of them, and finite."""
    for problem in ("missing", "unexpected"):
        if names := sorted(info.get(f"{problem}_keys", ())):
            raise ValueError(f"its weights do not fit its config.json: {names[0]} is {problem}.")
    for name, parameter in unet.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"its weights are broken: {name} is not finite.")


def pipeline_options(index: dict, unet: torch.nn.Module, scheduler) -> dict:
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


def _local_folder(model: str | Path | None, revision: str | None, token: str | None, variant: str | None) -> Path:
    if model is None:
        if not EMBEDDED_MODEL.is_dir():
            raise UserError("no model was named, and the one that ships with the repository is not there.")
        return EMBEDDED_MODEL
    if Path(model).is_dir():
        return pipeline_in(Path(model))
    if not is_hub_id(model):
        raise UserError(f"model {model} is not there: give the folder of an exported pipeline, or a Hub id.")
    return fetch(str(model), revision=revision, token=token, variant=variant)


def is_hub_id(model: str | Path | None) -> bool:
    """Whether ``load_pipeline`` takes it for a Hub id."""
    if model is None or Path(model).exists():
        return False
    return str(model).count("/") <= 1 and not str(model).startswith((".", "/", "~"))


def check_classes(index: dict, model: str | Path | None, folder: Path | None = None) -> tuple[type, type]:
    """The classes of network and scheduler that model_index.json names: ours, or diffusers' own; never the model's.

    Args:
        folder: of the model, where code of its own may lie.

    Raises:
        UnknownClass: if one is neither.
    """
    stock = {"unet": {"UNet2DModel"}, "scheduler": set(MyDDPMScheduler._compatibles)}
    return tuple(_class_of(index, component, names, model, folder) for component, names in stock.items())


def _class_of(index: dict, component: str, stock: set[str], model, folder: Path | None):
    entry = index.get(component)
    module, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    name = str(name)
    if name in OWN_CLASSES:
        return OWN_CLASSES[name]
    if name in stock and hasattr(diffusers, name):
        return getattr(diffusers, name)
    known = ", ".join(sorted({*OWN_CLASSES, *stock}))
    line = f"model {model} has a {component} of class {name}; known are {known}."
    code = None
    if folder is not None and isinstance(module, str) and (folder / component / f"{module}.py").is_file():
        code = f"{component}/{module}.py"
    raise UnknownClass(line, folder, code)
