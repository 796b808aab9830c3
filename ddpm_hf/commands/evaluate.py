"""``python -m ddpm_hf evaluate``: scores of a model, or of images, beside those of real images."""

import shlex
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm_hf.commands.outputs import refuse_unwritable
from ddpm_hf.errors import UserError
from ddpm_hf.files import write_whole
from ddpm_hf.hub.evaluations import DIGEST, weights_digest

OF_GENERATING = (
    "num_images",
    "scheduler",
    "steps",
    "seed",
    "guidance_scale",
    "batch_size",
    "dtype",
    "weights",
    "revision",
)
SIDES = ("height", "width")
SHOWN_IMAGES, MOST_COLUMNS = 100, 20
LARGEST_SEED = 2**32 - 1


def add_parser(commands):
    parser = commands.add_parser(
        "evaluate",
        help="score a model or images",
        description="Score generated images against real ones: FID, KID, precision and recall, inception score, label "
        "accuracy, and copies of training images. Several processes share the work: accelerate launch -m ddpm_hf ...",
    )
    parser.add_argument("model", help="pipeline (folder or Hub id), output_dir of a run, or folder or .npz of images")
    parser.add_argument("--dataset", help="the real images, as for train.py (of a run: default its own)")
    parser.add_argument("--on-bad-image", choices=("error", "skip"), help="what an unreadable real image does")
    parser.add_argument("--split", default="train", help="split that was trained on (default train)")
    parser.add_argument(
        "--reference-split",
        default="auto",
        help="split to compare with; train: one half of it (default its test split)",
    )
    parser.add_argument(
        "--resize",
        choices=("auto", "pad", "crop", "area"),
        help="how real images fit, as for train.py (of a run: its own)",
    )
    parser.add_argument("--reference-images", type=int, default=10_000, help="of that split, at most (default 10000)")
    parser.add_argument("--num-images", type=int, default=10_000, help="images to generate (default 10000)")
    parser.add_argument("--features", default="auto", help="fashion-mnist, inception, a folder or file (default auto)")
    parser.add_argument("--inception-weights", help="file of them, where they cannot be fetched")
    parser.add_argument("--weights", help="of a run: raw, or the decay of one of its averages (default its first)")
    parser.add_argument("--scheduler", help="sampler (default the one of sample)")
    parser.add_argument("--steps", type=int, help="denoising steps (default that of sample)")
    parser.add_argument("--seed", type=int, default=0, help="image i gets the seed SEED + i (default 0)")
    parser.add_argument(
        "--guidance-scale", type=float, help="classifier-free guidance; 1 is off (default that of sample)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images made at once (default 64)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="network's precision")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a foreign model brings")
    parser.add_argument("--no-figures", action="store_true", help="write the report alone")
    parser.add_argument("--output", required=True, help="FILE.json; FILE-samples.png and FILE-neighbours.png beside it")
    parser.set_defaults(run=run)


def run(arguments):
    output = Path(arguments.output)
    if output.suffix != ".json":
        raise UserError(f"--output {output} must be a file that ends in .json.")
    refuse_unwritable(output)
    if arguments.num_images < 1 or arguments.reference_images < 1 or arguments.batch_size < 1:
        raise UserError("--num-images, --reference-images and --batch-size must be at least 1.")
    if not 0 <= arguments.seed <= LARGEST_SEED:
        raise UserError(f"--seed must lie in [0, {LARGEST_SEED}], got {arguments.seed}.")

    from ddpm_hf.devices import processes
    from ddpm_hf.evaluation import evaluate

    state = processes()
    judged = _given(arguments) if _is_images(arguments) else _generated(arguments)
    report = evaluate(
        judged.images,
        *judged.real.sets,
        judged.extractor,
        {**judged.protocol, **judged.real.protocol, "command": _command(arguments)},
        label_names=judged.label_names,
        num_classes=judged.num_classes,
        mirrored=judged.real.mirrored,
    )
    if not state.is_main_process:
        return
    print(report)
    write_whole(output, lambda path: path.write_text(report.as_json()))
    if not arguments.no_figures:
        _write_figures(output, judged, report)
    print(f"wrote {output}")


# ---- what is judged


@dataclass(frozen=True)
class Real:
    """Real images: (training images, reference or None), what to say of them, and their classes."""

    sets: tuple
    protocol: dict
    label_names: list[str] | None
    num_classes: int | None
    mirrored: bool


@dataclass(frozen=True)
class Judged:
    """Images, the real ones they are compared with, the extractor, and what to say of the images."""

    images: object
    real: Real
    extractor: object
    protocol: dict
    label_names: list[str] | None
    num_classes: int | None


def _is_images(arguments) -> bool:
    path = Path(arguments.model)
    known = ("model_index.json", "pipeline", "checkpoints", "config.yaml")
    return path.suffix == ".npz" or (path.is_dir() and not any((path / name).exists() for name in known))


def _given(arguments) -> Judged:
    from ddpm_hf.image_sets import read_images

    path = Path(arguments.model)
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    images = read_images(path)
    real = _real(arguments, None, max(images.shape[1:]), images.shape[0])
    if path.is_dir() and real.label_names:
        images = read_images(path, real.label_names)
    last = None if images.labels is None else images.labels.max().item()
    if last is not None and real.num_classes and last >= real.num_classes:
        raise UserError(
            f"{path} has a label {last}; the real images have {real.num_classes} classes, labels in "
            f"[0, {real.num_classes - 1}] would be right."
        )
    extractor = _extractor(arguments, images.shape, path.name, real)
    return Judged(images, real, extractor, {"images": path.name}, real.label_names, real.num_classes)


def _generated(arguments) -> Judged:
    import torch

    from ddpm_hf.devices import best_dtype, processes
    from ddpm_hf.image_sets import generated_images
    from ddpm_hf.metrics import refuse_too_few
    from ddpm_hf.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS
    from ddpm_hf.sampling import checked_guidance, with_sampler

    device = processes().device
    dtype = best_dtype(device) if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    pipeline, digest = _pipeline(arguments, dtype, device)
    run = run_config(arguments.model)
    unet = pipeline.unet.config
    if not isinstance(unet.sample_size, int):
        raise UserError(f"model {arguments.model} makes images of {unet.sample_size}; square ones can be judged.")
    arguments.guidance_scale = checked_guidance(pipeline, arguments.guidance_scale)
    sampler = arguments.scheduler = arguments.scheduler or DEFAULT_SAMPLER
    real = _real(arguments, run, unet.sample_size, unet.in_channels)
    _fit_output(pipeline, real, arguments)
    sampling = with_sampler(pipeline, sampler)
    shape = (unet.out_channels, *(pipeline.config.get(f"output_{side}") or unet.sample_size for side in SIDES))
    # before the images are made, which can take hours: all that could go wrong afterwards
    extractor = _extractor(arguments, shape, "generated images", real)
    refuse_too_few(arguments.num_images, extractor.num_features(shape), "generated", extractor.name)

    steps = arguments.steps = DEFAULT_STEPS if arguments.steps is None else arguments.steps
    images = generated_images(
        sampling,
        arguments.num_images,
        seed=arguments.seed,
        steps=steps,
        guidance_scale=arguments.guidance_scale,
        batch_size=arguments.batch_size,
    )
    protocol = {
        "images": "generated, classes in turn" if images.labels is not None else "generated",
        "sampler": sampler,
        "steps": steps,
        "seed": arguments.seed,
        "guidance_scale": arguments.guidance_scale,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": _weights(arguments, run, pipeline),
        **({DIGEST: digest} if digest else {}),
    }
    names = pipeline.config.get("id2label")
    same = pipeline.num_classes == real.num_classes
    names = [names[str(i)] for i in range(len(names))] if names else real.label_names if same else None
    return Judged(images, real, extractor, protocol, names, pipeline.num_classes)


def _pipeline(arguments, dtype, device):
    """The pipeline, and what tells its weights from others, by which a push knows its report."""
    if arguments.weights is None:
        from ddpm_hf.hub import load_allowed

        trust = arguments.trust_remote_code
        pipeline = load_allowed(
            arguments.model, revision=arguments.revision, trust_remote_code=trust, dtype=dtype, device=device
        )
        origin = pipeline.unet.config.get("_name_or_path")  # the folder that it was read from
        return pipeline, weights_digest(Path(origin)) if origin else None
    from ddpm_hf.hub import export_pipeline
    from ddpm_hf.training import load_weights_of

    pipeline = load_weights_of(arguments.model, arguments.weights)
    with tempfile.TemporaryDirectory() as folder:
        digest = weights_digest(export_pipeline(Path(folder) / "pipeline", pipeline) / "unet")  # as export writes them
    return pipeline.to(device, dtype), digest


def _extractor(arguments, shape: tuple[int, int, int], what: str, real: Real):
    """The features that were asked for, when all images are known to go together."""
    from ddpm_hf.devices import processes
    from ddpm_hf.evaluation import refuse_other_shapes
    from ddpm_hf.features import load_features
    from ddpm_hf.metrics import refuse_too_few

    refuse_other_shapes(shape, *real.sets, what)
    extractor = load_features(
        arguments.features,
        shape,
        processes().device,
        weights=arguments.inception_weights,
        label_names=real.label_names,
    )
    num_features = extractor.num_features(shape)
    train, reference = real.sets
    counts = (len(train), len(reference)) if reference is not None else (len(train) // 2, len(train) // 2)
    for count, name in zip(counts, ("training", "reference")):
        refuse_too_few(count, num_features, name, extractor.name)
    return extractor


def _fit_output(pipeline, real: Real, arguments):
    """Let a model that knows no size but its network's, one of diffusers' own, cut off what was padded."""
    size, sides = pipeline.unet.config.sample_size, real.sets[0].shape[1:]
    if sides == (size, size) or any(pipeline.config.get(f"output_{side}") for side in SIDES):
        return
    if arguments.resize != "pad":
        raise UserError(
            f"model {arguments.model} makes images of {size}x{size}, the real ones are {sides[0]}x{sides[1]}: --resize "
            f"pad, if it was trained on padded ones, or --resize crop, on scaled ones, would be right."
        )
    pipeline.register_to_config(output_height=sides[0], output_width=sides[1])


def _weights(arguments, run, pipeline) -> str:
    """Which weights are judged: trained ones, or which average of them."""
    from ddpm_hf.hub import weights_name

    if arguments.weights is None and (told := getattr(pipeline, "weights", None)):
        return told
    if arguments.weights is None and run is None:
        return "as exported"
    return weights_name(arguments.weights or run.ema_max_decays[0])


def run_config(model: str):
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


# ---- real images


def _real(arguments, config, size: int, channels: int) -> Real:
    """The real images of ``--dataset``, or of the run whose settings ``config`` are, fitted as for training."""
    from ddpm_hf.data import Source, open_data
    from ddpm_hf.image_sets import image_set

    if arguments.dataset is None and config is None:
        raise UserError("--dataset is missing: the real images to compare with, as for train.py.")
    settings = {"sample_size": size, "image_mode": "L" if channels == 1 else "RGB"}
    if config is None:
        sources = [Source(arguments.dataset, split=arguments.split)]
    else:
        sources = [Source(**source.model_dump()) for source in config.sources]
        settings |= {name: getattr(config, name) for name in ("resize", "on_bad_image", "max_images", "seed")}
        if arguments.dataset is not None:
            sources = [replace(sources[0], dataset=arguments.dataset)]
    if arguments.resize:
        settings["resize"] = arguments.resize
    if arguments.on_bad_image:
        settings["on_bad_image"] = arguments.on_bad_image
    halves = arguments.reference_split in {source.split for source in sources}
    train, reference = open_data(
        sources,
        **settings,
        **({"validation_split": None} if halves else _reference(arguments, config, sources, settings)),
    )
    names, sets = train.label_names, (image_set(train), None if reference is None else image_set(reference))
    told = {
        "dataset": ", ".join(train.source_names),
        "split": ", ".join(train.splits),
        "reference_split": "one half of it" if reference is None else ", ".join(reference.splits),
        "resizing": _resizing(train, size),
    }
    return Real(sets, told, names, train.num_classes, bool(config and config.horizontal_flip))


def _reference(arguments, config, sources, settings) -> dict:
    """Which images to compare with: those of another split, or the ones that the run did not train on."""
    from ddpm_hf.data import open_data

    split = arguments.reference_split
    if config is None or split != "auto":
        return {"validation_split": split, "validation_images": arguments.reference_images}
    own = {"validation_split": config.validation_split, "validation_images": config.validation_images}
    _, held = open_data(sources, **settings, **own)
    if held is not None and any(name.startswith("held out") for name in held.splits):
        return own  # more of them would be images that it trained on
    return {**own, "validation_images": arguments.reference_images}


def _resizing(data, size: int) -> str:
    height, width = data.output_size
    if data.output_resize:
        return f"real {height}x{width} images averaged to {size}x{size} for the network, its images scaled back"
    if (height, width) != (size, size):
        return f"real {height}x{width} images padded to {size}x{size} for the network, its images cropped back"
    return f"real images scaled and cropped to {size}x{size}, where they have another size"


# ---- what is written


def _command(arguments) -> str:
    """The command that does it again, without the names of this machine's folders."""
    skipped = {"run", "model", "output", "no_figures", *(OF_GENERATING if _is_images(arguments) else ())}
    words = ["python", "-m", "ddpm_hf", "evaluate", _name(arguments.model)]
    for name, value in vars(arguments).items():
        if name not in skipped and value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [_name(str(value))])]
    return shlex.join([*words, "--output", Path(arguments.output).name])


def _name(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() else path


def _write_figures(output: Path, judged: Judged, report):
    from ddpm_hf.figures import draw_neighbours, make_class_grid, make_grid, to_pil

    chosen, names = judged.images.take(slice(0, SHOWN_IMAGES)), judged.label_names
    labels = [] if chosen.labels is None else chosen.labels.tolist()
    count = len(names or ())
    if 0 < count <= min(MOST_COLUMNS, len(labels)) and labels == [(labels[0] + i) % count for i in range(len(labels))]:
        whole = len(labels) // count * count  # rows that are full
        grid = make_class_grid(to_pil(chosen.images[:whole]), [names[label] for label in labels[:count]])
    else:
        grid = make_grid(to_pil(chosen.images))
    neighbours = draw_neighbours(report.neighbours)
    for name, figure in (("samples", grid), ("neighbours", neighbours)):
        write_whole(output.with_name(f"{output.stem}-{name}.png"), figure.save)
