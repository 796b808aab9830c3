"""Checkpoint folders: written whole or not at all, checked against their manifest, rotated."""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ddpm_hf.errors import UserError
from ddpm_hf.files import sha256, sync
from ddpm_hf.ownership import PIPELINE, others_in
from ddpm_hf.reading import read_json

MANIFEST, STATE = "manifest.json", "state.json"
# of a checkpoint's progress
COUNTS = ("step", "bad_steps", "skipped_steps", "good_steps", "logged_steps", "images_seen", "logged_images")
SUMS = ("usual_error", "loss_sum", "norm_sum", "seconds", "wall_seconds")
LARGEST_COUNT = 10**15
# of a checkpoint's files, where its manifest cannot be read
NAMES = (MANIFEST, "state.json", "unet.safetensors", "optimizer.safetensors", "ema-*.safetensors")
NAMES += tuple(f"pipeline/{name}" for name in PIPELINE.names)


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a training run, oldest first."""
    folders = [path for path in run.glob("checkpoints/step-*") if path.name[5:].isdecimal()]
    return sorted(folders, key=step_of)


def write_checkpoint(folder: Path, write: Callable[[Path], object]):
    """Let ``write`` fill a folder beside ``folder``, add the manifest of its files, and move it into its place.

    At every moment ``folder`` is absent or whole on the disk; what ``write`` raises leaves nothing behind.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        manifest = {path.relative_to(partial).as_posix(): _fingerprint(path) for path in files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        if folder.exists():
            _remove(folder)
        partial.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_state(checkpoint: Path) -> dict:
    """The counters and the other settings in a checkpoint's state.json, checked.

    Raises:
        UserError: if one is missing or is no such value.
        OSError: if it cannot be read.
    """
    try:
        saved = read_json(checkpoint / STATE)
        if not isinstance(saved, dict) or not isinstance(saved.get("progress"), dict):
            raise ValueError("it holds no progress")
        for name, kind in (("num_processes", int), ("fingerprint", str), ("ema_max_decays", list)):
            if type(saved.get(name)) is not kind:
                raise ValueError(f"{name} is {saved.get(name)!r}")
        for names, kinds in ((COUNTS, (int,)), (SUMS, (int, float))):
            for name in names:
                value = saved["progress"].get(name) or 0
                if type(value) not in kinds or not 0 <= value <= LARGEST_COUNT:
                    raise ValueError(f"{name} is {value!r}")
    except ValueError as error:
        raise UserError(f"{checkpoint.name}/{STATE} is not what a run writes: {error}.") from None
    return saved


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if it is as it was written."""
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest == {}:
            return f"{MANIFEST} names no files"
        for name, expected in manifest.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size:,} bytes, not {expected['size']:,}"
            if _fingerprint(path) != expected:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or MANIFEST).name} cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is not a manifest"
    return None


def written_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file that a checkpoint was written with, by its manifest; {} where that cannot be read."""
    try:
        manifest = read_json(folder / MANIFEST)
        return {name: values["sha256"] for name, values in manifest.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is whole, and a line for each newer one that is not."""
    complaints = []
    for folder in reversed(checkpoints_of(run)):
        problem = problem_of(folder)
        if problem is None:
            return folder, complaints
        complaints.append(f"checkpoint {folder} is damaged: {problem}")
    return None, complaints


def rotate(run: Path, limit: int, best_step: int | None):
    """Keep the ``limit`` newest checkpoints and that of ``best_step``, and nothing half-written."""
    for old in checkpoints_of(run)[:-limit]:
        if step_of(old) != best_step:
            with contextlib.suppress(PermissionError):  # on Windows, of a file that somebody reads: next time
                _remove(old)
    for leftover in run.glob("checkpoints/.step-*.partial"):
        if re.fullmatch(r"\.step-\d+(\.old)?\.partial", leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def set_aside_after(run: Path, step: int):
    """Rename checkpoints of later steps, which are damaged, to step-N.damaged: they must not outlive whole ones."""
    for folder in checkpoints_of(run):
        if step_of(folder) > step:
            _set_aside(folder, "damaged")


def _set_aside(folder: Path, reason: str):
    """Rename a checkpoint to step-N.REASON, or to step-N.REASON-2 and so on where that is taken."""
    names = (f"{folder.name}.{reason}{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    folder.rename(next(path for name in names if not (path := folder.with_name(name)).exists()))


def _remove(folder: Path):
    """Delete a checkpoint; a kill in between leaves no half of it. One that somebody has added files to is set aside
    as step-N.kept."""
    if others_in(folder, (*NAMES, *written_digests(folder))):
        _set_aside(folder, "kept")
        return
    gone = folder.with_name(f".{folder.name}.old.partial")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def _fingerprint(path: Path) -> dict:
    return {"size": path.stat().st_size, "sha256": sha256(path)}
