"""The processes of a run: how they start, what one does for all, and how they end together."""

from collections.abc import Callable
from datetime import timedelta

from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
    broadcast_object_list,
)
from filelock import FileLock, Timeout

from ddpm_hf.checkpoints import newest_whole
from ddpm_hf.config import TrainConfig
from ddpm_hf.devices import best_device, bf16_is_faster
from ddpm_hf.errors import UserError, echo, one_line
from ddpm_hf.run import RunFolder

LONGEST_WAIT = timedelta(hours=1)  # of the ranks, for the one that writes


def start_processes(config: TrainConfig, run: RunFolder, trackers: list[str]) -> Accelerator:
    """The processes of this launch, as one Accelerator.

    Raises:
        UserError: for a launcher or a batch size that does not fit.
    """
    mode = config.torch_compile
    accelerator = Accelerator(
        mixed_precision=_precision(config, run),
        # ours are parts of a batch; without this, an environment variable of Accelerate's would divide gradients again
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=None if mode == "no" else TorchDynamoPlugin(backend="inductor", mode=mode, dynamic=False),
        log_with=trackers or None,
        project_dir=str(run.path),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UserError(
            f"{accelerator.distributed_type.value} is not supported: every process holds the whole network; "
            f"use accelerate launch --multi_gpu."
        )
    parts, ranks = config.gradient_accumulation_steps, accelerator.num_processes
    if config.train_batch_size % (parts * ranks):
        raise UserError(
            f"train_batch_size={config.train_batch_size} must be a multiple of {parts * ranks}: {ranks} processes x "
            f"{parts} accumulation steps."
        )
    return accelerator


def _precision(config: TrainConfig, run: RunFolder) -> str:
    """The precision asked for; "auto" is what the run was started with, or bf16 where it is faster."""
    if config.mixed_precision == "fp16" and best_device().type == "cpu":
        raise UserError("mixed_precision fp16 needs a GPU; use bf16 or no.")
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if before := run.settings_to_resume().get("mixed_precision"):
        return before
    found = "bf16" if bf16_is_faster() else "no"
    if best_device().type != "cpu":
        return found
    PartialState(cpu=True, timeout=LONGEST_WAIT)  # before the Accelerator, for its processes to agree:
    return broadcast_object_list([found])[0]  # on a busy machine one would measure this, another that


def say(accelerator: Accelerator, text: str):
    """Print ``text``, one printable line, on one process of a machine."""
    if accelerator.is_local_main_process:
        echo(text)


class MainProcess:
    """``on_main(action)`` lets the main process do something for all, which end together if it fails."""

    def __init__(self, accelerator: Accelerator, run: RunFolder):
        self.accelerator, self.run = accelerator, run
        self._lock = FileLock(run.path / ".lock", blocking=False)

    def __call__(self, action: Callable[[], object]):
        """What ``action`` returns on the main process, on all ranks. Collective.

        Raises:
            UserError: for a mistake of the user's or a disk that is full.
            Exception: on the main process, whatever else ``action`` raised; the others get a UserError.
        """
        value = failure = unexpected = None
        if self.accelerator.is_main_process:
            try:
                value = action()
            except UserError as error:
                failure = str(error).removesuffix(".")
            except OSError as error:
                failure = f"{error.filename or self.run.path}: {error.strerror or error}"
            except Exception as error:  # a bug: its traceback is the main process's, but no rank may wait for it
                failure, unexpected = f"the main process failed: {one_line(error)}", error
        value, failure = broadcast_object_list([value, failure])
        if unexpected is not None:
            raise unexpected
        if failure:
            kept, _ = newest_whole(self.run.path)
            where = f"the newest whole checkpoint is {kept.name}" if kept else "there is no checkpoint yet"
            raise UserError(f"{failure}; {where}. Once that is fixed, the same command resumes the run.")
        return value

    def occupy(self):
        """Take the run's folder for this run; the lock goes with the process, however it ends. Collective.

        Raises:
            UserError: if another run has it.
        """

        def lock() -> bool:
            self.run.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                return False
            return True

        if not self(lock):
            raise UserError(f"another run is training in {self.run.path}; wait for it, or choose another output_dir.")

    def leave(self):
        """Let another run have the folder."""
        self._lock.release()
