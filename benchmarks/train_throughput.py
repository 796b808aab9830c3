"""Images a second in training: the original's loop, the usual Accelerate loop and ours, from one run.

    python -m benchmarks.train_throughput [--only loops scale overhead] [--batch 64] [--rounds 3] [--steps 6]

loops: the original's 20.7 M network on Fashion-MNIST at 32x32, the same batch size and machine for all sides.
    original: float32, NCHW, ``nn.TransformerEncoderLayer``, a DataLoader of PIL images (``benchmarks.original_loop``).
    accelerate: what is usually written: ``Accelerator.prepare``, torchvision transforms for each image in a
        DataLoader, ``DDPMScheduler.add_noise``, ``EMAModel``, clipping, a learning rate schedule, precision "no".
    accelerate-bf16: the same with ``mixed_precision="bf16"``.
    ours: ``Trainer.train_step``, which averages the weights and watches the loss, with its default settings.
scale: our trainer with the small network on 1,000 and on 1,000,000 synthetic images of 1x32x32, memory-mapped:
    images a second, and the anonymous (private) memory of the process after the steps.
overhead: what the average, the lines of the log and the checkpoints cost of a step at the default intervals.

Every side of a round runs in a process of its own, one after the other, and the rounds repeat them in turn. A process
warms up, then times single steps, data included; a side's figure is the median step of its best round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # the IDX files of Debian's package, where installed
SIDES = ("original", "accelerate", "accelerate-bf16", "ours")
SCALES = (1_000, 1_000_000)
SMALL = "configs/fashion_mnist_small.yaml"
TIMESTEPS = 1000
PARAMETERS = 20_594_881  # that are trained, of the original's Fashion-MNIST network

Step = Callable[[], object]


# ---- the data


def dataset_path() -> Path:
    """Fashion-MNIST where it is installed, else the repository's first images of it."""
    return FASHION_MNIST if FASHION_MNIST.exists() else ROOT / "data" / "fashion_mnist_tiny.parquet"


class PilImages(torch.utils.data.Dataset):
    """PIL images, each put through ``transform`` when it is asked for, as torchvision's data sets do."""

    def __init__(self, transform):
        from PIL import Image

        from ddpm_hf.data import Source, open_data

        data, _ = open_data([Source(str(dataset_path()))], validation_split=None)
        self.images = [Image.fromarray(image[0, 2:-2, 2:-2]) for image in data.images]  # 28x28 again
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), 0


def write_synthetic_idx(path: Path, count: int):
    """``count`` random images of 32x32 as an IDX file."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(bytes([0, 0, 8, 3]) + np.array([count, 32, 32], ">u4").tobytes())
        for start in range(0, count, 10_000):
            file.write(rng.bytes(min(10_000, count - start) * 1024))


# ---- the sides: each returns what makes one optimizer step


def original_side(batch: int) -> Step:
    """(a) The original, literally."""
    from torchvision import transforms

    from benchmarks.original_loop import MyDDPM, MyUNet, training_loop
    from ddpm_hf.devices import best_device

    transform = transforms.Compose(
        [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Lambda(lambda x: x * 2 - 1)]
    )
    loader = torch.utils.data.DataLoader(PilImages(transform), batch, shuffle=True)
    ddpm = MyDDPM(MyUNet(1, TIMESTEPS), TIMESTEPS, device=best_device(), image_chw=(1, 32, 32))
    _check_size(ddpm.network)
    optimizer = torch.optim.Adam(ddpm.parameters(), 1e-3)
    return _endless(lambda: training_loop(ddpm, loader, optimizer, best_device())).__next__


def accelerate_side(batch: int, precision: str = "no") -> Step:
    """(b) The loop of most training scripts, with our network."""
    from diffusers.training_utils import EMAModel

    from ddpm_hf.unet import MyUNet

    unet = MyUNet(in_channels=1, out_channels=1, num_train_timesteps=TIMESTEPS)
    _check_size(unet)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], 1e-3)
    average = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True)
    return usual_loop(unet, optimizer, average, batch, precision, total_steps=20_000).__next__


def usual_loop(
    unet: torch.nn.Module, optimizer: torch.optim.Optimizer, average, batch: int, precision: str, total_steps: int
) -> Iterator[float]:
    """Training as diffusers' train_unconditional.py does it: epsilon, warm-up and cosine, clipping, an average.

    Yields the loss after every step; the ``average``, an EMAModel, is up to date then.
    """
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from torchvision import transforms

    accelerator = Accelerator(mixed_precision=precision)
    transform = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    )
    loader = torch.utils.data.DataLoader(PilImages(transform), batch, shuffle=True)
    noise_scheduler = DDPMScheduler(num_train_timesteps=TIMESTEPS)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=total_steps)
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    average.to(accelerator.device)

    def epoch():
        for images, _ in loader:
            noise = torch.randn_like(images)
            timesteps = torch.randint(0, TIMESTEPS, (len(images),), device=images.device)
            with accelerator.accumulate(unet):
                noisy = noise_scheduler.add_noise(images, noise, timesteps)
                loss = torch.nn.functional.mse_loss(unet(noisy, timesteps).sample.float(), noise)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(unet.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            average.step(unet.parameters())
            yield loss.detach().item()

    return _endless(epoch)


def ours_side(batch: int, folder: str, settings: dict | None = None) -> Step:
    """(c) Our trainer; ``settings`` over its defaults."""
    trainer = our_trainer(train_batch_size=batch, output_dir=folder, **(settings or {}))
    if not settings:
        _check_size(trainer.state.unet)
    return trainer.train_step


def our_trainer(**settings):
    """The one place that knows how our trainer is built and made ready for its first step."""
    from ddpm_hf.config import build_config
    from ddpm_hf.training import Trainer

    defaults = {"dataset": str(dataset_path()), "max_train_steps": 10**6, "report_to": "none"}
    return Trainer(build_config({**defaults, **settings}))


def _check_size(network: torch.nn.Module):
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert count == PARAMETERS, f"{count} parameters are not the original's {PARAMETERS}"


def _endless(epoch: Callable[[], Iterator]) -> Iterator:
    while True:
        yield from epoch()


# ---- timing, in a process of its own


def seconds_of_steps(step: Step, warmup: int, steps: int) -> list[float]:
    """Seconds of each of ``steps`` steps after the warm-up."""
    times = []
    for _ in range(warmup + steps):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[warmup:]


def anonymous_megabytes() -> float | None:
    """Private memory of this process that is not of a file, where the system tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return int(found[0]) / 1024 if found else None


