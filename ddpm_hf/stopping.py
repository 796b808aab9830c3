"""SIGTERM, SIGINT and SIGHUP as a wish that all processes of a run learn of at the same step.

Light to import: ``train.py`` installs the handlers before it imports torch.
"""

import os
import signal
import threading
import time

# what accelerate launch and torchrun set in the processes they start
LAUNCHER_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
AGAIN = 0.1  # seconds until a signal that came during an import is sent again
PATIENCE = 2.0  # seconds in which a second SIGINT is taken for an echo of the first: launchers forward it


class StopRequested(BaseException):
    """The run was asked to stop. Not an ``Exception``, so that nothing swallows it on its way to the loop."""


class StopSignal:
    """A context in which SIGTERM, SIGINT and SIGHUP ask for a stop instead of ending the process.

    Until ``begin`` the handler of a single process raises StopRequested where it strikes, or right after the import
    that is going on: nothing is at stake yet. Otherwise it only takes note, and ``check``, called by all ranks at the
    same places, raises on all of them. A run whose launcher has died stops as well: nobody would collect it. SIGINT
    repeated after 2 seconds ends the process at once.
    """

    def __init__(self):
        self.reason: str | None = None
        # one of several ranks must not leave the others waiting for it
        self._at_once = int(os.environ.get("WORLD_SIZE", "1")) == 1
        self._since = 0.0
        self._group = None
        self._before: dict = {}
        launched = any(name in os.environ for name in LAUNCHER_VARIABLES)
        self._launcher = os.getppid() if launched else None

    def __enter__(self):
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)  # SIGBREAK is on Windows, SIGHUP elsewhere
            ignored = name == "SIGHUP" and number and signal.getsignal(number) == signal.SIG_IGN  # under nohup
            if number and not ignored:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self._at_once and _importing(frame):
            # C code that imports a module, as torch's does numpy, may drop an exception and import the module again
            timer = threading.Timer(AGAIN, _send_again, [number])
            timer.daemon = True
            timer.start()
            return
        if self.reason and number == signal.SIGINT and time.monotonic() - self._since > PATIENCE:
            raise KeyboardInterrupt
        if not self.reason:
            self.reason, self._since = signal.Signals(number).name, time.monotonic()
        if self._at_once:
            self._at_once = False  # an echo of the signal must not raise again
            raise StopRequested

    def begin(self):
        """From now on the work has to be saved first. Collective."""
        self._at_once = False
        import torch.distributed as distributed

        if distributed.is_available() and distributed.is_initialized():
            # on the CPU, where waiting for the other ranks does not wait for the GPU's queue
            self._group = distributed.new_group(backend="gloo")

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. Collective."""
        if self._launcher is not None and _has_ended(self._launcher):
            self.reason = self.reason or "its launcher ended"
        if self._group is None:
            return self.reason is not None
        import torch

        wishes = torch.tensor([self.reason is not None], dtype=torch.int32)
        torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, group=self._group)
        if wishes.item() and self.reason is None:
            self.reason = "another process was asked to"
        return bool(wishes.item())

    def check(self):
        """Raise StopRequested on all ranks if any was asked to stop. Collective."""
        if self.agreed():
            raise StopRequested


def _has_ended(parent: int) -> bool:
    """Whether the process that has started this one has ended."""
    if os.name != "nt":
        return os.getppid() != parent
    import psutil  # on Windows, getppid still names a parent that has ended

    return not psutil.pid_exists(parent)


def _send_again(number: int):
    """Send a signal to the main thread, which wakes up for it if it sleeps or waits."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, number)
    else:  # Windows
        signal.raise_signal(number)


def _importing(frame) -> bool:
    """Whether ``frame`` runs inside an import statement."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
