"""The disk of a server that runs for months: what visitors send is gone after minutes, folders included."""

import asyncio
import contextlib
import os
import time
from pathlib import Path

from gradio.utils import get_upload_folder

KEPT_SECONDS = 600.0
KEPT_BYTES = 200_000_000


def sweep(folder: Path, *, now: float, kept_seconds: float = KEPT_SECONDS, kept_bytes: int = KEPT_BYTES) -> int:
    """Delete files of ``folder`` that are older than this, the oldest of those that are too much, and empty folders.

    Returns:
        How many files are left.
    """
    files = []
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            with contextlib.suppress(OSError):
                path = Path(place, name)
                files.append((path.lstat().st_mtime, path.lstat().st_size, path))
        if not folders and not names and Path(place) != folder:
            _remove_empty(Path(place), now)
    files.sort(reverse=True)
    total, left = 0, 0
    for modified, size, path in files:
        total += size
        if now - modified > kept_seconds or total > kept_bytes:
            with contextlib.suppress(OSError):
                path.unlink()
            _remove_empty(path.parent, now, aged=False)
        else:
            left += 1
    return left


def _remove_empty(folder: Path, now: float, *, aged: bool = True):
    """aged: only if it has been empty for a minute, as one that was just made is about to be filled."""
    with contextlib.suppress(OSError):
        if not aged or now - folder.stat().st_mtime > 60:
            folder.rmdir()


async def sweep_for_ever(seconds: float = 60.0):
    """Sweep Gradio's folder again and again."""
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(sweep, Path(get_upload_folder()), now=time.time())
