"""Commands, each in a process of bounded memory, forked from one that has imported all that commands need.

``python limited.py`` reads lines of JSON, {"command": words, "folder", "bytes", "seconds"}, and writes for each
{"status", "out", "err", "seconds", "memory"}; status is None after so many seconds of computing, or ``BUSY`` times as
many of any kind.
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPACE = 2 * 2**30  # bytes of addresses, besides those of the libraries
BUSY = 8  # times as long a command may take where other processes compute too
LONGEST_OUTPUT = 10**6  # bytes that are read of it
IMPATIENT = {"silence": 4.0, "attempts": 2, "patience": 4.0, "first_wait": 0.01, "answer": 3.0}  # with the Hub


class Limited:
    """The process that forks those which carry out the commands."""

    def __init__(self, folder: Path, **environment: str):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, env=environment, stdin=-1, stdout=-1, text=True
        )

    def run(self, command: list[str], folder: Path | None = None, seconds: float = 20.0) -> dict:
        """Run ``command``: train or a command of ``python -m ddpm_hf``, and its arguments; in ``folder``."""
        request = {"command": command, "folder": folder and str(folder), "bytes": SPACE, "seconds": seconds}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=300)


def _run(request: dict, outputs: list) -> dict:
    """Carry out a request in a process of its own, which has the same memory and imports as that of any other."""
    for file in outputs:
        os.ftruncate(file.fileno(), 0)
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # of the process too: it is the same open file
    answers, told = os.pipe()
    begin, pid = time.monotonic(), os.fork()
    if pid == 0:
        for number, file in enumerate(outputs, 1):
            os.dup2(file.fileno(), number)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_addresses() + request["bytes"],) * 2)
        os.write(told, json.dumps(_carried_out(request["command"], request["folder"])).encode())
        os._exit(0)
    os.close(told)
    in_time = False
    while not in_time and _computed(pid) < request["seconds"] > (time.monotonic() - begin) / BUSY:
        in_time = bool(select.select([answers], [], [], 0.5)[0])  # also where it has died
    answer = os.read(answers, 10_000) if in_time else b""
    os.close(answers)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # what it has told is all
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    result = json.loads(answer) if answer else {"status": status if in_time else None, "memory": 0}
    texts = [os.pread(file.fileno(), LONGEST_OUTPUT, 0).decode("utf-8", "backslashreplace") for file in outputs]
    return {**result, "out": texts[0], "err": texts[1], "seconds": time.monotonic() - begin}


def _computed(pid: int) -> float:
    """Seconds of computing, from Linux's account of the process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident(kind: str) -> int:
    """Bytes: "RssAnon", "RssFile", or "VmHWM", the most of both together since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def _carried_out(command: list[str], folder: str | None) -> dict:
    import train
    from ddpm_hf.__main__ import main

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident("RssAnon")
    try:
        if folder is not None:
            os.chdir(folder)
        status = train.main(command[1:]) if command[0] == "train" else main(command)
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return {"status": status, "memory": _resident("VmHWM") - _resident("RssFile") - before}  # no pages of libraries


def _serve():
    import torch
    from matplotlib.backends import backend_agg  # noqa: F401  (as train: what a command imports late)

    import ddpm_hf.hub.loading  # noqa: F401
    import ddpm_hf.hub.space as space
    import ddpm_hf.report  # noqa: F401
    import ddpm_hf.training  # noqa: F401
    import train  # noqa: F401
    from ddpm_hf.commands import deploy_space
    from ddpm_hf.hub import fetching, publishing
    from ddpm_hf.hub.retries import RetryLimits

    torch.set_num_threads(1)
    for function in (fetching.fetch, publishing.push):
        function.__kwdefaults__["limits"] = RetryLimits(**IMPATIENT)
    space.LIMITS = deploy_space.USUAL = RetryLimits(**IMPATIENT)
    assert len(os.listdir("/proc/self/task")) == 1  # what another thread holds while it forks is never let go
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        for line in sys.stdin:
            print(json.dumps(_run(json.loads(line), [out, err])), flush=True)


if __name__ == "__main__":
    _serve()
