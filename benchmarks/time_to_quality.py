"""Quality against minutes of training from nothing on Fashion-MNIST: the original's loop, diffusers' and ours.

    python -m benchmarks.time_to_quality --dataset DIR [--minutes 1 2 3 4 8 15 30] [--sides original diffusers ours]
    python -m benchmarks.time_to_quality --dataset DIR --target 2.0

original: the loop of ``benchmarks.original_loop`` with its published settings (Adam 1e-3, batch 28, epsilon, float32)
    and its layout of 20.7 M parameters, in our faster implementation.
diffusers: the loop of diffusers' train_unconditional.py (AdamW, warm-up and cosine over the longest time, average,
    epsilon, DDPMScheduler), in bfloat16 where that is faster, with the network of our small preset without classes.
    ``--peer-learning-rate`` defaults to that script's 1e-4.
ours: configs/fashion_mnist_small.yaml. Its learning rate falls to zero at the end of a run, so every number of minutes
    is a run of its own. The other two sides are one run each, scored on its way.

The sides take turns on the same cores, in one process. Only optimizer steps and their data count as time. Every side
draws with the sampler that suits it best here, DPM-Solver++ 2M SDE in 20 steps, from its averaged weights where it has
some. FID, precision and recall compare ``--num-images`` images (with classes: class i mod 10) with the test set by the
feature extractor that ships with the repository. Lines are appended to ``--output``; grids are written beside it. Files
there that it did not write are not replaced.

``--target`` is the speedrun: only our side, for one number of minutes after the other, until the FID is reached. The
protocol is open to all: any change of preset or code counts; report the minutes and the machine.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import yaml
from diffusers.training_utils import EMAModel
from torch import nn
from torchvision.transforms.functional import to_pil_image

from benchmarks import train_throughput
from benchmarks.original_loop import MyDDPM, training_loop
from benchmarks.train_throughput import PilImages, machine, our_trainer, usual_loop
from ddpm_hf.data import Source, open_data
from ddpm_hf.devices import best_device, bf16_is_faster
from ddpm_hf.errors import UserError, run_command
from ddpm_hf.evaluation.features import load_features
from ddpm_hf.evaluation.scores import frechet_distance, precision_recall
from ddpm_hf.figures import make_grid
from ddpm_hf.image_sets import generated_images, image_set
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.reading import parse_json, read_text
from ddpm_hf.sampling import with_sampler
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.training import build_pipeline
from ddpm_hf.unet import MyUNet

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("original", "diffusers", "ours")
PRESET = ROOT / "configs" / "fashion_mnist_small.yaml"
NETWORK = ("block_out_channels", "attention_levels", "num_attention_heads", "feed_forward_dim", "residual")
SAMPLER, STEPS, GUIDANCE = "dpm-sde", 20, 2.0
PROBE_STEPS = 30
Contender = Callable[[float], tuple[MyDDPMPipeline, int]]  # minutes in all -> what it has then, and its images seen


def train_for(step: Callable[[], object], seconds: float) -> int:
    """Take steps until the time is over; returns their number."""
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        step()
        count += 1
    return count


class OneRun:
    """A contender that is one run: trained on from where it was."""

    def __init__(self, step: Callable[[], object], pipeline: Callable[[], MyDDPMPipeline], batch: int):
        self.step, self.pipeline, self.batch = step, pipeline, batch
        self.minutes = self.steps = 0

    def __call__(self, minutes: float) -> tuple[MyDDPMPipeline, int]:
        self.steps += train_for(self.step, 60 * (minutes - self.minutes))
        self.minutes = minutes
        return self.pipeline(), self.steps * self.batch


class OriginalNetwork(nn.Module):
    """The original's layout, called as its loop calls a network: (x, t (B, 1)) -> noise."""

    def __init__(self):
        super().__init__()
        self.unet = MyUNet(in_channels=1, out_channels=1, num_train_timesteps=train_throughput.TIMESTEPS)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.unet(x, t.flatten()).sample


