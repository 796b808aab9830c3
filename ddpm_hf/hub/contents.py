"""Which files of a run, or of an exported pipeline, a repository is given, and what they say of the model.

Names are allowed, not forbidden: optimizer state, checkpoints, caches, tokens and whatever else lies in the folder stay
where they are.
"""

import fnmatch
import json
import re
import struct
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import yaml

from ddpm_hf.checkpoints import checkpoints_of, newest_whole, step_of
from ddpm_hf.errors import UserError
from ddpm_hf.hub.evaluations import fitting_reports

PARTS = ("unet", "scheduler")
OF_PIPELINE = (
    "model_index.json",
    "*.py",
    *(f"{part}/{name}" for part in PARTS for name in ("*.json", "*.safetensors", "*.py")),
)
OF_RUN = (
    "config.yaml",
    "metrics.jsonl",
    "loss.png",
    "timesteps.png",
    "evaluation*.json",
    "evaluation*.png",
    "noise.png",
    "samplers.png",
)
OWN = ("README.md", "LICENSE*")
TEXTS = ("config.yaml", "evaluation*.json")  # may name folders of this machine
MOST_GRIDS = 10
# What a push replaces: component files and weights of an older version.
STALE = (
    f"*ddpm_hf_*_{'[0-9a-f]' * 12}.py",
    "unet/diffusion_pytorch_model*.safetensors",  # variants too
    "unet/diffusion_pytorch_model.safetensors.index*.json",
    "samples/step-*.png",
    "evaluation.json",  # which would tell of other weights
    "evaluation-*.json",
    "evaluation-*.png",
)


@dataclass(frozen=True)
class Contents:
    """Files to publish, path in the repository -> file here, and what they say.

    index, unet, scheduler: the pipeline's settings. parameters: of the network. step: that the weights are of.
    settings, metrics, facts, evaluation: of the run; {} where absent. said: a line for whoever pushes on each report
    that is not, or may not be, of these weights. base_model: Hub id of the model that these weights were made of, where
    diffusers has noted it.
    """

    files: dict[str, Path]
    index: dict
    unet: dict
    scheduler: dict
    parameters: int
    step: int | None = None
    settings: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    evaluation: dict = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    base_model: str | None = None

    def grids(self) -> list[str]:
        """The run's sample grids, in the order of their steps."""
        return sorted(name for name in self.files if name.startswith("samples/"))


def contents_of(folder: Path, step: int | None = None) -> Contents:
    """What to publish of ``folder``: the output_dir of a run, or an exported pipeline.

    Of a run that goes on, the pipeline is that of its newest whole checkpoint.

    Args:
        step: of the checkpoint of a run whose pipeline it is to be.

    Raises:
        UserError: if there is no such folder or checkpoint, no whole pipeline in it, or one with more components.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the output_dir of a run, or an exported pipeline.")
    pipeline = pipeline_in(folder) if step is None else folder / "checkpoints" / f"step-{step}" / "pipeline"
    if not pipeline.is_dir():
        kept = ", ".join(str(step_of(checkpoint)) for checkpoint in checkpoints_of(folder)) or "none"
        raise UserError(f"{folder} has no checkpoint of step {step}; kept are {kept}.")
    checkpoint = pipeline.parent if pipeline.parent.name.startswith("step-") else None
    step = step_of(checkpoint) if checkpoint else None
    metrics = _last_values(folder / "metrics.jsonl", step)
    step = metrics.get("step") if step is None else step
    index = read_object(pipeline / "model_index.json", folder)
    unet = read_object(pipeline / "unet" / "config.json", folder)
    scheduler = read_object(pipeline / "scheduler" / "scheduler_config.json", folder)
    _refuse_other_components(index, pipeline, folder)
    files = _matching(pipeline, (*OF_PIPELINE, *OF_RUN, *OWN, "samples/*.png"))
    if pipeline != folder:
        files |= _matching(folder, OF_RUN + OWN)
        files |= _grids(folder, step)
    of_end = folder / "pipeline" / "unet" if checkpoint else None
    files, evaluation, said = fitting_reports(files, pipeline / "unet", of_end)
    return Contents(
        files,
        index,
        unet,
        scheduler,
        _parameters(pipeline, folder),
        step,
        settings=settings_of(folder),
        metrics=metrics,
        facts=_facts(folder, checkpoint),
        evaluation=evaluation,
        said=said,
        base_model=_base_model(unet),
    )


def pipeline_in(folder: Path) -> Path:
    """The folder itself, or, where it is that of a training run, its pipeline: finished, or of its last checkpoint."""
    if (folder / "model_index.json").exists():
        return folder
    finished = folder / "pipeline"
    if finished.is_dir() and not _went_on(folder):
        return finished
    checkpoint, _ = newest_whole(folder)
    if checkpoint is not None:
        return checkpoint / "pipeline"
    return finished if finished.is_dir() else folder


def _went_on(run: Path) -> bool:
    """Whether a run that had ended was taken further: it has a checkpoint that is newer than its pipeline."""
    try:
        ended = (run / "pipeline" / "model_index.json").stat().st_mtime_ns
        return any(file.stat().st_mtime_ns > ended for file in run.glob("checkpoints/step-*/state.json"))
    except OSError:  # replaced this moment by the run itself
        return False


def settings_of(run: Path) -> dict:
    """The settings in a run's config.yaml; {} where there are none."""
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def is_private_run(folder: Path) -> bool:
    """Whether ``folder`` is, or lies in, a run that is not to be public.

    Raises:
        UserError: if the settings of the run cannot be read, so that it is not known.
    """
    folder = folder.resolve()
    places = [folder, *folder.parents[:3]]  # the last is the run of checkpoints/step-3/pipeline
    for run in (place for place in places if (place / "config.yaml").is_file()):
        settings = settings_of(run)
        if not settings:
            raise UserError(
                f"{run.name}/config.yaml, which says whether the run is private, cannot be read; "
                "give --private or --no-private."
            )
        if settings.get("hub_private_repo"):
            return True
    return False


