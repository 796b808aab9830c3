"""What Windows and macOS lack is hidden, and the import and the commands work without it."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, tiny_pipeline

from ddpm_hf.errors import UserError, echo
from ddpm_hf.files import sync, write_whole
from ddpm_hf.hub import export_pipeline

# A sitecustomize. Modules and calls of Unix are gone, /proc and /sys are empty. What is hidden from the code of this
# project alone is what the standard library and psutil, which have a way of their own on each system, need on Linux.
HIDDEN = """
import builtins, io, os, signal, sys

OURS = ("ddpm_hf", "train", "app", "__main__")
for name in ("sched_getaffinity", "nice", "fork", "forkpty", "killpg", "mkfifo"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "pthread_kill", "sigwait", "setitimer", "alarm"):
    delattr(signal, name)
imported, opened = builtins.__import__, io.open


def hidden_import(name, globals=None, *arguments, **options):
    whose = (globals or {}).get("__name__", "").split(".")[0]
    if whose in OURS and name in ("fcntl", "resource", "grp", "pwd", "termios"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return imported(name, globals, *arguments, **options)


def hidden_open(file, *arguments, **options):
    whose = sys._getframe(1).f_globals.get("__name__", "").split(".")[0]
    if whose != "psutil" and isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "hidden", os.fspath(file))
    return opened(file, *arguments, **options)


builtins.__import__, builtins.open, io.open = hidden_import, hidden_open, hidden_open
"""
TRAINING = {"dataset": "data/fashion_mnist_tiny.parquet", "max_images": 16, "block_out_channels": "[8, 16]"}
TRAINING |= {"time_embed_dim": 16, "attention_levels": "[]", "train_batch_size": 4, "max_train_steps": 2}
TRAINING |= {"num_samples": 2, "num_train_timesteps": 20, "report_to": "none", "sample_steps": 2}


@pytest.fixture
def hidden(tmp_path) -> dict[str, str]:
    """Environment variables of a process without what other systems lack."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDDEN, encoding="utf-8")
    path = os.pathsep.join((str(tmp_path / "hidden"), str(ROOT)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}


def run(environment, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout.decode("cp1252")


def test_what_is_hidden_is_hidden(hidden):
    script = "import os, pathlib, signal\nassert not hasattr(os, 'fork') and not hasattr(signal, 'SIGHUP')\n"
    script += "try: pathlib.Path('/proc/cpuinfo').read_text()\nexcept OSError: print('no /proc')\n"
    script += "try: import fcntl\nexcept ImportError: print('no fcntl')"
    assert run(hidden, "-c", script).split() == ["no", "/proc", "no", "fcntl"]


def test_the_commands_work(hidden, tmp_path):
    """One process each: what a person of another system does first."""
    model = export_pipeline(tmp_path / "model", tiny_pipeline(num_class_embeds=2, id2label={"0": "☃", "1": "shoe"}))
    run(hidden, "-m", "ddpm_hf", "sample", model, "--num-images", "2", "--labels", "☃", "--output", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 100
    assert "wrote" in run(hidden, "-m", "ddpm_hf", "export", model, "--half", "--output", tmp_path / "half")


@pytest.mark.slow
def test_a_run_trains_and_goes_on(hidden, tmp_path):
    settings = [part for name, value in TRAINING.items() for part in (f"--{name}", value)]
    run(hidden, "train.py", *settings, "--output_dir", tmp_path / "run")
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
    run(hidden, "train.py", *settings, "--max_train_steps", "3", "--resume", "force", "--output_dir", tmp_path / "run")


@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", "a ? z"), ("utf-8", "a ☃ z")])
def test_a_console_without_a_letter_shows_a_question_mark(encoding, shown, monkeypatch):
    import io

    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    echo("a ☃ z")
    assert console.buffer.getvalue().decode(encoding).rstrip() == shown


def test_files_are_flushed_as_windows_can(tmp_path, monkeypatch):
    """There, os.fsync refuses files that are open for reading, and os.open refuses folders."""
    flushed, opened = [], {}
    open_before, sync_before = os.open, os.fsync

    def open_file(path, flags, *arguments):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = open_before(path, flags, *arguments)
        opened[descriptor] = flags
        return descriptor

    def fsync(descriptor):
        if not opened[descriptor] & os.O_RDWR:
            raise OSError(9, "Bad file descriptor")
        flushed.append(descriptor)
        sync_before(descriptor)

    import ddpm_hf.files as files

    with monkeypatch.context() as windows:  # pathlib asks os.name, too
        fake = type("os", (), {**vars(os), "name": "nt", "open": open_file, "fsync": fsync})
        windows.setattr(files, "os", fake)
        write_whole(tmp_path / "a.txt", lambda path: path.write_text("whole"))
        sync(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "whole" and len(flushed) == 1


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    """On Windows, where a program has one of its files open."""
    from pathlib import Path

    folder = export_pipeline(tmp_path / "model", tiny_pipeline())
    before = (folder / "model_index.json").read_bytes()
    rename = Path.rename

    def fails(path, target):
        if path.name == "new":
            raise PermissionError(13, "The process cannot access the file")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UserError, match=r"pipeline model could not be replaced: .*cannot access"):
        export_pipeline(folder, tiny_pipeline())
    assert (folder / "model_index.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_old_checkpoint_that_is_read_goes_next_time(tmp_path, monkeypatch):
    """Windows renames no folder of a file that is open."""
    from pathlib import Path

    from ddpm_hf.checkpoints import checkpoints_of, rotate, write_checkpoint

    for step in (1, 2, 3):
        write_checkpoint(tmp_path / "checkpoints" / f"step-{step}", lambda folder: (folder / "a").write_text("a"))
    rename = Path.rename

    def fails(path, target):
        if path.name == "step-1":
            raise PermissionError(13, "The process cannot access the file")
        return rename(path, target)

    with monkeypatch.context() as windows:
        windows.setattr(Path, "rename", fails)
        rotate(tmp_path, 1, None)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-1", "step-3"]
    rotate(tmp_path, 1, None)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-3"]


def test_images_that_are_mapped_need_not_be_deleted(tmp_path, monkeypatch):
    """As a large set is that is not to be kept: Windows deletes no file that is mapped."""
    import numpy as np

    from ddpm_hf.data import store

    monkeypatch.setattr(store, "cache_root", lambda: tmp_path)
    pictures = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)

    def fails(path, *arguments, **options):
        raise PermissionError(13, "The process cannot access the file", str(path))

    def make(write):
        write(pictures)
        return {}

    with monkeypatch.context() as windows:
        windows.setattr(os, "unlink", fails)
        images, _ = store.store_images("a set", False, pictures.shape, make)
    assert np.array_equal(images, pictures)
    assert len(list(tmp_path.iterdir())) == 1
    store.store_images("a set", True, pictures.shape, make)
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith(".")] == []
