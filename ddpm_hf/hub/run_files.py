"""Which files of a run, or of an exported pipeline, a repository is given, and what they say of the model.

Names are allowed, not forbidden: optimizer state, checkpoints, caches, tokens and whatever else lies in the folder stay
where they are.
"""

import fnmatch
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ddpm_hf.checkpoints import checkpoints_of, step_of
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.report_schema import EvaluationReport
from ddpm_hf.hub.evaluations import FIGURES, fitting_reports
from ddpm_hf.hub.outgoing import parameters_in, refuse_disguised, refuse_links_out
from ddpm_hf.ownership import OF_WORDS
from ddpm_hf.reading import read_json
from ddpm_hf.run import Facts, RunFolder, weights_of

WORDS = ("tokenizer", "text_encoder")  # parts that are of transformers
PARTS = ("unet", "scheduler", *WORDS)
# names, whole, of what an export and a run write
OF_PIPELINE = re.compile(
    r"model_index\.json|unet/config\.json|scheduler/scheduler_config\.json"
    r"|unet/diffusion_pytorch_model(\.\w+)?(-\d+-of-\d+)?(\.\w+)?\.safetensors"  # variants and parts too
    r"|unet/diffusion_pytorch_model\.safetensors\.index(\.\w+)?\.json"
    r"|(unet/|scheduler/)?ddpm_hf_\w+_[0-9a-f]{12}\.py"
    rf"|{'|'.join(fnmatch.translate(name) for name in OF_WORDS)}"
)
OF_RUN = re.compile(
    r"config\.yaml|metrics\.jsonl|(loss|timesteps|noise|samplers)\.png|samples/step-\d+\.png"
    rf"|evaluation[\w.-]*\.json|evaluation[\w.-]*-({'|'.join(FIGURES)})\.png"
    r"|README\.md|LICENSE(\.md|\.txt)?"
)
TEXTS = ("config.yaml", "evaluation*.json")  # may name folders of this machine
MOST_GRIDS = 10
# What a push replaces: component files and weights of an older version.
STALE = (
    f"*ddpm_hf_*_{'[0-9a-f]' * 12}.py",
    "unet/diffusion_pytorch_model*.safetensors",  # variants too
    "unet/diffusion_pytorch_model.safetensors.index*.json",
    *OF_WORDS,
    "samples/step-*.png",
    "evaluation.json",  # which would tell of other weights
    "evaluation-*.json",
    "evaluation-*.png",
)

# What the pushes of a run bring to a repository, README.md aside.
OF_PUSHES = (
    *(*STALE, "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"),
    *("config.yaml", "metrics.jsonl", "loss.png", "timesteps.png"),
)


@dataclass(frozen=True)
class RunFiles:
    """Files to publish, path in the repository -> file here, and what they say.

    index, unet, scheduler: the pipeline's settings. parameters: of the network. step: that the weights are of.
    settings, metrics, facts, evaluation: of the run; empty where absent. said: a line for whoever pushes on each report
    that is not, or may not be, of these weights. base_model: Hub id of the model that these weights were made of, where
    diffusers or the run has noted it.
    """

    files: dict[str, Path]
    index: dict
    unet: dict
    scheduler: dict
    parameters: int
    step: int | None = None
    settings: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    evaluation: EvaluationReport | None = None
    said: list[str] = field(default_factory=list)
    base_model: str | None = None

    def grids(self) -> list[str]:
        """The run's sample grids, in the order of their steps."""
        return sorted(name for name in self.files if name.startswith("samples/"))


