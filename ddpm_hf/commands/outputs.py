"""Where a command writes: what cannot be written is refused before the work, not after."""

import tempfile
from pathlib import Path

from ddpm_hf.errors import UserError


def refuse_unwritable(path: Path):
    """Raise a UserError unless a file can be written at ``path``."""
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}.")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder.")
    _try(path, path.parent)


def refuse_unwritable_folder(path: Path):
    """Raise a UserError unless ``path`` can be made into a folder, together with those above it."""
    _try(path, next(folder for folder in path.absolute().parents if folder.exists()))


def _try(path: Path, folder: Path):
    try:  # permissions tell nothing of a disk that is read-only or full
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output {path} cannot be written in {folder}: {error.strerror or error}.") from error
