"""Files that are there whole or not at all, whatever happens while they are written."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]):
    """Let ``write`` make a file beside ``path``, and move it there when it is whole and on the disk.

    The file that ``write`` is given has the suffix of ``path``. Whatever it raises leaves ``path`` as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        with named(path):
            write(partial)
        os.chmod(partial, 0o666 & ~_umask())
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def named(path: Path):
    """Give an OSError that does not say which file it is about the name of ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def sync(path: Path):
    """Wait until a file, or the entries of a folder, are on the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # nor files flushed that are only read
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as sha256sum and the Hub show it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
