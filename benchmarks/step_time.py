"""Milliseconds an image for a forward pass and a training step: plain float32 against what this project runs.

    python -m benchmarks.step_time [--batch 16] [--repeats 5]

Both sides are the same network with the same weights and the same batch, timed in turn in one process. "plain" is
float32 and NCHW; "ours" is bfloat16 where that is faster, and channels_last. The best of the repeats counts.
"""

import argparse
import contextlib
import platform
import time

import torch

from ddpm_hf.config import load_config
from ddpm_hf.devices import best_device, best_dtype
from ddpm_hf.unet import MyUNet

NETWORKS = {
    "seed, Fashion-MNIST": {"in_channels": 1, "out_channels": 1},
    "shipped": None,  # from its preset
}


def build(settings) -> MyUNet:
    torch.manual_seed(0)
    if settings is None:
        config = load_config(["--config", "configs/fashion_mnist_small.yaml"])
        names = ("block_out_channels", "attention_levels", "num_attention_heads", "feed_forward_dim", "residual")
        settings = {name: getattr(config, name) for name in (*names, "normalize_input", "num_train_timesteps")}
        settings |= {"in_channels": 1, "out_channels": 1, "num_class_embeds": 10}
    return MyUNet(**settings)


def milliseconds(work, batch: int, repeats: int) -> float:
    """Best time of ``work()``, after two calls to warm up, divided by the images in it."""
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:]) / batch * 1000


def measure(settings, batch: int, repeats: int, ours: bool) -> tuple[float, float]:
    """(forward, training step) in milliseconds an image."""
    device = best_device()
    dtype = best_dtype(device) if ours else torch.float32
    memory_format = torch.channels_last if ours else torch.contiguous_format
    unet = build(settings).to(device, memory_format=memory_format)
    x = torch.randn(batch, 1, 32, 32, device=device).contiguous(memory_format=memory_format)
    t = torch.randint(0, unet.config.num_train_timesteps, (batch,), device=device)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], fused=ours)
    half = dtype != torch.float32

    def train():
        with torch.autocast(device.type, dtype) if half else contextlib.nullcontext():
            prediction = unet(x, t).sample
        (prediction.float() - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    training = milliseconds(train, batch, repeats)
    inference = build(settings).eval().to(device, memory_format=memory_format)
    inference = inference.bfloat16() if half else inference
    cast = x.to(dtype)
    with torch.inference_mode():
        forward = milliseconds(lambda: inference(cast, t), batch, repeats)
    return forward, training


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {best_device()}, torch {torch.__version__}")
    print(f"batch {arguments.batch}, ms an image: plain float32 -> ours (ratio)")
    for name, settings in NETWORKS.items():
        plain = measure(settings, arguments.batch, arguments.repeats, ours=False)
        ours = measure(settings, arguments.batch, arguments.repeats, ours=True)
        cells = [f"{a:.1f} -> {b:.1f} ({a / b:.1f} x)" for a, b in zip(plain, ours)]
        millions = sum(parameter.numel() for parameter in build(settings).parameters()) / 1e6
        print(f"{name} ({millions:.1f} M): forward {cells[0]}, training step {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
