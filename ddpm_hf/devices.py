"""Which device and precision to compute with."""

import contextlib
import ctypes
import platform
import sys
from pathlib import Path

import torch


def best_device() -> torch.device:
    """The accelerator that torch sees, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """What the device is sold as, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processes():
    """accelerate's ``PartialState``: the processes of this launch, over gloo where there is no accelerator."""
    from accelerate import PartialState

    return PartialState(cpu=best_device().type == "cpu")


def best_dtype(device: torch.device | None = None) -> torch.dtype:
    """bfloat16 where it is faster than float32 on ``device``, else float32."""
    return torch.bfloat16 if bf16_is_faster(device) else torch.float32


def bf16_is_faster(device: torch.device | None = None) -> bool:
    """Whether bfloat16 pays: on a GPU that has it, on a CPU with AMX or AVX512-BF16, otherwise not."""
    device = device or best_device()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_bf16_is_faster()


def _cpu_bf16_is_faster() -> bool:
    # asked, not timed: a busy machine's times would decide otherwise at the next start, and the pictures' bytes with it
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes held so far: by torch on a CUDA device, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def leave_cores() -> int:
    """Keep what the calling thread computes on one core, and return how many it had: for the one that computes.

    OpenMP gives every thread that computes a team of its own, as long as that thread lives. Once the teams have more
    threads than there are cores, none waits awake for its next piece of work any more, and a call of the network takes
    a fifth longer (benchmarks/NOTES.md). ``torch.set_num_threads`` of the number, in the thread that computes, takes
    them back.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    return count


def keep_freed_memory():
    """Let the C library keep what is freed: mapping large tensors anew costs a fifth of a training step on a CPU.

    Measured in benchmarks/NOTES.md. To be called once the data are read, whose memory is better given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # glibc has it
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back