def run_files_of(folder: Path, step: int | None = None) -> RunFiles:
    """What to publish of ``folder``: the output_dir of a run, or an exported pipeline.

    Of a run that goes on, the pipeline is that of its newest whole checkpoint.

    Args:
        step: of the checkpoint of a run whose pipeline it is to be.

    Raises:
        UserError: if there is no such folder or checkpoint, no whole pipeline in it, or one with more components; or
            if a file is a link out of the folder, or not what its name says.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the output_dir of a run, or an exported pipeline.")
    run = RunFolder(folder)
    pipeline = run.pipeline_folder() if step is None else folder / "checkpoints" / f"step-{step}" / "pipeline"
    if not pipeline.is_dir():
        kept = ", ".join(str(step_of(checkpoint)) for checkpoint in checkpoints_of(folder)) or "none"
        raise UserError(f"{folder} has no checkpoint of step {step}; kept are {kept}.")
    checkpoint = pipeline.parent if pipeline.parent.name.startswith("step-") else None
    files = _matching(pipeline, OF_PIPELINE, OF_RUN)
    if pipeline != folder:
        files |= _matching(folder, OF_RUN)
    refuse_links_out({**files, "facts.json": folder / "facts.json"}, folder)  # the card shows the facts
    if checkpoint:
        refuse_links_out({"state.json": checkpoint / "state.json"}, checkpoint)
    step = step_of(checkpoint) if checkpoint else None
    metrics = run.last_values(step)
    step = metrics.get("step") if step is None else step
    index = read_object(pipeline / "model_index.json", folder)
    unet = read_object(pipeline / "unet" / "config.json", folder)
    scheduler = read_object(pipeline / "scheduler" / "scheduler_config.json", folder)
    _refuse_other_components(index, pipeline, folder)
    used = _sources(index) | _grids(files, None if pipeline == folder else step)
    files = {name: path for name, path in files.items() if name in used or not re.search(r"\.py$|^samples/", name)}
    of_end = folder / "pipeline" / "unet" if checkpoint else None
    files, evaluation, said = fitting_reports(files, pipeline / "unet", of_end)
    refuse_disguised(files)
    facts = run.facts(checkpoint)
    return RunFiles(
        files,
        index,
        unet,
        scheduler,
        _parameters(pipeline, folder),
        step,
        settings=run.settings(),
        metrics=metrics,
        facts=facts,
        evaluation=evaluation,
        said=said,
        base_model=_base_model(unet) or facts.base_model,
    )


def is_private_run(folder: Path) -> bool:
    """Whether ``folder`` is, or lies in, a run that is not to be public.

    Raises:
        UserError: if the settings of the run cannot be read, so that it is not known.
    """
    folder = folder.resolve()
    places = [folder, *folder.parents[:3]]  # the last is the run of checkpoints/step-3/pipeline
    for run in (place for place in places if (place / "config.yaml").is_file()):
        settings = RunFolder(run).settings()
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
        if not own and not (entry[0] == "diffusers" and _is_in_diffusers(entry[1])):
            return False
    return all(index.get(part) is None or index[part][:1] == ["transformers"] for part in WORDS)


def _is_in_diffusers(name) -> bool:
    """Whether diffusers has such a class, by its text, as importing it takes seconds; yes where it is not installed."""
    spec = importlib.util.find_spec("diffusers")
    return spec is None or f'"{name}"' in Path(spec.origin).read_text(encoding="utf-8")


def read_object(path: Path, model) -> dict:
    """The JSON object in a file.

    Raises:
        UserError: if there is none.
    """
    try:
        values = read_json(path)
    except OSError:
        raise UserError(f"model {model} has no {path.name}: it is not an exported pipeline.") from None
    except ValueError as error:
        raise UserError(f"model {model}: {path.name} is not a JSON file that can be read: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"model {model}: {path.name} must hold an object, not a {type(values).__name__}.")
    return values


def without_paths(text: str) -> str:
    """``text`` with the folders of this machine cut off absolute paths: they are private."""
    return re.sub(r"(?<![\w:/.])(?:/|[A-Za-z]:\\)(?:[^\s\"'/\\:,]+[/\\])*([^\s\"'/\\:,]+)", r"\1", text)


# ---- files


def _refuse_other_components(index: dict, pipeline: Path, folder: Path):
    for name, entry in index.items():
        if isinstance(entry, list) and name not in PARTS and (pipeline / name).is_dir():
            raise UserError(
                f"model {folder} has a component {name}; a push takes {', '.join(PARTS[:-1])} and {PARTS[-1]} only."
            )


def _matching(folder: Path, *patterns: re.Pattern) -> dict[str, Path]:
    """The files in ``folder``, and in those of a pipeline's parts and of samples, whose names match as a whole."""
    paths = [path for part in (".", *PARTS, "samples") for path in sorted((folder / part).glob("*")) if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in found.items() if any(pattern.fullmatch(name) for pattern in patterns)}


def _sources(index: dict) -> set[str]:
    """The files of code that model_index.json names; those of older exports are not needed."""
    entries = {"": index.get("_class_name"), **{f"{part}/": index.get(part) for part in PARTS}}
    return {f"{folder}{entry[0]}.py" for folder, entry in entries.items() if isinstance(entry, list) and entry}


def _grids(files: Iterable[str], step: int | None) -> set[str]:
    """The last of a run's sample grids, up to ``step``, and others spread evenly before it."""
    steps = {name: int(name[len("samples/step-") : -len(".png")]) for name in files if name.startswith("samples/")}
    names = [name for name in sorted(steps) if step is None or steps[name] <= step]
    if len(names) > MOST_GRIDS:
        every = (len(names) - 1) / (MOST_GRIDS - 1)
        names = [names[round(i * every)] for i in range(MOST_GRIDS)]
    return set(names)


# ---- what they say


def _base_model(unet: dict) -> str | None:
    """The model whose network diffusers loaded from the Hub before it was changed and saved: it notes the folder of the
    cache, models--name--model/snapshots/COMMIT/unet."""
    found = re.search(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]", str(unet.get("_name_or_path", "")))
    return "/".join(found.groups()) if found else None


def _parameters(pipeline: Path, folder: Path) -> int:
    """Weights of the network, counted in the headers of its files."""
    files = weights_of(pipeline / "unet") or sorted((pipeline / "unet").glob("*.safetensors"))  # of a variant alone
    if not files:
        raise UserError(f"model {folder} has no safetensors weights.")
    return sum(parameters_in(path) for path in files)