def original() -> OneRun:
    """The original's loop at its published settings."""
    from torchvision import transforms

    transform = transforms.Compose([transforms.Pad(2), transforms.ToTensor(), transforms.Lambda(lambda x: x * 2 - 1)])
    loader = torch.utils.data.DataLoader(PilImages(transform), 28, shuffle=True)
    ddpm = MyDDPM(OriginalNetwork(), train_throughput.TIMESTEPS, device=best_device(), image_chw=(1, 32, 32))
    optimizer = torch.optim.Adam([p for p in ddpm.parameters() if p.requires_grad], 1e-3)

    def endless():
        while True:
            yield from training_loop(ddpm, loader, optimizer, best_device())

    return OneRun(endless().__next__, lambda: _pipeline(copy.deepcopy(ddpm.network.unet)), 28)


def stock(minutes: float, learning_rate: float) -> OneRun:
    """diffusers' loop; ``minutes`` in all, over which its rate falls."""
    values = yaml.safe_load(PRESET.read_text())
    batch, precision = values["train_batch_size"], "bf16" if bf16_is_faster() else "no"
    options = {name: values[name] for name in NETWORK}
    unet = MyUNet(in_channels=1, out_channels=1, num_train_timesteps=1000, normalize_input=False, **options)
    unet.to(best_device(), memory_format=torch.channels_last)

    def loop(total_steps: int):
        trained = [p for p in unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, learning_rate, betas=(0.95, 0.999), weight_decay=1e-6)
        average = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)
        return usual_loop(unet, optimizer, average, batch, precision, total_steps), average

    start = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    seconds = seconds_a_step(loop(10_000)[0].__next__)
    unet.load_state_dict(start)
    steps, average = loop(max(1, round(60 * minutes / seconds)))

    def pipeline() -> MyDDPMPipeline:
        averaged = MyUNet.from_config(unet.config)
        average.copy_to(averaged.parameters())
        return _pipeline(averaged)

    return OneRun(steps.__next__, pipeline, batch)


def _pipeline(unet: nn.Module) -> MyDDPMPipeline:
    """For grayscale 28x28 images and a network that predicts epsilon."""
    return MyDDPMPipeline(unet, MyDDPMScheduler(1000), output_height=28, output_width=28)


