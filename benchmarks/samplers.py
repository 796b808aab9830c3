"""Quality and time of samplers on one set of weights: the table, the plot and the ratios of the README.

    python -m benchmarks.samplers --dataset DIR [--model FOLDER] [--num-images 1000] [--long-images 500]
                                  [--guidance-scale 1] [--guidance-interval LOW,HIGH]

Quality is the Frechet distance of the features of generated images (of seeds 0, 1, ..., classes in turn) to those of
the data set's test split, by ``ddpm_hf.evaluation``. Samplers of more than 100 network calls make ``--long-images``,
and all others are scored on as many, too, so that the last column compares all. Seconds are for 16 images, the best of
three runs, of one for more than 100 calls. Lines are kept in ``--output`` as they come, and not measured again;
``--times-again`` takes the seconds of all lines anew, where the machine was busy when they were made. Calls are those
of the network for one image: a guided step takes two.

At the end: the original's sampling loop (float32, NCHW, all steps, guided as ours is) on the same weights and the same
16 images, timed in the same run as our best of at most 20 steps; and diffusers' own pipeline (float32, NCHW), without
guidance, against ours without guidance at as many steps.
"""

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from pathlib import Path

import diffusers
import torch
from tqdm.auto import tqdm

from ddpm_hf.commands.options import interval
from ddpm_hf.data import Source, open_data
from ddpm_hf.devices import best_device, best_dtype
from ddpm_hf.errors import UserError, run_command
from ddpm_hf.evaluation.features import FeatureExtractor, load_features
from ddpm_hf.evaluation.scores import frechet_distance, refuse_too_few
from ddpm_hf.files import write_whole
from ddpm_hf.hub import load_pipeline
from ddpm_hf.image_sets import ImageSet, generated_images, image_set
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import calls_per_image
from ddpm_hf.scheduler import MyDDPMScheduler

TIMED_IMAGES = 16
STEPS = (5, 10, 15, 20, 50, 100)
MOST_CALLS = 100  # of the network, for the larger number of images
FEW_STEPS, ALL_STEPS = 20, 1000
FEWEST_POINTS = 5  # of a line of the plot
COLOURS = ("#1f5fa8", "#c8501b", "#2c8a4b", "#7a4ea3", "#b8860b", "#b5306f", "#2a9aa8", "#6b4a3a", "#555555")
MARKERS = "osD^vP<>X"
CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
CLIP_MULTISTEP = {"thresholding": True, "sample_max_value": 1.0}
TRAILING = {"timestep_spacing": "trailing"}

DPM = diffusers.DPMSolverMultistepScheduler
PLAIN = {MyDDPMScheduler: None, DPM: "dpmsolver++"}  # the algorithm_type of the schedulers that have one
# name -> scheduler, its settings, the numbers of steps
SAMPLERS = {
    "ours, fixed_large": (MyDDPMScheduler, {"variance_type": "fixed_large"}, (*STEPS, 1000)),
    "ours, fixed_small, clipped": (MyDDPMScheduler, {"variance_type": "fixed_small", **CLIP}, (*STEPS, 1000)),
    # tests show that it draws what ours of small variance draws, so its 1000 steps are not spent again
    "stock DDPM": (diffusers.DDPMScheduler, {"variance_type": "fixed_small", **CLIP}, STEPS),
    "DDIM": (diffusers.DDIMScheduler, {**TRAILING, **CLIP}, STEPS),
    "DDIM, not clipped": (diffusers.DDIMScheduler, {**TRAILING, "clip_sample": False}, STEPS[:4]),
    "DPM++ 2M, trailing": (DPM, {**TRAILING, **CLIP_MULTISTEP}, STEPS),
    "DPM++ 2M, trailing, not clipped": (DPM, {**TRAILING, "thresholding": False}, STEPS[:4]),
    "DPM++ 2M, linspace": (DPM, {"timestep_spacing": "linspace", **CLIP_MULTISTEP}, STEPS[:4]),
    "DPM++ 2M, leading": (DPM, {"timestep_spacing": "leading", **CLIP_MULTISTEP}, STEPS[:4]),
    "DPM++ 2M, Karras sigmas": (DPM, {"use_karras_sigmas": True, **CLIP_MULTISTEP}, STEPS[:4]),
    "DPM++ 2M, exponential sigmas": (DPM, {"use_exponential_sigmas": True, **CLIP_MULTISTEP}, STEPS[:4]),
    "DPM++ 2M, Lu's lambdas": (DPM, {"use_lu_lambdas": True, **CLIP_MULTISTEP}, STEPS[:4]),
    "DPM++ 2M SDE, trailing": (DPM, {**TRAILING, "algorithm_type": "sde-dpmsolver++", **CLIP_MULTISTEP}, STEPS),
    "UniPC": (diffusers.UniPCMultistepScheduler, {**TRAILING, **CLIP_MULTISTEP}, STEPS),
    "Euler": (diffusers.EulerDiscreteScheduler, TRAILING, STEPS),
    "Heun": (diffusers.HeunDiscreteScheduler, {**TRAILING, **CLIP}, STEPS[:5]),
}


