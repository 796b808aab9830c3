"""The device memory of a training step, from shapes alone: nothing is computed, so no GPU is needed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from ddpm_hf.memory import FusedAttention, on_meta, some_words

HALF = {F.conv2d, F.linear}  # what torch.autocast("cuda") computes in half precision, of what networks here call
SINGLE = {F.group_norm, F.layer_norm}  # and in float32


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of what a process holds on its device while it trains.

    A step has two peaks. When the backward pass begins, the activations are there and the gradients are not; when the
    averages are updated, it is the other way round.

    Attributes:
        weights, optimizer, averages: there all the time.
        activations: the tensors that the backward pass needs, with gradient checkpointing the inputs of the
            checkpointed parts and one part's inside; plus what the pass holds when it begins.
        gradients: one for every trained weight.
        update: the copy of the weights that Muon makes, or the update of an average.
    """

    weights: int
    optimizer: int
    averages: int
    activations: int
    gradients: int
    update: int

    @property
    def total(self) -> int:
        """The larger peak."""
        always = self.weights + self.optimizer + self.averages
        return always + max(self.activations, self.gradients + self.update)

    def __str__(self) -> str:
        parts = ("weights", "optimizer", "averages", "activations", "gradients")
        said = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in parts)
        return f"{self.total / 2**30:.2f} GiB ({said})"


def training_memory(trainer, precision: str) -> TrainingMemory:
    """The memory that ``trainer``, which has taken a step, would need on a GPU.

    Counted are the tensors that torch allocates in one process. Not counted: the driver (some 0.5 GiB), the
    workspaces of cuDNN, memory that the allocator cannot reuse, the gradient buckets of several processes, and what
    torch_compile changes.

    Args:
        precision: "no", "bf16" or "fp16".
    """
    state, parts = trainer.state, trainer.config.gradient_accumulation_steps
    weights = list(state.unet.parameters())
    gradients = _bytes(weight for weight in weights if weight.requires_grad)
    moments = [value for values in state.optimizer.state_dict()["state"].values() for value in values.values()]
    return TrainingMemory(
        weights=_bytes(weights),
        optimizer=_bytes(moment for moment in moments if torch.is_tensor(moment)),
        averages=_bytes(shadow for average in state.averages.values() for shadow in average.shadow_params),
        activations=_activations(trainer, precision) + gradients * (parts > 1),  # those of the parts before
        gradients=gradients,
        update=gradients,
    )


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _activations(trainer, precision: str) -> int:
    """Bytes that the backward pass of a part of a batch begins with, besides the weights."""
    config = trainer.config
    batch = config.train_batch_size // trainer.accelerator.num_processes // trainer.config.gradient_accumulation_steps
    unet, pixels, ones = on_meta(trainer.state.unet, batch)
    unet.train()
    kept, parts = _Kept(unet), []
    if config.gradient_checkpointing:

        def checkpointed(module, *args):
            for arg in args:
                if isinstance(arg, torch.Tensor):
                    kept.add(arg)
            parts.append(_Kept(unet))
            with parts[-1].hooks():
                return module(*args)

        unet.enable_gradient_checkpointing(checkpointed)
    with kept.hooks(), _Gpu(precision):
        labels, words = ones if config.class_conditional else None, some_words(unet, batch, "meta")
        prediction = unet(pixels, ones, labels, **words, return_dict=False)[0]
        F.mse_loss(prediction.float(), pixels, reduction="none").mean(dim=(1, 2, 3)).mean()
    one_part = max((part.total for part in parts), default=0)
    largest = max(storage.nbytes() for part in (kept, *parts) for storage in part.storages.values())
    # images, flipped images, noise, noisy images and target; the gradients of one layer's output and input
    return kept.total + one_part + 5 * _bytes([pixels]) + 2 * largest


class _Kept:
    """The storages of the tensors that autograd keeps for the backward pass, besides the weights."""

    def __init__(self, unet: torch.nn.Module):
        self.weights = {id(weight.untyped_storage()) for weight in unet.parameters()}
        self.storages = {}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self.weights:
            self.storages[id(storage)] = storage  # held, so that no other takes its id
        return tensor

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.add, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


class _Gpu(TorchFunctionMode):
    """Lets tensors of the meta device have the dtypes and the attention that they have on a GPU."""

    def __init__(self, precision: str):
        super().__init__()
        self.half = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.half and func in HALF | SINGLE:
            dtype = self.half if func in HALF else torch.float32
            args = [_cast(arg, dtype) for arg in args]
            kwargs = {name: _cast(arg, dtype) for name, arg in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return FusedAttention.apply(*(_cast(arg, self.half or arg.dtype) for arg in args[:3]))
        return func(*args, **kwargs)


def _cast(value, dtype: torch.dtype):
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
