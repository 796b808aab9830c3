"""Trackers through Accelerate: trackio, TensorBoard, Weights & Biases. None of them can end a run."""

import hashlib
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.training.distributed import say

PROJECT = "ddpm_hf"


def trackers_for(report_to: str | tuple[str, ...]) -> list[str]:
    """The names of the trackers to use; "auto" is trackio where it is installed.

    Raises:
        UserError: if one that was asked for is not installed.
    """
    if report_to == "auto":
        return ["trackio"] if importlib.util.find_spec("trackio") else []
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    names = [name for name in names if name != "none"]
    for name in names:
        if not importlib.util.find_spec(name):
            raise UserError(f"report_to {name}: the package is not installed; pip install {name}.")
    return names


class Trackers:
    """The trackers of an Accelerator made with ``log_with=trackers_for(...)``; methods are called on all ranks.

    A resumed run continues its tracker run. A tracker that raises an error is reported once and then left out.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, names: list[str]):
        self.accelerator, self.folder, self.names = accelerator, folder, names

    def start(self, settings: dict):
        """Open the run with its settings as hyperparameters."""
        run = "-".join(part for part in self.folder.parts if part not in (".", "..", "/"))
        identity = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
        options = {
            "trackio": {"name": run, "resume": "allow", "auto_log_cpu": False, "auto_log_gpu": False},
            "wandb": {"name": run, "id": identity, "resume": "allow", "dir": str(self.folder)},
        }
        flat = {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()}
        logging.getLogger("trackio").setLevel(logging.WARNING)
        self._try(lambda: self.accelerator.init_trackers(PROJECT, config=flat, init_kwargs=options))

    def log(self, record: dict):
        """Add the numbers of a line of metrics.jsonl."""
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
        for i, value in enumerate(record.get("validation_loss_by_timestep") or ()):
            if value is not None:
                numbers[f"validation_loss_by_timestep/{i}"] = value
        for tracker in self.accelerator.trackers if self.accelerator.is_main_process else ():
            # older versions of Accelerate keep the step from trackio
            log = tracker.tracker.log if tracker.name == "trackio" else tracker.log
            self._try(lambda log=log: log(numbers, step=record["step"]))

    def log_grid(self, grid: Image.Image, step: int):
        """Add a picture; called on the main process."""
        for tracker in self.accelerator.trackers:
            self._try(lambda tracker=tracker: _log_picture(tracker, grid, step))

    def finish(self):
        """Close the run and end the process group: nothing collective may follow."""
        if self.names:
            self._try(self.accelerator.end_training)
        else:
            self.accelerator.end_training()

    def _try(self, action: Callable[[], None]):
        if not self.names:
            return
        try:
            action()
        except Exception as error:  # each of them raises its own; a run of days must not end for that
            say(self.accelerator, f"warning: {', '.join(self.names)} failed and is left out: {one_line(error)}")
            self.names = []
            self.accelerator.trackers = []


def _log_picture(tracker, grid: Image.Image, step: int):
    if tracker.name == "trackio":
        import trackio

        tracker.tracker.log({"samples": trackio.Image(grid)}, step=step)
    elif tracker.name == "tensorboard":
        tracker.log_images({"samples": np.asarray(grid.convert("RGB"))[None]}, step=step, dataformats="NHWC")
    else:
        tracker.log_images({"samples": [grid]}, step=step)