# ---- measuring


def model_hash(pipeline: MyDDPMPipeline) -> str:
    """16 hexadecimal digits of the weights."""
    digest = hashlib.sha256()
    for tensor in pipeline.unet.state_dict().values():
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def with_scheduler(pipeline: MyDDPMPipeline, name: str) -> MyDDPMPipeline:
    scheduler_class, settings, _ = SAMPLERS[name]
    if scheduler_class in PLAIN:  # the model may carry another solver
        settings = {"algorithm_type": PLAIN[scheduler_class], **settings}
    names = ("id2label", "output_height", "output_width", "output_resize")
    options = {key: pipeline.config.get(key) for key in names}
    other = MyDDPMPipeline(pipeline.unet, scheduler_class.from_config(pipeline.scheduler.config, **settings), **options)
    other.set_progress_bar_config(disable=True)
    return other


def labels_of(pipeline: MyDDPMPipeline, count: int) -> list[int] | None:
    return None if pipeline.num_classes is None else [i % pipeline.num_classes for i in range(count)]


@torch.inference_mode()
def seconds(pipeline: MyDDPMPipeline, steps: int, scale: float, interval=None) -> tuple[float, int]:
    """Best time for 16 images, and the calls of the network for each."""
    times, options = [], {"num_inference_steps": steps, "seed": 0, "guidance_interval": interval}
    for _ in range(1 if steps > MOST_CALLS else 3):
        start = time.perf_counter()
        *_, last = pipeline.denoise(TIMED_IMAGES, labels_of(pipeline, TIMED_IMAGES), scale, **options)
        pipeline.postprocess(last.sample)
        times.append(time.perf_counter() - start)
    return min(times), calls_per_image(pipeline.scheduler.timesteps.tolist(), scale, interval)


def measure(pipeline, name: str, steps: int, options, extractor: FeatureExtractor, real: torch.Tensor) -> dict:
    sampler = with_scheduler(pipeline, name)
    guidance = {"guidance_scale": options.guidance_scale, "guidance_interval": options.guidance_interval}
    best, calls = seconds(sampler, steps, *guidance.values())
    count = options.long_images if steps > MOST_CALLS else max(options.num_images, options.long_images)
    images: ImageSet = generated_images(sampler, count, steps=steps, **guidance)
    features = extractor(images.images).features
    line = {"sampler": name, "steps": steps, "calls": calls, "seconds": best}
    if steps <= MOST_CALLS:
        line["fid"] = frechet_distance(features[: options.num_images], real)
    line["fid_long"] = frechet_distance(features[: options.long_images], real)
    return line


# ---- peers, on the same weights


