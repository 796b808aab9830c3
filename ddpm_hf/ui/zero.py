"""ZeroGPU: where a GPU is lent for one function call, that call is made here."""

from collections.abc import Callable, Iterator, Sequence

from ddpm_hf.ui.models import Model, Models
from ddpm_hf.ui.tasks import Item


def on_gpu(models: Models) -> Callable[[Model, Sequence], Iterator[Item]]:
    """``compute(model, tasks)``: what ``Task.run`` of the tasks yields."""

    def compute(model: Model, tasks: Sequence) -> Iterator[Item]:
        return type(tasks[0]).run(model, tasks)

    return compute
