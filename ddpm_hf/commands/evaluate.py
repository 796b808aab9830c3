"""``python -m ddpm_hf evaluate``: scores of a model, or of images, beside those of real images."""

import shlex
from pathlib import Path

from ddpm_hf.errors import UserError
from ddpm_hf.files import write_whole

FEWEST_IMAGES = 2


def add_parser(commands):
    parser = commands.add_parser(
        "evaluate",
        help="score a model or images",
        description="Score generated images against real ones: FID, KID, precision and recall, inception score, label "
        "accuracy, and copies of training images. Several processes share the work: accelerate launch -m ddpm_hf ...",
    )
    parser.add_argument("model", help="pipeline (folder or Hub id), output_dir of a run, or folder or .npz of images")
    parser.add_argument("--dataset", help="the real images, as for train.py (of a run: default its own)")
    parser.add_argument("--split", default="train", help="split that was trained on (default train)")
    parser.add_argument(
        "--reference-split", default="auto", help="split to compare with; train: halves of it (default its test split)"
    )
    parser.add_argument("--reference-images", type=int, default=10_000, help="of that split, at most (default 10000)")
    parser.add_argument("--num-images", type=int, default=10_000, help="images to generate (default 10000)")
    parser.add_argument("--features", default="auto", help="fashion-mnist, inception, a folder or file (default auto)")
    parser.add_argument("--inception-weights", help="file of them, where they cannot be fetched")
    parser.add_argument("--weights", help="of a run: raw, or the decay of one of its averages (default its first)")
    parser.add_argument("--scheduler", help="sampler (default the one of sample)")
    parser.add_argument("--steps", type=int, help="denoising steps (default that of sample)")
    parser.add_argument("--seed", type=int, default=0, help="image i gets the seed SEED + i (default 0)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="classifier-free guidance; 1 is off")
    parser.add_argument("--batch-size", type=int, default=64, help="images made at once (default 64)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="network's precision")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--no-figures", action="store_true", help="write the report alone")
    parser.add_argument("--output", required=True, help="FILE.json; FILE-samples.png and FILE-neighbours.png beside it")
    parser.set_defaults(run=run)


def run(arguments):
    output = Path(arguments.output)
    if output.suffix != ".json" or output.is_dir():
        raise UserError(f"--output {output} must be a file that ends in .json.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}.")
    if min(arguments.num_images, arguments.reference_images) < FEWEST_IMAGES:
        raise UserError(f"--num-images and --reference-images must be at least {FEWEST_IMAGES}.")
    if arguments.batch_size < 1:
        raise UserError("--batch-size must be at least 1.")

    from accelerate import PartialState

    from ddpm_hf.evaluation import evaluate, refuse_other_shapes
    from ddpm_hf.features import load_features

    state = PartialState()
    images, train, reference, protocol = _images_of_files(arguments) if _is_images(arguments) else _generated(arguments)
    refuse_other_shapes(images, train, reference, protocol["images"])
    extractor = load_features(arguments.features, images.shape, state.device, arguments.inception_weights)
    report = evaluate(images, train, reference, extractor, {**protocol, "command": _command(arguments)})
    if not state.is_main_process:
        return
    print(report)
    if not arguments.no_figures:
        _write_figures(output, images, report)
    write_whole(output, lambda path: path.write_text(report.as_json()))
    print(f"wrote {output}")


# ---- the images


def _is_images(arguments) -> bool:
    path = Path(arguments.model)
    known = ("model_index.json", "pipeline", "checkpoints", "config.yaml")
    return path.suffix == ".npz" or (path.is_dir() and not any((path / name).exists() for name in known))


def _images_of_files(arguments):
    from ddpm_hf.evaluation import read_images

    path = Path(arguments.model)
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    images = read_images(path)
    train, reference, names, told = _real(arguments, None, max(images.shape[1:]), images.shape[0])
    if path.is_dir() and names:
        images = read_images(path, names)
    return images, train, reference, {"images": path.name, **told}


def _generated(arguments):
    import torch
    from accelerate import PartialState

    from ddpm_hf.devices import best_dtype
    from ddpm_hf.evaluation import generated_images
    from ddpm_hf.hub import load_pipeline
    from ddpm_hf.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS
    from ddpm_hf.sampling import with_sampler

    device = PartialState().device
    dtype = best_dtype(device) if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    if arguments.weights is None:
        pipeline = load_pipeline(arguments.model, revision=arguments.revision, dtype=dtype, device=device)
    else:
        from ddpm_hf.training import load_weights_of

        pipeline = load_weights_of(arguments.model, arguments.weights).to(device, dtype)
    config = pipeline.unet.config
    run = _run_config(arguments.model)
    train, reference, _, told = _real(arguments, run, config.sample_size, config.in_channels)
    sampler, steps = arguments.scheduler or DEFAULT_SAMPLER, arguments.steps or DEFAULT_STEPS
    images = generated_images(
        with_sampler(pipeline, sampler),
        arguments.num_images,
        seed=arguments.seed,
        steps=steps,
        guidance_scale=arguments.guidance_scale,
        batch_size=arguments.batch_size,
    )
    how = {
        "images": "generated, classes in turn" if images.labels is not None else "generated",
        "sampler": sampler,
        "steps": steps,
        "seed": arguments.seed,
        "guidance_scale": arguments.guidance_scale,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": _weights(arguments, run),
    }
    return images, train, reference, {**how, **told}


def _weights(arguments, run) -> str:
    """Which weights are judged: trained ones, or which average of them."""
    if arguments.weights is None and run is None:
        return "as exported"
    decay = arguments.weights or run.ema_max_decays[0]
    return "raw" if decay in ("raw", 0) else f"average, largest decay {decay}"


def _run_config(model: str):
    """The settings of the run that ``model`` is the folder of, or None."""
    import yaml

    from ddpm_hf.config import TrainConfig

    file = Path(model) / "config.yaml"
    if not file.is_file():
        return None
    try:
        return TrainConfig(**yaml.safe_load(file.read_text()))
    except (ValueError, TypeError, yaml.YAMLError):
        raise UserError(f"{file} is not the config.yaml of a run.") from None


def _real(arguments, config, size: int, channels: int):
    """Training images, reference images or None, class names, and what to say of them."""
    from ddpm_hf.data import Source, open_data
    from ddpm_hf.evaluation import image_set

    if arguments.dataset is None and config is None:
        raise UserError("--dataset is missing: the real images to compare with, as for train.py.")
    own = arguments.dataset is None
    settings = {"sample_size": size, "image_mode": "L" if channels == 1 else "RGB"}
    if own:
        sources = [Source(**source.model_dump()) for source in config.sources]
        settings |= {name: getattr(config, name) for name in ("resize", "on_bad_image", "max_images", "seed")}
    else:
        sources = [Source(arguments.dataset, split=arguments.split)]
    halves = arguments.reference_split in {"train", arguments.split}
    train, reference = open_data(
        sources,
        **settings,
        validation_split=None if halves else arguments.reference_split,
        validation_images=arguments.reference_images,
    )
    told = {
        "dataset": ", ".join(train.source_names),
        "split": sources[0].split,
        "reference_split": "halves of it" if reference is None else arguments.reference_split,
        "resizing": f"real images as for training at {size}x{size}, then cut or scaled to what is generated",
    }
    return image_set(train), None if reference is None else image_set(reference), train.label_names, told


def _command(arguments) -> str:
    """The command that does it again, without the names of this machine's folders."""
    skipped = {"run", "model", "output", "no_figures"}
    words = ["python", "-m", "ddpm_hf", "evaluate", _name(arguments.model)]
    for name, value in vars(arguments).items():
        if name not in skipped and value is not None:
            words += [f"--{name.replace('_', '-')}", _name(str(value)) if name == "dataset" else str(value)]
    return shlex.join([*words, "--output", Path(arguments.output).name])


def _name(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() else path


# ---- figures


def _write_figures(output: Path, images, report):
    from ddpm_hf.figures import draw_neighbours, make_grid, to_pil

    chosen = images.take(slice(0, 100))
    classes = len(set(chosen.labels.tolist())) if chosen.labels is not None else 0
    columns = classes if classes and len(chosen) % classes == 0 else None
    grid = make_grid(to_pil(chosen.images), columns)
    neighbours = draw_neighbours(report.neighbours)
    for name, figure in (("samples", grid), ("neighbours", neighbours)):
        write_whole(output.with_name(f"{output.stem}-{name}.png"), figure.save)
