"""Commands one after the other in a process of bounded memory, which is started anew where one ends or hangs it.

``python limited.py`` reads lines of JSON, {"command": words, "folder", "bytes", "seconds"}, and writes for each
{"status", "out", "err", "seconds", "memory"}; status is None after so many seconds of computing, or ``BUSY`` times as
many of any kind. It imports all that commands need, and forks: so a process that died costs no second import.
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
    """The process that forks the one which carries out the commands."""

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


class _Worker:
    """A forked process that carries out commands, its output in two files."""

    def __init__(self, outputs: list, space: int):
        self.outputs = outputs
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for number, file in enumerate(outputs, 1):
                os.dup2(file.fileno(), number)
            for descriptor in (self.requests, self.answers):
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (_addresses() + space,) * 2)
            with open(requests) as lines, open(answers, "w", buffering=1) as told:
                for line in lines:
                    print(json.dumps(_carried_out(**json.loads(line))), file=told)
            os._exit(0)
        os.close(requests)
        os.close(answers)

    def run(self, request: dict) -> dict:
        for file in self.outputs:
            os.ftruncate(file.fileno(), 0)
            os.lseek(file.fileno(), 0, os.SEEK_SET)  # of the worker too: it is the same open file
        begin, used, answer = time.monotonic(), _computed(self.pid), b""
        line = json.dumps({name: request[name] for name in ("command", "folder")})
        os.write(self.requests, f"{line}\n".encode())
        while not answer.endswith(b"\n"):
            in_time = False
            while not in_time and _computed(self.pid) - used < request["seconds"] > (time.monotonic() - begin) / BUSY:
                in_time = bool(select.select([self.answers], [], [], 0.5)[0])
            piece = os.read(self.answers, 10_000) if in_time else b""
            if not piece:  # it hangs, or has died
                os.kill(self.pid, signal.SIGKILL)
                status = self.end()
                answer = json.dumps({"status": status if in_time else None, "memory": 0}).encode() + b"\n"
            answer += piece
        texts = [
            os.pread(file.fileno(), LONGEST_OUTPUT, 0).decode("utf-8", "backslashreplace") for file in self.outputs
        ]
        return {**json.loads(answer), "out": texts[0], "err": texts[1], "seconds": time.monotonic() - begin}

    def end(self) -> int:
        """Its status, a signal's number below 0; it is over."""
        for descriptor in (self.requests, self.answers):
            os.close(descriptor)
        self.requests = None
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _computed(pid: int) -> float:
    """Seconds of computing, from Linux's account of the process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident(kind: str) -> int:
    """Bytes: "VmRSS", or "VmHWM", the most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def _carried_out(command: list[str], folder: str | None) -> dict:
    import train
    from ddpm_hf.__main__ import main

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
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
    return {"status": status, "memory": _resident("VmHWM") - before}


def _serve():
    import torch

    import ddpm_hf.hub.space as space
    import ddpm_hf.training  # noqa: F401  (what a command imports late)
    from ddpm_hf.commands import deploy_space
    from ddpm_hf.hub import fetching, publishing
    from ddpm_hf.hub.retries import RetryLimits

    torch.set_num_threads(1)
    for function in (fetching.fetch, publishing.push):
        function.__kwdefaults__["limits"] = RetryLimits(**IMPATIENT)
    space.LIMITS = deploy_space.USUAL = RetryLimits(**IMPATIENT)
    worker = None
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        for line in sys.stdin:
            request = json.loads(line)
            if worker is None or worker.requests is None:
                worker = _Worker([out, err], request["bytes"])
            print(json.dumps(worker.run(request)), flush=True)
    if worker is not None and worker.requests is not None:
        worker.end()


if __name__ == "__main__":
    _serve()
