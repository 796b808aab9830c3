"""Environments with some packages and nothing else, to find out what is really needed.

They are real virtual environments whose packages are links to those of this one: the named distributions and what they
require, as their metadata say. ddpm_hf is in none of them.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from packaging.requirements import Requirement

START_SECONDS = 240


def make_environment(folder: Path, *names: str) -> Path:
    """The interpreter of a new virtual environment in ``folder`` with the distributions ``names``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=300)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in closure(names):
        where = Path(distribution.locate_file(""))
        for part in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not part.endswith(".pth") and not (packages / part).exists():
                (packages / part).symlink_to(where / part)
    return python


def closure(names) -> list[importlib.metadata.Distribution]:
    """The installed distributions ``names`` and all that they require, without extras that were not asked for."""
    found, waiting = {}, [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        key = (re.sub(r"[-_.]+", "-", requirement.name).lower(), frozenset(requirement.extras))
        if key in found:
            continue
        found[key] = distribution = importlib.metadata.distribution(requirement.name)
        for line in distribution.requires or ():
            wanted = Requirement(line)
            extras = requirement.extras or {""}
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(wanted)
    return list(found.values())


def bare_environment(home: Path, **more: str) -> dict[str, str]:
    """Environment variables of a process that is to find the Hub double and nothing else of the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HF_ENDPOINT", "NO_PROXY") if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        **more,
    }


class Running:
    """A process whose output is read as it comes; ``lines`` has it."""

    def __init__(self, command: list, cwd: Path, environment: dict[str, str]):
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        self.process.wait()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, start: str, seconds: float = START_SECONDS) -> str:
        """The first line that starts so; fails with all lines if the process ends, or time is up, before."""

        def found():
            return next((line for line in self.lines if line.startswith(start)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self.process.poll() is not None, seconds)
            assert found(), f"no line {start!r}:\n" + "".join(self.lines)[-6000:]
            return found()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(120)
        finally:
            self.process.kill()
