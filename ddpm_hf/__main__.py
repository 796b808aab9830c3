"""The command line: ``python -m ddpm_hf COMMAND``, --help lists them."""

import argparse
import re
import sys
from pathlib import Path

from ddpm_hf.commands import deploy_space, evaluate, noise, push, train_features
from ddpm_hf.commands.outputs import refuse_unwritable
from ddpm_hf.errors import Parser, UserError, run_command
from ddpm_hf.files import write_whole

LARGEST_SEED = 2**32 - 1
PICTURE_SUFFIXES = (".png", ".gif", ".webp", ".mp4", ".npz")


def main(argv: list[str]) -> int:
    """Run a command; 0 when done, 2 for a mistake of the user's, told in one line."""

    def run():
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)

    try:
        return run_command(run)
    except KeyboardInterrupt:
        print("interrupted; the same command does it again.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m ddpm_hf", description="Use a trained model from the command line.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sample = commands.add_parser("sample", help="generate pictures", description="Generate pictures.")
    sample.add_argument("model", nargs="?", help="folder or Hub id of a pipeline; the embedded model when left out")
    sample.add_argument("--num-images", type=int, default=16, help="number of pictures (default 16)")
    sample.add_argument(
        "--scheduler",
        default="dpm-sde",
        help="dpm, dpm-sde, unipc, ddim, euler, heun, ddpm, ddpm-small (default dpm-sde)",
    )
    sample.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    sample.add_argument("--seed", type=int, default=0, help="picture i gets the seed SEED + i (default 0)")
    sample.add_argument("--labels", help="classes by name or number, 'Bag' or '0,3,Bag'; taken in turn")
    sample.add_argument(
        "--guidance-scale",
        type=float,
        help="classifier-free guidance; 1 is off, and twice as fast (default 1.5 where there are classes)",
    )
    sample.add_argument("--batch-size", type=int, default=64, help="pictures made at once (default 64)")
    sample.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="network's precision")
    sample.add_argument("--revision", help="branch, tag or commit of a Hub id")
    sample.add_argument("--trust-remote-code", action="store_true", help="run the code that a foreign model brings")
    sample.add_argument(
        "--output", required=True, help=".png: a grid; .gif, .webp, .mp4: the denoising; .npz: arrays images and labels"
    )
    sample.set_defaults(run=_sample)

    evaluate.add_parser(commands)
    train_features.add_parser(commands)
    noise.add_parser(commands)

    report = commands.add_parser("report", help="draw the losses of a run, and write its page report.html")
    report.add_argument("run_dir", help="output_dir of a training run, which may still be going")
    report.set_defaults(run=_report)

    export = commands.add_parser("export", help="write a model as a folder that loads with diffusers alone")
    export.add_argument("model", help="output_dir of a training run, folder of a pipeline, or Hub id")
    export.add_argument("--output", required=True, help="folder of the pipeline")
    export.add_argument("--weights", help="of a run: raw, or the decay of one of its averages (default its first)")
    export.add_argument("--half", action="store_true", help="store the weights in float16: half the size")
    export.add_argument("--revision", help="branch, tag or commit of a Hub id")
    export.add_argument("--fp16-variant", action="store_true", help='float16 weights too, for variant="fp16"')
    export.add_argument("--max-shard-size", help="split the weights into files of at most so much, such as 15MB")
    export.set_defaults(run=_export)

    push.add_parser(commands)
    deploy_space.add_parser(commands)
    return parser


# ---- sample


def _sample(arguments):
    output = Path(arguments.output)
    if output.suffix not in PICTURE_SUFFIXES:
        raise UserError(f"--output {output} must end in {', '.join(PICTURE_SUFFIXES)}.")
    refuse_unwritable(output)
    if arguments.num_images < 1 or arguments.batch_size < 1:
        raise UserError("--num-images and --batch-size must be at least 1.")
    if not 0 <= arguments.seed <= LARGEST_SEED:
        raise UserError(f"--seed must lie in [0, {LARGEST_SEED}], got {arguments.seed}.")

    import torch

    from ddpm_hf.devices import best_device, best_dtype
    from ddpm_hf.hub import load_allowed
    from ddpm_hf.sampling import ANIMATION_FRAMES, checked_guidance, generate, labels_by_name, with_sampler

    device = best_device()
    dtype = best_dtype(device) if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    pipeline = load_allowed(
        arguments.model,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        dtype=dtype,
        device=device,
    )
    labels = labels_by_name(pipeline, arguments.labels)
    arguments.guidance_scale = checked_guidance(pipeline, arguments.guidance_scale)
    result = generate(
        with_sampler(pipeline, arguments.scheduler),
        arguments.num_images,
        labels=labels,
        guidance_scale=arguments.guidance_scale,
        steps=arguments.steps,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        num_frames=ANIMATION_FRAMES if output.suffix in (".gif", ".webp", ".mp4") else 0,
    )
    note = _note(arguments, pipeline, labels)
    write_whole(output, lambda path: _write_result(result, path, note))
    print(f"wrote {output}: {arguments.num_images} pictures, seeds {arguments.seed} and up")


def _write_result(result, path: Path, note: dict | None):
    import numpy as np

    from ddpm_hf.figures import save_animation, save_png

    if path.suffix == ".npz":
        np.savez_compressed(path, **result.arrays())
    elif path.suffix == ".png":
        save_png(result.grid(), path, note)
    else:
        save_animation(result.animation(), path)


def _note(arguments, pipeline, labels: list[int] | None) -> dict | None:
    """The settings that the picture holds; None where the Space, which reads them, has no such thing."""
    from ddpm_hf.hub import public_name
    from ddpm_hf.sampling import class_names, settings_note

    if labels is not None and len(labels) > 1:
        return None
    name = "any" if labels is None else class_names(pipeline)[labels[0]]
    rest = (arguments.guidance_scale, arguments.scheduler, arguments.steps, arguments.seed)
    return settings_note(public_name(arguments.model), arguments.num_images, name, *rest)


# ---- report


def _report(arguments):
    from ddpm_hf.config import TrainConfig
    from ddpm_hf.report import write_report

    defaults = TrainConfig.model_construct().model_dump(mode="json")
    print(f"wrote {write_report(Path(arguments.run_dir), defaults=defaults)}")


# ---- export and push


def _export(arguments):
    import torch

    from ddpm_hf.hub import as_stock, export_pipeline, load_pipeline, weights_name

    if arguments.weights is None:
        pipeline = load_pipeline(arguments.model, revision=arguments.revision)
    else:
        from ddpm_hf.training import load_weights_of

        pipeline = load_weights_of(arguments.model, arguments.weights)
    run = None if arguments.weights or pipeline.weights else evaluate.run_config(arguments.model)
    if run is not None:
        pipeline.weights = weights_name(run.ema_max_decays[0])
    size = arguments.max_shard_size
    if size is not None and not re.fullmatch(r"[1-9]\d*(KB|MB|GB)", size):
        raise UserError(f"--max-shard-size must be like 15MB, got {size!r}.")
    if arguments.half and arguments.fp16_variant:
        raise UserError("--half stores float16 alone, --fp16-variant beside the weights as they are: give one of both.")
    export_pipeline(
        arguments.output,
        as_stock(pipeline),
        dtype=torch.float16 if arguments.half else None,
        fp16_variant=arguments.fp16_variant,
        max_shard_size=size,
    )
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
