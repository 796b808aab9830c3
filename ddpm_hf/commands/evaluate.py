"""``python -m ddpm_hf evaluate``: scores of a model, or of images, beside those of real images."""

import shlex
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm_hf.commands.options import (
    add_loading,
    add_sampling,
    add_seed,
    chosen_sampling,
    dtype,
    load,
    output_file,
    whole_number,
)
from ddpm_hf.errors import UserError, echo
from ddpm_hf.evaluation.report_schema import WEIGHTS_DIGEST
from ddpm_hf.files import write_whole
from ddpm_hf.ownership import is_evaluation
from ddpm_hf.run import RunFolder, weights_digest

OF_GENERATING = (
    "num_images",
    "scheduler",
    "steps",
    "seed",
    "guidance_scale",
    "guidance_interval",
    "batch_size",
    "dtype",
    "weights",
    "revision",
)
SIDES = ("height", "width")
SHOWN_IMAGES, MOST_COLUMNS = 100, 20


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
    parser.add_argument("--reference-images", type=whole_number(1), default=10_000, help="at most (default 10000)")
    parser.add_argument("--num-images", type=whole_number(1), default=10_000, help="images to generate (default 10000)")
    parser.add_argument("--features", default="auto", help="fashion-mnist, inception, a folder or file (default auto)")
    parser.add_argument("--inception-weights", help="file of them, where they cannot be fetched")
    parser.add_argument("--weights", help="of a run: raw, or the decay of one of its averages (default its first)")
    add_sampling(parser)
    add_seed(parser, "image i gets the seed SEED + i")
    add_loading(parser)
    parser.add_argument("--no-figures", action="store_true", help="write the report alone")
    parser.add_argument("--output", required=True, help="FILE.json; FILE-samples.png and FILE-neighbours.png beside it")
    parser.set_defaults(run=run)


def run(arguments):
    output = output_file(arguments, (".json",))
    taken = [] if arguments.no_figures or is_evaluation(output) else [f for f in _figures_of(output) if f.exists()]
    if taken:
        raise UserError(f"--output {output}: {taken[0]} exists, and it is of no evaluation; choose another name.")

    from ddpm_hf.devices import processes
    from ddpm_hf.evaluation.evaluate import evaluate

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
    for line in str(report).splitlines():
        echo(line)
    write_whole(output, lambda path: path.write_text(report.as_json()))
    if not arguments.no_figures:
        _write_figures(output, judged, report)
    echo(f"wrote {output}")


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
            f"{path} has a label {last}; the real images have {real.num_classes} classes, so labels are in "
            f"[0, {real.num_classes - 1}]."
        )
    extractor = _extractor(arguments, images.shape, path.name, real)
    return Judged(images, real, extractor, {"images": path.name}, real.label_names, real.num_classes)


def _generated(arguments) -> Judged:
    from ddpm_hf.devices import processes
    from ddpm_hf.evaluation.scores import refuse_too_few
    from ddpm_hf.image_sets import generated_images
    from ddpm_hf.sampling import interval_text, with_sampler

    pipeline, digest = _pipeline(arguments, processes().device)
    run = run_config(arguments.model)
    unet = pipeline.unet.config
    if not isinstance(unet.sample_size, int):
        raise UserError(f"model {arguments.model} makes images of {unet.sample_size}; square ones can be judged.")
    sampling = chosen_sampling(pipeline, arguments)
    real = _real(arguments, run, unet.sample_size, unet.in_channels)
    _fit_output(pipeline, real, arguments)
    sampler = with_sampler(pipeline, sampling.sampler)
    shape = (unet.out_channels, *(pipeline.config.get(f"output_{side}") or unet.sample_size for side in SIDES))
    # before the images are made, which can take hours: all that could go wrong afterwards
    extractor = _extractor(arguments, shape, "generated images", real)
    refuse_too_few(arguments.num_images, extractor.num_features(shape), "generated", extractor.name)

    images = generated_images(
        sampler,
        arguments.num_images,
        seed=arguments.seed,
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        guidance_interval=sampling.guidance_interval,
        batch_size=arguments.batch_size,
    )
    protocol = {
        "images": "generated, classes in turn" if images.labels is not None else "generated",
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "seed": arguments.seed,
        "guidance_scale": sampling.guidance_scale,
        **({"guidance_interval": interval_text(interval)} if (interval := sampling.guidance_interval) else {}),
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "weights": _weights(arguments, run, pipeline),
        **({WEIGHTS_DIGEST: digest} if digest else {}),
    }
    names = pipeline.config.get("id2label")
    same = pipeline.num_classes == real.num_classes
    names = [names[str(i)] for i in range(len(names))] if names else real.label_names if same else None
    return Judged(images, real, extractor, protocol, names, pipeline.num_classes)


def _pipeline(arguments, device):
    """The pipeline, and what tells its weights from others, by which a push knows its report."""
    if arguments.weights is None:
        pipeline = load(arguments, device)
        origin = pipeline.unet.config.get("_name_or_path")  # the folder that it was read from
        return pipeline, weights_digest(Path(origin)) if origin else None
    from ddpm_hf.hub import export_pipeline
    from ddpm_hf.training import load_weights_of

    pipeline = load_weights_of(arguments.model, arguments.weights)
    with tempfile.TemporaryDirectory() as folder:
        digest = weights_digest(export_pipeline(Path(folder) / "pipeline", pipeline) / "unet")  # as export writes them
    return pipeline.to(device, dtype(arguments, device)), digest


def _extractor(arguments, shape: tuple[int, int, int], what: str, real: Real):
    """The features that were asked for, when all images are known to go together."""
    from ddpm_hf.devices import processes
    from ddpm_hf.evaluation.evaluate import refuse_other_shapes
    from ddpm_hf.evaluation.features import load_features
    from ddpm_hf.evaluation.scores import refuse_too_few

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
            f"model {arguments.model} makes images of {size}x{size}, the real ones are {sides[0]}x{sides[1]}; use "
            f"--resize pad if it was trained on padded images, or --resize crop if on scaled ones."
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
    """The settings of the run that ``model`` is the folder of, or None; those unknown to this version are ignored."""
    from ddpm_hf.config import known_settings

    run = RunFolder(model)
    if not run.config.is_file():
        return None
    try:
        config, unknown = known_settings(run.settings())
    except (ValueError, TypeError):
        raise UserError(f"{run.config} is not the config.yaml of a run.") from None
    if unknown:
        echo(f"note: {run.config} has settings that this version does not know: {', '.join(unknown)}", error=True)
    return config


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
        sources = config.sources
        # those of how images are fitted; what is validated on is chosen here
        shared = {*config.data_settings} - {*settings, "max_memory_gb", "validation_split", "validation_images"}
        settings |= {name: config.data_settings[name] for name in shared}
        if arguments.dataset is not None:
            sources = [replace(sources[0], dataset=arguments.dataset)]
    if arguments.resize:
        settings |= {"resize": arguments.resize, "random_crop": False}
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
            value = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", *([] if value == "True" else [_name(value)])]
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
    for path, figure in zip(_figures_of(output), (grid, neighbours)):
        write_whole(path, figure.save)


def _figures_of(output: Path) -> list[Path]:
    """The figures beside a report: samples and neighbours."""
    return [output.with_name(f"{output.stem}-{name}.png") for name in ("samples", "neighbours")]