def seconds_a_step(step: Callable[[], object]) -> float:
    """The median of ``PROBE_STEPS`` after a few to warm up."""
    times = train_throughput.seconds_of_steps(step, 5, PROBE_STEPS)
    return sorted(times)[len(times) // 2]


def ours(folder: Path, settings: dict, minutes: float) -> tuple[MyDDPMPipeline, int]:
    """A run of our small preset that ends after ``minutes``."""
    values = {**yaml.safe_load(PRESET.read_text()), **settings, "validation_split": None}
    probe = our_trainer(**values | {"output_dir": str(folder / "probe")})
    steps = max(1, round(60 * minutes / seconds_a_step(probe.train_step)))
    # what the preset has for a long run, for a short one: a warm-up of a tenth, an average of the last tenth
    short = {"lr_warmup_steps": min(values["lr_warmup_steps"], steps // 10), "max_train_steps": steps}
    short["ema_max_decay"] = min(0.9995, max(0.9, 1 - 10 / steps))
    values |= {**short, "output_dir": str(folder / f"{minutes:g}")}
    trainer = our_trainer(**values)
    for _ in range(steps):
        trainer.train_step()
    pipeline = build_pipeline(trainer.config, trainer.data, trainer.state.averaged_unet())
    return pipeline, steps * trainer.config.train_batch_size


def score(pipeline: MyDDPMPipeline, options, grid: Path) -> dict:
    """FID, precision and recall of ``--num-images`` images, the first 40 of which ``grid`` shows."""
    if bf16_is_faster():
        pipeline.to(dtype=torch.bfloat16)
    sampled = with_sampler(pipeline, SAMPLER)
    guidance = 1.0 if pipeline.num_classes is None else GUIDANCE
    images = generated_images(sampled, options.num_images, guidance_scale=guidance, steps=STEPS)
    made = load_features("fashion-mnist", images.shape)(images.images).features
    real = test_features(options.dataset)
    precision, recall = precision_recall(made, real[: len(made)])
    make_grid([to_pil_image(image) for image in images.images[:40]], columns=10).save(grid)
    return {"fid": frechet_distance(made, real), "precision": precision, "recall": recall}


@cache
def test_features(dataset: str) -> torch.Tensor:
    """Of the test set, as float (N, D)."""
    data, _ = open_data([Source(dataset, split="test")], validation_split=None)
    images = image_set(data)
    return load_features("fashion-mnist", images.shape)(images.images).features


def refuse_others(options):
    """Raise a UserError where a table, a grid or a plot would replace what this benchmark did not write: the table
    tells of the grids, and without one there is no plot of it."""
    known, lines = set(), []
    if options.output.exists():
        try:
            lines = [parse_json(line) for line in read_text(options.output).splitlines()]
            known = {f"{line['side']}-{line['minutes']:g}.png" for line in lines}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"--output {options.output} is not a table of this benchmark: {error}.") from None
    grids = [f"{side}-{minutes:g}.png" for side in options.sides for minutes in options.minutes]
    taken = [options.output.parent / name for name in grids if name not in known]
    taken += [] if lines else [options.plot]
    for path in taken:
        if path.exists():
            raise UserError(f"{path} exists, and this benchmark did not write it; choose another --output and --plot.")


def run(options) -> list[dict]:
    """Train and score all sides in turn; returns the lines of the table."""
    folder = options.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    longest = max(options.minutes)
    torch.manual_seed(0)
    builders = {
        "original": original,
        "diffusers": partial(stock, longest, options.peer_learning_rate),
        "ours": lambda: partial(ours, folder, {"dataset": options.dataset}),
    }
    contenders: dict[str, Contender] = {side: builders[side]() for side in options.sides}
    lines = []
    for minutes in sorted(options.minutes):
        for side, contender in contenders.items():
            pipeline, images = contender(minutes)
            scores = score(pipeline, options, folder / f"{side}-{minutes:g}.png")
            lines.append({"side": side, "minutes": minutes, "images": images, **scores})
            with options.output.open("a") as file:
                file.write(json.dumps({**lines[-1], "machine": machine()}) + "\n")
            print_line(lines[-1])
            if options.target is not None and lines[-1]["fid"] <= options.target:
                print(f"FID {options.target:g} reached in {minutes:g} minutes")
                return lines
    return lines


def print_line(line: dict):
    print(
        f"{line['side']:10} {line['minutes']:6g} min {line['images']:9,} images  FID {line['fid']:7.3f}  "
        f"precision {line['precision']:.3f}  recall {line['recall']:.3f}",
        flush=True,
    )


def draw_curve(lines: list[dict], path: Path):
    """FID against minutes, both logarithmic, a curve a side."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for side in SIDES:
        points = sorted((line["minutes"], line["fid"]) for line in lines if line["side"] == side)
        if points:
            axes.plot(*zip(*points), marker="o", label=side)
    ticks = sorted({line["minutes"] for line in lines})
    axes.set(xscale="log", yscale="log", xlabel="minutes of training", ylabel="FID (lower is better)")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Fashion-MNIST, as for train.py")
    parser.add_argument("--minutes", nargs="+", type=float, default=[1, 2, 3, 4, 8, 15, 30], help="when to score")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--num-images", type=int, default=1000, help="to score")
    parser.add_argument("--peer-learning-rate", type=float, default=1e-4, help="of diffusers' loop")
    parser.add_argument("--target", type=float, help="FID at which to stop; only ours")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "time_to_quality" / "table.jsonl")
    parser.add_argument("--plot", type=Path, default=ROOT / "runs" / "time_to_quality" / "curve.png")
    options = parser.parse_args(argv)
    if options.target is not None:
        options.sides = ["ours"]
    refuse_others(options)
    print(f"{machine()}, torch {torch.__version__}")
    lines = run(options)
    draw_curve(lines, options.plot)
    if options.target is not None and lines[-1]["fid"] > options.target:
        print(f"FID {options.target:g} was not reached in {lines[-1]['minutes']:g} minutes")


if __name__ == "__main__":
    sys.exit(run_command(main))
