"""ZeroGPU: where a GPU is lent for the time of one function, the network runs in that function.

The package ``spaces``, which such a Space has, runs a decorated generator in another process, forked from this one:
what goes in and what comes out is pickled, and closing the generator ends the other process's work after its next item.
"""

import os
from collections.abc import Callable, Iterator, Sequence

import gradio as gr

from ddpm_hf.errors import UserError
from ddpm_hf.ui.models import Model, Models
from ddpm_hf.ui.tasks import Item

START_SECONDS = 10.0  # to bring the weights to the GPU
SECONDS_A_CALL = 0.05  # of a small network
LONGEST_SECONDS = 120


def has_zero_gpu() -> bool:
    """Whether this is a Space with ZeroGPU. ``spaces`` must then be imported before torch is."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def on_gpu(models: Models) -> Callable[[Model, Sequence], Iterator[Item]]:
    """``compute(model, tasks)``, which yields what ``run`` of the tasks does, on a lent GPU where GPUs are lent.

    To be called before the launch: a Space that decorates nothing by then is refused a GPU.
    """
    if not has_zero_gpu():
        return _run
    import spaces

    def seconds(_name: str, _tasks: Sequence, calls: int) -> int:
        return min(LONGEST_SECONDS, round(START_SECONDS + SECONDS_A_CALL * calls))

    @spaces.GPU(duration=seconds)
    def borrowed(name: str, tasks: Sequence, calls: int) -> Iterator[Item]:
        yield from _run(models.in_fork(name), tasks)

    def compute(model: Model, tasks: Sequence) -> Iterator[Item]:
        calls = sum(tasks[0].totals(model))
        try:
            yield from borrowed(model.name, tuple(tasks), calls)
        except gr.Error as error:  # a quota that is used up, say
            raise UserError(error.message) from None

    return compute


def _run(model: Model, tasks: Sequence) -> Iterator[Item]:
    return type(tasks[0]).run(model, tasks)
