"""Checkpoint folders: written whole or not at all, checked against their manifest, rotated."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from ddpm_hf.files import sync

MANIFEST = "manifest.json"


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


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if it is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
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
            _remove(old)
    for leftover in run.glob("checkpoints/.step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def set_aside_after(run: Path, step: int):
    """Rename checkpoints of later steps, which are damaged, to step-N.damaged: they must not outlive whole ones."""
    for folder in checkpoints_of(run):
        if step_of(folder) > step:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def _remove(folder: Path):
    """Delete a checkpoint; a kill in between leaves no half of it."""
    gone = folder.with_name(f".{folder.name}.old.partial")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def _fingerprint(path: Path) -> dict:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
