"""``python -m ddpm_hf export``: a model as a folder that loads with diffusers alone."""

import re

from ddpm_hf.commands.options import add_sampling, chosen_sampling
from ddpm_hf.errors import UserError, echo


def add_parser(commands):
    parser = commands.add_parser("export", help="write a model as a folder that loads with diffusers alone")
    parser.add_argument("model", help="output_dir of a training run, folder of a pipeline, or Hub id")
    parser.add_argument("--output", required=True, help="folder of the pipeline")
    parser.add_argument("--weights", help="of a run: raw, or the decay of one of its averages (default its first)")
    add_sampling(parser, "as it is")
    parser.add_argument("--half", action="store_true", help="store the weights in float16: half the size")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--fp16-variant", action="store_true", help='float16 weights too, for variant="fp16"')
    parser.add_argument("--max-shard-size", help="split the weights into files of at most so much, such as 15MB")
    parser.set_defaults(run=run)


def run(arguments):
    size = arguments.max_shard_size
    if size is not None and not re.fullmatch(r"[1-9]\d*(KB|MB|GB)", size):
        raise UserError(f"--max-shard-size must be like 15MB, got {size!r}.")
    if arguments.half and arguments.fp16_variant:
        raise UserError("--half stores float16 alone, --fp16-variant beside the weights as they are: give one of both.")

    import torch

    from ddpm_hf.commands.evaluate import run_config
    from ddpm_hf.hub import as_stock, export_pipeline, load_pipeline, weights_name
    from ddpm_hf.sampling import with_sampling

    if arguments.weights is None:
        pipeline = load_pipeline(arguments.model, revision=arguments.revision)
    else:
        from ddpm_hf.training import load_weights_of

        pipeline = load_weights_of(arguments.model, arguments.weights)
    run = None if arguments.weights or pipeline.weights else run_config(arguments.model)
    if run is not None:
        pipeline.weights = weights_name(run.ema_max_decays[0])
    names = ("scheduler", "steps", "guidance_scale", "guidance_interval")
    if any(getattr(arguments, name) is not None for name in names):
        pipeline = with_sampling(pipeline, chosen_sampling(pipeline, arguments))
    export_pipeline(
        arguments.output,
        as_stock(pipeline),
        dtype=torch.float16 if arguments.half else None,
        fp16_variant=arguments.fp16_variant,
        max_shard_size=size,
    )
    echo(f"wrote {arguments.output}")
