"""Pushes of a run that goes on: each in a process of its own, one after the other, never in the way of a step."""

import contextlib
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm_hf.checkpoints import checkpoints_of, step_of
from ddpm_hf.config import TrainConfig
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub.publishing import frozen, refuse_bad_id, upload_of
from ddpm_hf.hub.retries import LOG_IN
from ddpm_hf.hub.run_files import OF_PUSHES, run_files_of
from ddpm_hf.hub.upload import NotOurs, Sending, Upload
from ddpm_hf.run import Facts
from ddpm_hf.stopping import StopSignal

GRACE = 10.0  # seconds that a run which was asked to stop gives to an upload
LONGEST_END = 3600.0  # seconds that the end of a run waits for its uploads
FIRST_ANSWER = 20.0  # seconds that its beginning waits to learn whose the repository is


def problem_with(config: TrainConfig) -> str | None:
    """What will keep a run from being pushed, as far as can be known without the Hub."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode

    try:
        refuse_bad_id(config.hub_model_id)
    except UserError as error:
        return f"hub_model_id: {error}"
    if is_offline_mode():
        return "push_to_hub cannot reach the Hub while HF_HUB_OFFLINE is set; unset it, or push when the run is done."
    if get_token() is None:
        return f"push_to_hub needs a token with the role write; {LOG_IN}."
    return None


@dataclass
class _Push:
    """step: None where the repository is only created. folder: of the files that are kept for it.

    checkpoint: whether it is of the checkpoint of that step, not of the run's end. last: whether none comes after it.
    """

    step: int | None
    upload: Upload
    checkpoint: bool = False
    last: bool = False
    folder: Path | None = None
    sending: Sending | None = None

    @property
    def name(self) -> str:
        return "the repository" if self.step is None else f"step {self.step:,}"


class Pushes:
    """The pushes of a run, on its main process. A push that fails prints a warning; the run and other pushes go on.

    What is to be pushed is linked or copied aside at once, and sent when the push before it is done; of several that
    wait, the newest.

    Args:
        config: with push_to_hub.
        tell: prints a line.
    """

    def __init__(self, config: TrainConfig, tell: Callable[[str], object]):
        self._config, self._tell = config, tell
        self._run = Path(config.output_dir)
        self._aside = self._run / ".push"
        self._running: _Push | None = None
        self._waiting: _Push | None = None
        self._count = 0
        self._told: set[str] = set()
        self.last_step: int | None = None

    def begin(self):
        """Create the repository, so that an error is reported early in the run.

        Raises:
            NotOurs: if it is somebody else's, or public and must not be. Of a Hub that does not answer soon, this is
                told as a warning when it does.
        """
        self._clear_aside()  # of a run that was killed
        private = self._config.hub_private_repo or None
        push = _Push(None, Upload(self._config.hub_model_id, private=private, taken=list(OF_PUSHES)))
        self._send(push)
        deadline = time.monotonic() + FIRST_ANSWER
        while self._running is push and time.monotonic() < deadline:
            time.sleep(0.1)
            if push.sending.is_done():
                self._collect(refuse=True)

    def push(self, step: int, facts: Facts, *, checkpoint: bool, last: bool = False):
        """Push what the run has written; of its pipelines that of the checkpoint of ``step``, or the exported one."""
        self._count += 1
        folder = self._aside / str(self._count)
        config = self._config
        try:
            folder.mkdir(parents=True)
            contents = run_files_of(self._run, step if checkpoint else None)
            if checkpoint and contents.facts.wall_seconds:  # an earlier one took less time than the run by now
                facts = facts.model_copy(update={"wall_seconds": contents.facts.wall_seconds})
            for line in contents.said:
                self._tell_once(line)
            contents = replace(contents, step=step, facts=facts)
            upload = upload_of(
                contents,
                config.hub_model_id,
                folder,
                private=config.hub_private_repo or None,
                tag=f"step-{step}" if config.hub_tag_steps else None,
            )
            upload = replace(frozen(upload, folder / "files"), keep_tag=True)
        except Exception as error:  # a run of days does not fail for a push
            failed = _Push(step, Upload(config.hub_model_id), checkpoint, last, folder)
            self._failed(f"step {step:,} could not be pushed: {one_line(error)}", failed)
            return
        self.last_step = step
        if self._waiting is not None:
            self._tell(f"{self._waiting.name} is not pushed: the Hub is slower than the run.")
            self._clear(self._waiting)
        self._waiting = _Push(step, upload, checkpoint, last, folder)
        self.poll()

    def poll(self):
        """Tell of the push that is done, and begin the next. Never waits."""
        if self._running is not None and self._running.sending.is_done():
            self._collect()
        if self._running is None and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._send(waiting)

    def finish(self, stop: StopSignal):
        """Wait for the pushes that were begun; not for long if the run was asked to stop, and no more when it is."""
        asked = stop.reason
        deadline = time.monotonic() + (GRACE if asked else LONGEST_END)
        self.poll()
        if self._running is not None:
            self._tell(f"waiting for the upload to {self._config.hub_model_id}; Ctrl-C leaves it to {self._command()}")
        while self._running is not None:
            if time.monotonic() > deadline or stop.reason != asked:
                self.end()
                return
            time.sleep(0.1)
            self.poll()

    def end(self):
        """End what is under way; nothing of it is published."""
        under_way = [push for push in (self._running, self._waiting) if push is not None]
        for push in under_way:
            if push.sending is not None:
                push.sending.end()
            if push.step is not None:
                finish = self._how_to_finish(push, "does it", newest=push is under_way[-1])
                self._tell(f"warning: {push.name} was not pushed yet; {finish}.")
        self._running = self._waiting = None
        self._clear_aside()

    # ---- one of them

    def _send(self, push: _Push):
        try:
            push.sending = Sending(push.upload, in_background=True)
        except OSError as error:
            self._failed(f"{push.name} could not be pushed: {one_line(error)}", push)
            return
        self._running = push

    def _collect(self, refuse: bool = False):
        push, self._running = self._running, None
        try:
            result = push.sending.result()
        except UserError as error:
            if refuse and isinstance(error, NotOurs):
                raise
            self._failed(f"{push.name}: {error}", push)
            return
        if push.step is not None:
            self._tell(f"pushed {push.name} to {result['url']}")
        self._clear(push)

    def _failed(self, what: str, push: _Push):
        self._tell(
            f"warning: {what.removesuffix('.')}. The run goes on; when that is fixed, "
            f"{self._how_to_finish(push, 'pushes it')}."
        )
        if push.folder is not None:
            shutil.rmtree(push.folder, ignore_errors=True)

    def _clear(self, push: _Push):
        if push.folder is not None:
            shutil.rmtree(push.folder, ignore_errors=True)
        if self._running is None and self._waiting is None:
            self._clear_aside()

    def _clear_aside(self):
        """Delete the folders of all pushes, which have numbers for names."""
        for folder in self._aside.glob("*"):
            if folder.name.isdecimal():
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or somebody has put something into it
            self._aside.rmdir()

    def _tell_once(self, line: str):
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    def _how_to_finish(self, push: _Push, does: str, newest: bool = False) -> str:
        """The command that does what ``push`` did not.

        Of a checkpoint with a tag, as long as it is kept, under that tag alone unless it is the ``newest``: it is not
        to cover what the run pushes later. Without a tag, nobody would look for it once a newer one is there.
        """
        if not push.checkpoint:
            return f"{self._command(push.step)} {does}"
        newest = newest or push.last
        kept = push.step in [step_of(folder) for folder in checkpoints_of(self._run)]
        if kept and (newest or self._config.hub_tag_steps):
            return f"{self._command(push.step, True, not newest)} {does}, as long as its checkpoint is kept"
        what = "the best" if self._config.hub_strategy == "best" else "the newest"
        return f"{self._command()} pushes {what}" + ("" if kept else ", for that checkpoint is gone")

    def _command(self, step: int | None = None, checkpoint: bool = False, tag_only: bool = False) -> str:
        """The command that pushes the run as it would have done itself: its end, or the checkpoint of ``step``."""
        config = self._config
        words = ["python", "-m", "ddpm_hf", "push", config.output_dir, "--repo-id", config.hub_model_id]
        words += ["--private"] * config.hub_private_repo
        if checkpoint:
            words += ["--checkpoint", str(step)]
        elif config.hub_strategy == "best":
            words += ["--checkpoint", "best"]
        if step is not None and config.hub_tag_steps:
            words += ["--tag", f"step-{step}"] + ["--tag-only"] * tag_only
        return f"`{shlex.join(words)}`"
