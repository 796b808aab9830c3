"""Pipelines from folders, runs and the Hub, with the installed classes: nothing that came with a model is run."""

import inspect
from pathlib import Path

import diffusers
import torch

from ddpm_hf.config import NetworkPart, SchedulerPart, TextEncoderPart, check_part
from ddpm_hf.errors import UserError, one_line, printable
from ddpm_hf.hub.export import SAMPLING_OPTIONS, WEIGHTS_KEY
from ddpm_hf.hub.fetching import fetch, weight_files
from ddpm_hf.hub.headers import ITEM_SIZES, Weight, read_header
from ddpm_hf.hub.run_files import read_object
from ddpm_hf.memory import call_bytes, refuse_beyond_memory
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.run import RunFolder
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.text_encoders import load_text_encoder
from ddpm_hf.unet import MyUNet

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent.parent / "pretrained" / "fashion_mnist_small"
OWN_CLASSES = {"MyUNet": MyUNet, "MyDDPMScheduler": MyDDPMScheduler}
LARGEST_OUTPUT = 4096  # pixels a side that images are scaled to


class UnknownClass(UserError):
    """A component is of a class that is neither ours nor diffusers'.

    folder: of the model, where it has the code of that class; None where it has not.
    """

    def __init__(self, line: str, folder: Path | None = None):
        super().__init__(line)
        self.folder = folder


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
    network, process = component_settings(folder, model)
    try:
        check_settings(network, process)
        _check_before_loading(unet_class, network, folder / "unet", variant)
        unet, info = unet_class.from_pretrained(
            folder / "unet", use_safetensors=True, variant=variant, torch_dtype=dtype, output_loading_info=True
        )
        _check_weights(unet, info)
        # without accelerate, diffusers leaves some in the type they were; its own ``to`` warns of a cast
        unet = torch.nn.Module.to(unet.eval(), torch.device(device), dtype)
        scheduler = scheduler_class.from_pretrained(folder / "scheduler")
        encoder = _text_encoder(index, folder, variant, device)
        pipeline = MyDDPMPipeline(unet, scheduler, **pipeline_options(index, unet, scheduler), **encoder)
        pipeline.weights = weights if isinstance(weights := index.get(WEIGHTS_KEY), str) else None
        return pipeline
    except Exception as error:
        raise UserError(f"model {model} cannot be loaded: {one_line(error)}") from error


def _text_encoder(index: dict, folder: Path, variant: str | None, device) -> dict:
    """Tokenizer and text encoder of a model that reads words, as the pipeline takes them; {} of others."""
    if not index.get("text_encoder") or not index.get("tokenizer"):
        return {}
    settings = read_object(folder / "text_encoder" / "config.json", folder.name)
    check_part(TextEncoderPart, settings, "text_encoder/config.json")
    return load_text_encoder(folder, device, variant=variant)._asdict()


def component_settings(folder: Path, model) -> tuple[dict, dict]:
    """Settings of network and scheduler. diffusers would follow anything but an object to other folders or the Hub.

    Raises:
        UserError: if one of them is no object.
    """
    names = ("unet/config.json", "scheduler/scheduler_config.json")
    return tuple(read_object(folder / name, model) for name in names)


def check_settings(network: dict, process: dict):
    """Raise a ValueError for a setting of a model's network or scheduler that is not what it can be."""
    check_part(NetworkPart, network, "unet/config.json")
    check_part(SchedulerPart, process, "scheduler/scheduler_config.json")


def network_without_weights(unet_class: type, settings: dict) -> torch.nn.Module:
    """The network that a model's settings describe; it takes no memory."""
    known = inspect.signature(unet_class.__init__).parameters
    with torch.device("meta"):
        return unet_class(**{name: value for name, value in settings.items() if name in known})


def _check_before_loading(unet_class: type, settings: dict, folder: Path, variant: str | None):
    """Compare the headers of the weights with the network, which takes no memory, and estimate what will be taken.

    Raises:
        ValueError: if the weights are not those of the network, or there is not enough memory.
    """
    network = network_without_weights(unet_class, settings)
    for files in _weights_to_load(folder, variant):
        found = {}
        for file in files:
            found |= read_header(file)
        check_weights(found, network)
        needed = sum(weight.size * (4 + ITEM_SIZES[weight.dtype]) for weight in found.values())
        if unet_class is MyUNet:  # makes its table of timesteps before it is replaced
            needed += 3 * 8 * found["time_embed.weight"].size
        refuse_beyond_memory(needed, "its weights")
    refuse_beyond_memory(call_bytes(network), "a picture of it")


def _weights_to_load(folder: Path, variant: str | None) -> list[list[Path]]:
    """The files of each set of weights in a network's folder: one file, or parts that an index names, or both."""
    single, _, index = (folder.parent / name for name in weight_files(variant))
    sets = [[single]] if single.is_file() else []
    if index.is_file():
        parts = read_object(index, folder.parent.name).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
            raise ValueError(f"{index.name} has no weight_map with names of files.")
        names = set(parts.values())
        if wrong := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
            raise ValueError(f"{index.name} names {wrong[0]!r}, which is not there.")
        sets.append([folder / name for name in sorted(names)])
    if not sets:
        raise ValueError(f"its weights are in parts, but there is no {index.name}.")
    return sets


def _renamed(name: str) -> str:
    """The present name of a weight of diffusers' old attention blocks."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".{old}.", f".{new}.")
    return name


def check_weights(found: dict[str, Weight], network: torch.nn.Module):
    """Raise a ValueError unless the weights that headers of files tell of are those of the network."""
    if not isinstance(network, MyUNet):
        found = {_renamed(name): weight for name, weight in found.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for names, problem in ((expected.keys() - found.keys(), "missing"), (found.keys() - expected.keys(), "unexpected")):
        if names:
            raise ValueError(f"its weights do not fit its config.json: {min(names)} is {problem}.")
    for name, weight in found.items():
        if weight.shape != expected[name]:
            raise ValueError(
                f"its weights do not fit its config.json: {name} has the shape {weight.shape}, not {expected[name]}."
            )
        if weight.dtype not in ITEM_SIZES:
            raise ValueError(f"its weights are of type {weight.dtype}; known are {', '.join(ITEM_SIZES)}.")


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
    # the pipeline checks these
    return options | {name: index[name] for name in SAMPLING_OPTIONS if index.get(name) is not None}


def _local_folder(model: str | Path | None, revision: str | None, token: str | None, variant: str | None) -> Path:
    if model is None:
        if not EMBEDDED_MODEL.is_dir():
            raise UserError("no model was named, and the one that ships with the repository is not there.")
        return EMBEDDED_MODEL
    if Path(model).is_dir():
        return RunFolder(model).pipeline_folder()
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
    name = printable(name, 100)
    if name in OWN_CLASSES:
        return OWN_CLASSES[name]
    if name in stock and hasattr(diffusers, name):
        return getattr(diffusers, name)
    known = ", ".join(sorted({*OWN_CLASSES, *stock}))
    line = f"model {model} has a {component} of class {name}; known are {known}."
    has_code = folder is not None and is_module_name(module) and (folder / component / f"{module}.py").is_file()
    raise UnknownClass(line, folder if has_code else None)


def is_module_name(name) -> bool:
    """Whether ``name`` can be that of a Python module, so that no file outside the model's folder has it."""
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
