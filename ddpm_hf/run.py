"""The folder of a training run: what is read from it and written to it, in one place. No torch.

config.yaml         the settings                     metrics.jsonl   a JSON object a line, in the order of the steps
facts.json          what only the trainer knows      samples/        a grid of images for some steps
checkpoints/step-N  the state at step N              pipeline/       the exported model, once the run has finished
"""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddpm_hf.checkpoints import STATE, checkpoints_of, newest_whole, step_of, written_digests
from ddpm_hf.errors import UserError
from ddpm_hf.files import named, sha256, write_whole
from ddpm_hf.ownership import RUN, mapping
from ddpm_hf.reading import LARGEST_TEXT, is_finite, open_regular, parse_json, read_json, read_yaml

LONGEST_LINE = 2**20  # bytes, of metrics.jsonl
LONGEST_RUN = 1e12  # seconds: below what a timedelta takes
CHECKPOINT_WEIGHTS = re.compile(r"pipeline/unet/.*\.safetensors")  # in a checkpoint's manifest


class Facts(BaseModel):
    """What only the trainer knows of a run: its data, its machine, how far it is. None is unknown.

    images: trained on; None for a stream. mode: gray or RGB. batch_size: images a step. device_type: as of torch.
    wall_seconds: of the training, over all its starts. bad_images: a line for each image that was skipped.
    hub_datasets: ids of data sets of the Hub. base_model: Hub id that the run started from. settings_from: where the
    settings come from. code: our commit. prompts: some that the run's grids show.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    images: int | None = None
    mode: str | None = None
    validation_images: int | None = None
    parameters: int | None = None
    step: int | None = None
    total_steps: int | None = None
    batch_size: int | None = None
    processes: int | None = None
    device_type: str | None = None
    device: str | None = None
    precision: str | None = None
    wall_seconds: float | None = Field(None, ge=0, le=LONGEST_RUN)
    bad_images: list[str] = []
    skipped_steps: int = 0
    best_step: int | None = None
    hub_datasets: list[str] = []
    base_model: str | None = None
    settings_from: str | None = None
    code: str | None = None
    prompts: list[str] = []

    def described(self) -> dict[str, str]:
        """Label -> text of what is known, for people."""
        wall = None if self.wall_seconds is None else str(timedelta(seconds=round(self.wall_seconds)))
        texts = {
            "Images": f"{self.images:,} {self.mode or ''}" if self.images else "streamed" if self.step else None,
            "Validation": self.validation_images and f"{self.validation_images:,} held-out images",
            "Parameters": self.parameters and f"{self.parameters:,}",
            "Steps": self.step and f"{self.step:,} of {self.total_steps or 0:,}, {self.batch_size or 0} images each",
            "Processes": self.processes and f"{self.processes} on {self.device_type}",
            "Device": self.device,
            "Precision": self.precision,
            "Wall time": wall,
            "Bad images skipped": self.bad_images and f"{len(self.bad_images):,}, first {self.bad_images[0]}",
            "Steps skipped": self.skipped_steps and f"{self.skipped_steps:,}, loss exploded or not finite",
            "Best checkpoint": self.best_step and f"step-{self.best_step}, by validation loss",
            "Hub data sets": ", ".join(self.hub_datasets),
            "Base model": self.base_model,
            "Settings": self.settings_from,
            "Code": self.code,
        }
        return {label: text.strip() for label, text in texts.items() if text}


class RunFolder:
    """``output_dir`` of a training run, or a folder that has some of a run's files beside a model."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config, self.samples = self.path / "config.yaml", self.path / "samples"
        self.pipeline = self.path / "pipeline"
        self._metrics, self._facts = self.path / "metrics.jsonl", self.path / "facts.json"
        self._last_step: int | None = None  # of metrics.jsonl

    # ---- settings

    def settings(self) -> dict:
        """The settings of the run as they were saved; {} where there are none, or they cannot be read."""
        return mapping(read_yaml, self.config)

    def settings_to_resume(self) -> dict:
        """The settings of the run that has checkpoints here; {} if there is none.

        Raises:
            UserError: if it has checkpoints, but its settings cannot be read.
        """
        if not checkpoints_of(self.path):
            return {}
        if not (settings := self.settings()):
            raise UserError(f"{self.path} has checkpoints but no readable config.yaml; choose another output_dir.")
        return settings

    def read_settings(self) -> dict:
        """The settings of the run.

        Raises:
            UserError: if the folder is not that of a training run.
        """
        give = "give the output_dir of a training run."
        if not self.path.is_dir():
            raise UserError(f"run {self.path} is not there; {give}")
        if not self.config.is_file():
            raise UserError(f"{self.path} has no config.yaml; {give}")
        try:
            settings = read_yaml(self.config)
        except ValueError as error:
            raise UserError(f"{self.config} cannot be read: {error}.") from None
        if not RUN.owns(self.path):
            raise UserError(f"{self.config} is not of a training run; {give}")
        return settings

    # ---- metrics

    def lines(self, largest: int = LARGEST_TEXT) -> list[dict]:
        """The lines of metrics.jsonl with increasing ``step``; [] where there are none, or more than ``largest`` bytes.

        Values are finite numbers, or lists of these and None; everything else is None. Torn lines are left out, and so
        are lines that a resumed run has written again.
        """
        lines = []
        if self._metrics.is_file() and self._metrics.stat().st_size <= largest:
            for line in self._written():
                while lines and lines[-1]["step"] >= line["step"]:
                    lines.pop()
                lines.append(line)
        return lines

    def _written(self) -> Iterator[dict]:
        """The whole lines of metrics.jsonl, in the order in which they were written, one at a time."""
        try:
            with open_regular(self._metrics) as file:
                while line := file.readline(LONGEST_LINE):  # a longer one comes in pieces, none of which is whole
                    try:
                        values = parse_json(line.decode("utf-8", "replace"))
                    except ValueError:
                        continue
                    if isinstance(values, dict) and type(values.get("step")) is int and is_finite(values["step"]):
                        yield {name: _numbers(value) for name, value in values.items()}
        except (OSError, ValueError):
            return

    def append(self, line: dict):
        """Add a line to metrics.jsonl."""
        text = json.dumps({name: _numbers(value) for name, value in line.items()}, allow_nan=False)
        with named(self._metrics), open(self._metrics, "a", encoding="utf-8") as file:
            file.write(text + "\n")
        self._last_step = line["step"]

    def forget_after(self, step: int):
        """Drop the lines that an interrupted run wrote after its last checkpoint: they will be written again."""

        def write(partial: Path):
            with open(partial, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in self._written() if line["step"] <= step)

        write_whole(self._metrics, write)
        self._last_step = None

    def has_line(self, step: int) -> bool:
        """Whether the line of ``step`` is there."""
        if self._last_step is None:
            self._last_step = max((line["step"] for line in self.lines()), default=0)
        return self._last_step >= step

    def last_values(self, step: int | None = None) -> dict:
        """The newest of every value of metrics.jsonl, up to ``step``."""
        values = {}
        for line in self.lines():
            if step is None or line["step"] <= step:
                values |= {name: value for name, value in line.items() if value is not None}
        return values

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest validation loss, or None if none was validated."""
        losses = {line["step"]: line.get("validation_loss") for line in self.lines()}
        steps = [step_of(checkpoint) for checkpoint in checkpoints_of(self.path)]
        return min((step for step in steps if is_finite(losses.get(step))), key=losses.get, default=None)

    # ---- facts

    def facts(self, checkpoint: Path | None = None) -> Facts:
        """What the trainer knew of the run; of a ``checkpoint``, with the time that it took up to there."""
        values = mapping(read_json, self._facts)
        try:
            facts = Facts(**(_facts_of_labels(values) if any(name[:1].isupper() for name in values) else values))
        except (ValidationError, ValueError, TypeError):
            facts = Facts()
        if checkpoint is None:
            return facts
        progress = mapping(read_json, checkpoint / STATE).get("progress")
        seconds = progress.get("wall_seconds") if isinstance(progress, dict) else None
        return facts.model_copy(
            update={"wall_seconds": seconds if is_finite(seconds) and 0 < seconds <= LONGEST_RUN else None}
        )

    def keep_facts(self, facts: Facts):
        """Write what only the trainer knows, for a later report or push."""
        text = facts.model_dump_json(exclude_defaults=True, indent=1)
        write_whole(self._facts, lambda path: path.write_text(text))

    # ---- samples

    def grid(self, step: int) -> Path:
        """Where the sample grid of ``step`` is, or is to be."""
        return self.samples / f"step-{step:07d}.png"

    def grids(self) -> dict[int, Path]:
        """The sample grids that there are, by step, in order."""
        found = {path: re.fullmatch(r"step-(\d+)\.png", path.name) for path in self.samples.glob("step-*.png")}
        return dict(sorted((int(match[1]), path) for path, match in found.items() if match))

    # ---- weights

    def pipeline_folder(self) -> Path:
        """The folder of the pipeline that is meant by this folder: itself, or, of a run, that of its newest weights.

        Those are in the finished pipeline, unless the run went on from it; then, in its newest whole checkpoint.
        """
        if (self.path / "model_index.json").exists():
            return self.path
        if self.pipeline.is_dir() and not self._went_on():
            return self.pipeline
        checkpoint, _ = newest_whole(self.path)
        if checkpoint is not None:
            return checkpoint / "pipeline"
        return self.pipeline if self.pipeline.is_dir() else self.path

    def _went_on(self) -> bool:
        """Whether a run that had ended was taken further: its newest checkpoint has other weights than its pipeline.

        Times of files say nothing of this: a download or an archive gives them new ones.
        """
        for checkpoint in reversed(checkpoints_of(self.path)):
            digests = written_digests(checkpoint)
            written = {digest for name, digest in digests.items() if CHECKPOINT_WEIGHTS.fullmatch(name)}
            if written:
                try:
                    return written != {sha256(file) for file in weights_of(self.pipeline / "unet")}
                except OSError:  # replaced this moment by the run itself
                    return False
        return False


def weights_of(unet: Path) -> list[Path]:
    """The safetensors files of a network, one or several, in the order of their names, without variants."""
    files = sorted(unet.glob("diffusion_pytorch_model*.safetensors"))
    return [path for path in files if path.name.count(".") == 1 and path.is_file()]  # a variant has its name between


def weights_digest(unet: Path) -> str | None:
    """What tells weights from others: the SHA-256 of their file, as sha256sum and the Hub show it.

    Of weights in several files it is that of the files' digests, one a line, in the order of their names.

    Args:
        unet: folder of the network; None is returned where there are no safetensors weights in it.
    """
    digests = [sha256(path) for path in weights_of(unet)]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def _numbers(value):
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return value if is_finite(value) else None


def _facts_of_labels(values: dict) -> dict:
    """The facts in the texts that version 0.1.0 kept, label -> text."""
    texts = {label: str(text) for label, text in values.items()}

    def numbers(label: str) -> list[int]:
        return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", texts.get(label, ""))]

    def first(label: str) -> int | None:
        return next(iter(numbers(label)), None)

    def last_word(label: str) -> str | None:
        return texts[label].split()[-1] if texts.get(label, "").strip() else None

    clock = numbers("Wall time")  # "1 day, 2:03:04"
    seconds = sum(number * unit for number, unit in zip(reversed(clock), (1, 60, 3600, 86_400)))
    steps = numbers("Steps")  # "9,300 of 9,300, 64 images each"
    return {
        "images": first("Images"),
        "mode": last_word("Images") if numbers("Images") else None,
        "validation_images": first("Validation"),
        "parameters": first("Parameters"),
        **dict(zip(("step", "total_steps", "batch_size"), steps)),
        "processes": first("Processes"),
        "device_type": last_word("Processes"),
        "device": texts.get("Device"),
        "precision": texts.get("Precision"),
        "wall_seconds": seconds or None,
        "skipped_steps": first("Steps skipped") or 0,
        "best_step": first("Best checkpoint"),
        "hub_datasets": [name.strip() for name in texts.get("Hub data sets", "").split(",") if name.strip()],
        "settings_from": texts.get("Settings"),
        "code": texts.get("Code"),
    }