def is_from_us(index: dict, files: dict[str, Path]) -> bool:
    """Whether the components that model_index.json names are diffusers', or among ``files`` as we write them."""
    entries = {"": index.get("_class_name"), "unet/": index.get("unet"), "scheduler/": index.get("scheduler")}
    for folder, entry in entries.items():
        if isinstance(entry, str) and not entry.startswith("My"):
            continue  # a pipeline of diffusers
        if not (isinstance(entry, list) and len(entry) == 2):
            return False
        own = f"{folder}{entry[0]}.py" in files and str(entry[0]).startswith("ddpm_hf_")
        if entry[0] != "diffusers" and not own:
            return False
    return True


def read_object(path: Path, model) -> dict:
    """The JSON object in a file.

    Raises:
        UserError: if there is none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"model {model} has no {path.name}: it is not an exported pipeline.") from None
    except ValueError as error:
        raise UserError(f"model {model}: {path.name} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"model {model}: {path.name} must hold an object, not a {type(values).__name__}.")
    return values


def without_paths(text: str) -> str:
    """``text`` with folders of this machine cut off absolute paths: they are nobody's business."""
    return re.sub(r"(?<![\w:/.])(?:/|[A-Za-z]:\\)(?:[^\s\"'/\\:,]+[/\\])*([^\s\"'/\\:,]+)", r"\1", text)


# ---- files


def _refuse_other_components(index: dict, pipeline: Path, folder: Path):
    for name, entry in index.items():
        if isinstance(entry, list) and name not in PARTS and (pipeline / name).is_dir():
            raise UserError(f"model {folder} has a component {name}; a push takes unet and scheduler only.")


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob("*")) if path.is_file()}
    for part in ("unet", "scheduler", "samples"):
        found |= {f"{part}/{path.name}": path for path in sorted((folder / part).glob("*")) if path.is_file()}
    return {
        name: path
        for name, path in found.items()
        if any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
    }


def _grids(run: Path, step: int | None) -> dict[str, Path]:
    """The last of a run's sample grids, up to ``step``, and others spread evenly before it."""
    paths = sorted((run / "samples").glob("step-*.png"))
    paths = [path for path in paths if path.stem[5:].isdecimal() and (step is None or int(path.stem[5:]) <= step)]
    if len(paths) > MOST_GRIDS:
        every = (len(paths) - 1) / (MOST_GRIDS - 1)
        paths = [paths[round(i * every)] for i in range(MOST_GRIDS)]
    return {f"samples/{path.name}": path for path in paths}


# ---- what they say


def _base_model(unet: dict) -> str | None:
    """The model whose network diffusers loaded from the Hub before it was changed and saved: it notes the folder of the
    cache, models--name--model/snapshots/COMMIT/unet."""
    found = re.search(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]", str(unet.get("_name_or_path", "")))
    return "/".join(found.groups()) if found else None


def _parameters(pipeline: Path, folder: Path) -> int:
    """Weights of the network, counted in the headers of its files: 8 bytes of length, then JSON."""
    files = sorted((pipeline / "unet").glob("*.safetensors"))
    if not files:
        raise UserError(f"model {folder} has no safetensors weights.")
    count = 0
    for path in files:
        if len(files) > 1 and ".fp16." in path.name:
            continue  # the same weights again
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, 100_000_000)))
            for name, tensor in header.items():
                if name != "__metadata__":
                    size = 1
                    for side in tensor["shape"]:
                        size *= side
                    count += size
        except (struct.error, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"model {folder}: {path.name} is not a safetensors file.") from None
    return count


def _object_or_nothing(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _facts(run: Path, checkpoint: Path | None) -> dict:
    """What the run says of itself, with the time that it took up to ``checkpoint``."""
    facts = {name: str(value) for name, value in _object_or_nothing(run / "facts.json").items()}
    if checkpoint is None:
        return facts
    facts.pop("Wall time", None)
    progress = _object_or_nothing(checkpoint / "state.json").get("progress")
    seconds = progress.get("wall_seconds") if isinstance(progress, dict) else None
    if isinstance(seconds, (int, float)) and 0 < seconds < float("inf"):
        facts["Wall time"] = str(timedelta(seconds=round(seconds)))
    return facts


def _last_values(path: Path, step: int | None) -> dict:
    """The newest of every number in metrics.jsonl, up to ``step``."""
    values = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # what a kill left of the last one
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            continue
        if step is None or record["step"] <= step:
            values |= {name: value for name, value in record.items() if value is not None}
    return values
