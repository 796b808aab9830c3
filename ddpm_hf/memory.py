"""How much memory a network and its calls take, from shapes alone, and how much there is."""

import contextlib
import os
import weakref
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from ddpm_hf.errors import UserError

GIB = 2**30
MOST_TOKENS = 77  # as in ddpm_hf.pipeline, which needs diffusers
_call_bytes = weakref.WeakKeyDictionary()  # network -> bytes of a call with one image


def memory_from_environment() -> int | None:
    """Bytes that $MODELS_MEMORY, a number of GB, allows for models; None where it is not set.

    Raises:
        UserError: if it is no such number.
    """
    text = os.environ.get("MODELS_MEMORY", "")
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        size = 0
    if not 0 < size < 1e6:
        raise UserError(f"MODELS_MEMORY must be a number of GB such as 4, not {text!r}.")
    return int(size * GIB)


def memory_limit() -> int:
    """Bytes that a model or a call may take here: $MODELS_MEMORY, and no more than this process can have."""
    import psutil

    limits = [psutil.virtual_memory().total, memory_from_environment()]
    with contextlib.suppress(OSError, ValueError):  # "max", or no such control group
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    with contextlib.suppress(ImportError):  # Windows
        import resource

        addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
        if addresses != resource.RLIM_INFINITY:
            limits.append(max(0, addresses - psutil.Process().memory_info().vms))
    return min(limit for limit in limits if limit is not None)


def refuse_beyond_memory(needed: int, what: str):
    """Raise a UserError if ``what`` would take more bytes than ``memory_limit`` gives."""
    limit = memory_limit()
    if needed > limit:
        raise UserError(
            f"{what} would take about {needed / GIB:,.1f} GiB of memory; {limit / GIB:,.1f} GiB are allowed."
        )


def sampling_bytes(pipeline, num_images: int, batch_size: int, num_frames: int = 0) -> int:
    """Bytes that making so many pictures takes at most, besides the weights.

    Args:
        pipeline: a MyDDPMPipeline.
        batch_size: of the calls of the network.
        num_frames: that are kept of each picture, besides the finished one.
    """
    rows, columns = _sides(pipeline.unet)
    height, width = pipeline.config.get("output_height") or rows, pipeline.config.get("output_width") or columns
    values = pipeline.unet.config.in_channels * height * width
    guided = 2 if pipeline.can_be_guided else 1
    at_once = min(num_images, batch_size) * (guided * call_bytes(pipeline.unet) + 4 * 4 * values)  # four in float32
    return at_once + num_images * (1 + num_frames) * values


@torch.no_grad()
def call_bytes(unet: torch.nn.Module) -> int:
    """Bytes that a call of the network with one image takes at most, in float32, besides the weights.

    0 for a network of foreign code that cannot be built or called without memory.
    """
    if unet not in _call_bytes:
        try:
            network, images, timesteps = on_meta(unet, 1)
            with _Peak() as peak:
                network.eval()(images, timesteps, **some_words(unet, 1, "meta"))
            _call_bytes[unet] = peak.bytes
        except Exception:
            _call_bytes[unet] = 0
    return _call_bytes[unet]


def on_meta(unet: torch.nn.Module, batch_size: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A network like ``unet``, images (B, C, H, W) and timesteps (B,) for it: shapes alone, which take no memory."""
    with torch.device("meta"):
        images = torch.empty(batch_size, unet.config.in_channels, *_sides(unet))
        timesteps = torch.zeros(batch_size, dtype=torch.long)
        return type(unet).from_config(unet.config), images.contiguous(memory_format=torch.channels_last), timesteps


def some_words(unet: torch.nn.Module, batch_size: int, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Arguments for a network that reads words, as many as it reads at once; {} for others."""
    width = getattr(unet.config, "cross_attention_dim", None)
    return {} if width is None else {"encoder_hidden_states": torch.ones(batch_size, MOST_TOKENS, width, device=device)}


def _sides(unet: torch.nn.Module) -> tuple[int, int]:
    size = unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


class FusedAttention(torch.autograd.Function):
    """What a fused kernel makes and keeps, where the meta device would make all N x N weights of an attention."""

    @staticmethod
    def forward(ctx, query, key, value):  # 3 x (B, heads, N, D) -> (B, heads, N, D)
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


class _Peak(TorchFunctionMode):
    """Counts the bytes that tensors made under it take at once."""

    def __init__(self):
        super().__init__()
        self.bytes, self._storages = 0, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        fused = func is F.scaled_dot_product_attention
        made = FusedAttention.apply(*args[:3]) if fused else func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._storages[reference.cdata] = (reference, storage.nbytes())
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._storages.values()))
        return made