@torch.inference_mode()
def original_seconds(pipeline: MyDDPMPipeline, guidance: float) -> float:
    """The original's sampling: float32, NCHW, all of its steps, noise of variance beta; guided by two predictions."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    labels = labels_of(pipeline, TIMED_IMAGES)
    device = pipeline.device
    labels = None if labels is None else torch.tensor(labels, device=device)
    size, channels = unet.config.sample_size, unet.config.in_channels
    start = time.perf_counter()
    x = torch.randn(TIMED_IMAGES, channels, size, size, device=device)
    for t in tqdm(range(len(scheduler) - 1, -1, -1), desc="the original's loop", leave=False):
        time_tensor = (torch.ones(TIMED_IMAGES, 1, device=device) * t).long()
        eta_theta = unet(x, time_tensor.reshape(-1), labels).sample
        if guidance != 1:
            eta_null = unet(x, time_tensor.reshape(-1), torch.full_like(labels, pipeline.num_classes)).sample
            eta_theta = eta_null + guidance * (eta_theta - eta_null)
        alpha_t, alpha_t_bar, beta_t = scheduler.alphas[t], scheduler.alphas_cumprod[t], scheduler.betas[t]
        x = (1 / alpha_t.sqrt()) * (x - (1 - alpha_t) / (1 - alpha_t_bar).sqrt() * eta_theta)
        if t > 0:
            x = x + beta_t.sqrt() * torch.randn_like(x)
    x.cpu()
    return time.perf_counter() - start


def stock_seconds(pipeline: MyDDPMPipeline, steps: int) -> float:
    """diffusers' own DDIMPipeline, as it loads: float32, NCHW. It gives no labels, which costs nothing."""
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    stock = diffusers.DDIMPipeline(pipeline.unet, scheduler)
    stock.set_progress_bar_config(disable=True)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        stock(batch_size=TIMED_IMAGES, num_inference_steps=steps, output_type="pil")
        times.append(time.perf_counter() - start)
    return min(times)


def plain(model: str | None) -> MyDDPMPipeline:
    """The pipeline in float32 and NCHW, on the same device."""
    pipeline = load_pipeline(model, device=best_device())
    pipeline.unet.to(memory_format=torch.contiguous_format)
    return pipeline


def compare(pipeline: MyDDPMPipeline, lines: list[dict], options):
    """The ratios that the README states, both sides timed now."""
    long = [line for line in lines if line["steps"] == ALL_STEPS]
    few = [line for line in lines if line["steps"] <= FEW_STEPS]
    target = min(long, key=lambda line: line["fid_long"])
    enough = [line for line in few if line["fid_long"] <= 1.02 * target["fid_long"]]
    best = min(enough, key=lambda line: line["calls"]) if enough else min(few, key=lambda line: line["fid_long"])
    sampler = with_scheduler(pipeline, best["sampler"])
    ours, _ = seconds(sampler, best["steps"], options.guidance_scale, options.guidance_interval)
    unguided, calls = seconds(sampler, best["steps"], 1.0)
    other = plain(options.model)
    original, stock = original_seconds(other, options.guidance_scale), stock_seconds(other, calls)
    print(f"\n1000 steps: {target['sampler']}, FID {target['fid_long']:.3f} of {options.long_images} images")
    print(
        f"{best['sampler']}, {best['steps']} steps: FID {best['fid_long']:.3f}, "
        f"{best['fid_long'] / target['fid_long']:.3f} times that"
    )
    print(f"16 images: ours {ours:.3f} s; the original's loop {original:.2f} s, {original / ours:.0f} x; ", end="")
    print(f"without guidance {unguided:.3f} s, diffusers' DDIMPipeline at as many steps {stock:.3f} s, ", end="")
    print(f"{stock / unguided:.2f} x")


# ---- telling


def print_table(lines: list[dict], options):
    long = f"FID {options.long_images}"
    print(f"\n{'sampler':34}{'steps':>6}{'calls':>6}{'seconds':>9}{f'FID {options.num_images:,}':>11}{long:>9}")
    for line in sorted(lines, key=lambda line: (list(SAMPLERS).index(line["sampler"]), line["steps"])):
        score = f"{line['fid']:11.3f}" if "fid" in line else " " * 11
        print(
            f"{line['sampler']:34}{line['steps']:6}{line['calls']:6}{line['seconds']:9.3f}{score}{line['fid_long']:9.3f}"
        )