def run_side(side: str, arguments) -> dict:
    """Build a side, time its steps; what a subprocess prints."""
    own = own_settings(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if side == "overhead":
            return event_seconds(our_trainer(train_batch_size=arguments.batch, output_dir=folder, **own), arguments)
        if side == "original":
            step = original_side(arguments.batch)
        elif side.startswith("accelerate"):
            step = accelerate_side(arguments.batch, "bf16" if side.endswith("bf16") else "no")
        elif side == "scale":
            step = ours_side(arguments.batch, folder, {**small_network(), **own, "dataset": arguments.idx})
        else:
            step = ours_side(arguments.batch, folder, own)
        times = seconds_of_steps(step, arguments.warmup, arguments.steps)
        return {"seconds": statistics.median(times), "megabytes": anonymous_megabytes()}


def own_settings(arguments) -> dict:
    """The settings given with ``--ours``, read as YAML."""
    import yaml

    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in arguments.ours)}


def small_network() -> dict:
    """The small shipped network, unconditional, its images mapped from a file."""
    import yaml

    values = yaml.safe_load((ROOT / SMALL).read_text())
    names = ("block_out_channels", "attention_levels", "num_attention_heads", "feed_forward_dim", "residual")
    return {name: values[name] for name in names if name in values} | {"max_memory_gb": 1e-6, "validation_split": None}


def event_seconds(trainer, arguments) -> dict:
    """Best seconds of a step, and of what a run does at times, called as the trainer's loop calls it."""
    from tqdm.auto import tqdm

    trainer.start()
    trainer.train_step()  # so that no interval is due
    timed = {
        "step": trainer.train_step,
        "average": trainer.state.average_step,
        "log": lambda: trainer.monitors.log(tqdm(disable=True)),
        "checkpoint": trainer.save,
    }
    seconds = {name: [] for name in timed}
    for _ in range(arguments.warmup + arguments.steps):
        for name, work in timed.items():
            seconds[name].append(seconds_of_steps(work, 0, 1)[0])
    config = trainer.config
    intervals = {"logging_steps": config.logging_steps, "checkpointing_steps": config.checkpointing_steps}
    return {name: statistics.median(times[arguments.warmup :]) for name, times in seconds.items()} | intervals


def in_subprocess(side: str, arguments, *extra: str, **environment: str) -> dict:
    """``run_side`` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.train_throughput", "--side", side, *extra]
    command += ["--batch", str(arguments.batch), "--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
    command += ["--ours", *arguments.ours]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- the tables


def machine() -> str:
    """The processor and the accelerator, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx2") if name in flags][:1]
    return " ".join([platform.machine(), f"{torch.get_num_threads()} threads", *units])


def matrix_peak() -> float:
    """FLOP a second of a bfloat16 product of 4096x4096 matrices, the best of five."""
    from ddpm_hf.devices import best_device

    matrix = torch.ones(4096, 4096, dtype=torch.bfloat16, device=best_device())
    return 2 * 4096**3 / min(seconds_of_steps(lambda: matrix @ matrix, 2, 5))


