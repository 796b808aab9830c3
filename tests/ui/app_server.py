"""Tiny models, and the app as a real process. Shared by tests/ui and tests/browser."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import helpers

from ddpm_hf.hub import export_pipeline
from ddpm_hf.pipeline import MyDDPMPipeline

ROOT = helpers.ROOT
NAMES = ["circle", "square", "<b>star</b>"]
START_SECONDS = 180


def tiny_pipeline(*, conditional: bool) -> MyDDPMPipeline:
    """An untrained 16x16 model: gray with three classes and cropped to 14x14, or RGB without classes."""
    settings = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "num_train_timesteps": 1000,
        "attention_levels": (),
    }
    if not conditional:
        return helpers.tiny_pipeline(in_channels=3, out_channels=3, **settings)
    names = {str(i): name for i, name in enumerate(NAMES)}
    return helpers.tiny_pipeline(num_class_embeds=len(NAMES), id2label=names, output_size=(14, 14), **settings)


def export_tiny(folder: Path, *, conditional: bool) -> Path:
    return export_pipeline(folder, tiny_pipeline(conditional=conditional))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_app(*arguments: str, script: str = "app.py", **environment: str) -> subprocess.Popen:
    """``python app.py`` with pipes for both outputs."""
    return subprocess.Popen(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
    )


class AppServer:
    """The app serving ``model``, once made, or the embedded model for None.

    Its files go to ``scratch``, its errors are in ``log``.
    """

    def __init__(self, model: Path | None, scratch: Path, script: str = "app.py", **environment: str):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.scratch = scratch
        self.log: list[str] = []
        environment = {"GRADIO_TEMP_DIR": str(scratch), **environment}
        which = [] if model is None else ["--model", str(model)]
        self.process = run_app(*which, "--port", str(self.port), script=script, **environment)
        opened = threading.Event()
        for pipe in (self.process.stdout, self.process.stderr):
            threading.Thread(target=self._read, args=(pipe, opened), daemon=True).start()
        if not opened.wait(START_SECONDS):
            self.process.kill()
            raise RuntimeError(f"the app did not start: {''.join(self.log)}")

    def _read(self, pipe, opened):
        for line in pipe:
            self.log.append(line)
            if line.startswith("open http"):
                opened.set()

    def stop(self) -> int:
        """End it as a terminal would; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