def draw(lines: list[dict], path: Path, options):
    """Quality against time, both logarithmic, a line for every sampler that has more than a few points."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axes = figure.subplots()
    curves = {name: sorted(_points(lines, name)) for name in SAMPLERS}
    curves = {name: points for name, points in curves.items() if len(points) >= FEWEST_POINTS}
    for number, name in enumerate(sorted(curves, key=lambda name: min(score for _, score, _ in curves[name]))):
        times, scores, steps = zip(*curves[name])
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        axes.plot(times, scores, markersize=5, linewidth=1.6, label=name, **style)
        for time_, score, count in zip(times, scores, steps):
            if number == 0 or count == ALL_STEPS:  # the other dots stand above those of the best
                place = {"textcoords": "offset points", "xytext": (0, 7 if number else -13), "ha": "center"}
                axes.annotate(f"{count:,}", (time_, score), fontsize=8, color=style["color"], **place)
    axes.set(
        xscale="log", yscale="log", xlabel="seconds for 16 images", ylabel=f"FID of {options.long_images:,} images"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter("")
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Quality against time (lower left is better); small numbers are steps", loc="left", fontsize=11)
    if axes.lines:
        axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="best first")
    figure.savefig(path, dpi=120)


def _points(lines: list[dict], name: str) -> list[tuple[float, float, int]]:
    return [(line["seconds"], line["fid_long"], line["steps"]) for line in lines if line["sampler"] == name]


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    parser.add_argument("--dataset", required=True, help="what it was trained on, as for train.py")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--long-images", type=int, default=500)
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="of a class-conditional model; 1 is off")
    parser.add_argument("--guidance-interval", type=interval, metavar="LOW,HIGH", help="timesteps with guidance")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), metavar="NAME")
    parser.add_argument("--steps", nargs="+", type=int, help="only these numbers of steps")
    parser.add_argument("--features", default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/samplers.jsonl"))
    parser.add_argument("--plot", type=Path, help="a picture of quality against time")
    parser.add_argument("--times-again", action="store_true", help="take the seconds of the lines that are there anew")
    parser.add_argument("--no-peers", action="store_true", help="leave out the original's loop and diffusers' pipeline")
    options = parser.parse_args(argv)

    if not math.isfinite(options.guidance_scale):
        raise UserError(f"--guidance-scale is {options.guidance_scale}; it must be a finite number.")
    if options.plot and not options.plot.absolute().parent.is_dir():
        raise UserError(f"--plot {options.plot}: there is no folder {options.plot.parent}.")
    device = best_device()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}", flush=True)
    pipeline = load_pipeline(options.model, dtype=best_dtype(device), device=device)
    if pipeline.num_classes is None and options.guidance_scale != 1:
        raise UserError("the model has no classes to guide towards; use --guidance-scale 1.")
    config = pipeline.unet.config
    mode = "L" if config.in_channels == 1 else "RGB"
    _, test = open_data(
        [Source(options.dataset)], sample_size=config.sample_size, image_mode=mode, validation_images=10_000
    )
    if test is None:
        raise UserError(f"data set {options.dataset!r} has no images to compare with.")
    reference = image_set(test)
    extractor = load_features(options.features, reference.shape, device)
    real = extractor(reference.images).features
    for count, what in ((min(options.num_images, options.long_images), "generated"), (len(real), "reference")):
        refuse_too_few(count, real.shape[1], what, extractor.name)

    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.touch()
    lines = [json.loads(line) for line in options.output.read_text().splitlines()]
    of = {
        "model": model_hash(pipeline),
        "reference": test.fingerprint,
        "features": extractor.name,
        "images": [options.num_images, options.long_images],
        "guidance": options.guidance_scale,
        **({"interval": list(options.guidance_interval)} if options.guidance_interval else {}),
    }
    if any(line["of"] != of for line in lines):
        raise UserError(f"{options.output} is of another model, data set, features, number of images or guidance.")
    done = {(line["sampler"], line["steps"]) for line in lines}
    for name in options.samplers:
        for steps in SAMPLERS[name][2]:
            if (name, steps) in done or (options.steps and steps not in options.steps):
                continue
            lines.append({**measure(pipeline, name, steps, options, extractor, real), "of": of})
            with options.output.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    if options.times_again:
        for line in tqdm(lines, desc="times", leave=False):
            sampler = with_scheduler(pipeline, line["sampler"])
            line["seconds"], _ = seconds(sampler, line["steps"], options.guidance_scale, options.guidance_interval)
        write_whole(options.output, lambda path: path.write_text("".join(f"{json.dumps(line)}\n" for line in lines)))
    print_table(lines, options)
    if options.plot:
        draw(lines, options.plot, options)
    enough = {line["steps"] for line in lines} >= {ALL_STEPS} and any(line["steps"] <= FEW_STEPS for line in lines)
    if enough and not options.no_peers:
        compare(pipeline, lines, options)


if __name__ == "__main__":
    sys.exit(run_command(main))