def flop_per_image() -> int:
    """FLOP of the original's network forwards and backwards, two for a multiplication with addition."""
    from torch.utils.flop_counter import FlopCounterMode

    from ddpm_hf.unet import MyUNet

    with FlopCounterMode(display=False) as counter:
        MyUNet(in_channels=1, out_channels=1)(torch.zeros(1, 1, 32, 32), 0).sample.sum().backward()
    return counter.get_total_flops()


def print_loops(arguments):
    """The table of the sides, in images a second and relative to the original and to the usual loop."""
    best = dict.fromkeys(arguments.sides, float("inf"))
    memory = {}
    for _ in range(arguments.rounds):
        for side in arguments.sides:
            result = in_subprocess(side, arguments)
            best[side], memory[side] = min(best[side], result["seconds"]), result["megabytes"]
    rate = {side: arguments.batch / seconds for side, seconds in best.items()}
    print(f"\nloops: original's network, {PARAMETERS:,} trained parameters, batch {arguments.batch}")
    print(f"{'':16} {'images/s':>9} {'ms/image':>9} {'x original':>11} {'x accelerate':>13} {'private MB':>11}")
    for side, value in rate.items():
        ratios = [f"{value / rate[other]:.2f}" if other in rate else "" for other in ("original", "accelerate")]
        memory_text = "" if memory[side] is None else f"{memory[side]:,.0f}"
        print(f"{side:16} {value:9.1f} {1000 / value:9.2f} {ratios[0]:>7} {ratios[1]:>13} {memory_text:>11}")
    if "ours" in rate and not arguments.ours:
        peak, used = matrix_peak(), flop_per_image() * rate["ours"]
        print(
            f"ours computes {used / 1e9:,.0f} GFLOP/s, {used / peak:.0%} of the {peak / 1e9:,.0f} of a bfloat16 product"
        )


def print_scale(arguments):
    """Images a second and memory for few and many memory-mapped images."""
    best, memory = dict.fromkeys(arguments.scales, float("inf")), {}
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.scales:
            write_synthetic_idx(Path(folder) / f"{count}-images-idx3-ubyte", count)
        for turn in range(arguments.rounds + 1):  # the first start stores the images, the others map them
            for count in arguments.scales:
                idx = str(Path(folder) / f"{count}-images-idx3-ubyte")
                result = in_subprocess("scale", arguments, "--idx", idx, HF_HOME=str(Path(folder) / "home"))
                if turn:
                    best[count], memory[count] = min(best[count], result["seconds"]), result["megabytes"]
    print(f"\nscale: memory-mapped images, the network of {SMALL}, batch {arguments.batch}")
    print(f"{'images':>10} {'images/s':>9} {'private MB':>11}")
    for count in arguments.scales:
        print(f"{count:>10,} {arguments.batch / best[count]:9.1f} {memory[count] or float('nan'):11,.0f}")
    few, many = arguments.scales
    growth = (memory[many] or 0) - (memory[few] or 0)
    print(f"images/s x {best[few] / best[many]:.3f}, private memory {growth:+,.0f} MB")


def print_overhead(arguments):
    """The share of the run's time that is not the step itself."""
    seconds = in_subprocess("overhead", arguments)
    step = seconds["step"] - seconds["average"]
    costs = {
        "average, every step": seconds["average"],
        f"log line, every {seconds['logging_steps']}": seconds["log"] / seconds["logging_steps"],
        f"checkpoint, every {seconds['checkpointing_steps']}": seconds["checkpoint"] / seconds["checkpointing_steps"],
    }
    whole = step + sum(costs.values())
    print(f"\noverhead: the original's network, batch {arguments.batch}, bare step {step * 1000:.0f} ms")
    print(f"one log line {seconds['log'] * 1000:.1f} ms, one checkpoint {seconds['checkpoint'] * 1000:.0f} ms")
    for name, cost in costs.items():
        print(f"{name:24} {cost * 1000:8.2f} ms a step {cost / whole:7.2%}")
    print(f"{'together':24} {(whole - step) * 1000:8.2f} ms a step {(whole - step) / whole:7.2%}")


def parse(argv: list[str] | None = None):
    parts = {"loops": print_loops, "scale": print_scale, "overhead": print_overhead}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="parts to run")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="sides of loops")
    parser.add_argument("--scales", nargs=2, type=int, default=list(SCALES), help="numbers of images of scale")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a round")
    parser.add_argument("--ours", nargs="*", default=[], metavar="SETTING=VALUE", help="settings of our side")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of a subprocess
    parser.add_argument("--idx", help=argparse.SUPPRESS)
    return parser.parse_args(argv), parts


def main(argv: list[str] | None = None):
    arguments, parts = parse(argv)
    if arguments.side:
        print(json.dumps(run_side(arguments.side, arguments)))
        return
    print(f"{machine()}, torch {torch.__version__}, Python {platform.python_version()}, {dataset_path().name}")
    for name in arguments.only:
        parts[name](arguments)


if __name__ == "__main__":
    main()
