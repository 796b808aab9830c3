"""``python -m ddpm_hf sample``: pictures of a model, as a grid, a film or arrays."""

from pathlib import Path

from ddpm_hf.commands.options import (
    add_loading,
    add_sampling,
    add_seed,
    chosen_sampling,
    load,
    output_file,
    whole_number,
)
from ddpm_hf.errors import UserError, echo, one_line
from ddpm_hf.files import write_whole
from ddpm_hf.reading import read_text

LARGEST_FILE = 2**20  # bytes of prompts
FILMS = (".gif", ".webp", ".mp4")


def add_parser(commands):
    parser = commands.add_parser("sample", help="generate pictures", description="Generate pictures.")
    parser.add_argument("model", nargs="?", help="folder or Hub id of a pipeline; the embedded model when left out")
    parser.add_argument(
        "--num-images", type=whole_number(1), help="number of pictures (default 16, or one for each of several prompts)"
    )
    add_sampling(parser)
    add_seed(parser, "picture i gets the seed SEED + i")
    parser.add_argument("--labels", help="classes by name or number, 'Bag' or '0,3,Bag'; taken in turn")
    parser.add_argument("--prompt", action="append", help="what the pictures are to show; several are taken in turn")
    parser.add_argument("--prompts-file", help="file with a prompt in each line", metavar="FILE")
    parser.add_argument("--negative-prompt", help="what the pictures are to be unlike")
    add_loading(parser)
    parser.add_argument(
        "--output", required=True, help=".png: a grid; .gif, .webp, .mp4: the denoising; .npz: arrays images and labels"
    )
    parser.set_defaults(run=run)


def run(arguments):
    output = output_file(arguments, (".png", *FILMS, ".npz"))
    prompts = _prompts(arguments)

    from ddpm_hf.devices import best_device
    from ddpm_hf.sampling import ANIMATION_FRAMES, checked_prompts, generate, labels_by_name, with_sampler

    pipeline = load(arguments, best_device())
    labels = labels_by_name(pipeline, arguments.labels)
    prompts = checked_prompts(pipeline, prompts)
    checked_prompts(pipeline, [arguments.negative_prompt] * bool(arguments.negative_prompt), "--negative-prompt")
    if arguments.num_images is None:
        arguments.num_images = len(prompts) if len(prompts) > 1 else 16
    sampling = chosen_sampling(pipeline, arguments)
    result = generate(
        with_sampler(pipeline, sampling.sampler),
        arguments.num_images,
        labels=labels,
        prompts=prompts,
        negative_prompt=arguments.negative_prompt,
        guidance_scale=sampling.guidance_scale,
        guidance_interval=sampling.guidance_interval,
        steps=sampling.steps,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        num_frames=ANIMATION_FRAMES if output.suffix in FILMS else 0,
    )
    note = _note(arguments, pipeline, labels, prompts)
    write_whole(output, lambda path: _write(result, path, note))
    echo(f"wrote {output}: {arguments.num_images} pictures, seeds {arguments.seed} and up")


def _prompts(arguments) -> list[str]:
    """Those of the command line, then those of the file.

    Raises:
        UserError: if there is no such file, it has none, or a negative prompt stands alone.
    """
    prompts = list(arguments.prompt or ())
    if arguments.prompts_file is not None:
        try:
            lines = read_text(Path(arguments.prompts_file), LARGEST_FILE).splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"--prompts-file {arguments.prompts_file} cannot be read: {one_line(error)}") from None
        prompts += [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UserError(f"--prompts-file {arguments.prompts_file} has no prompt: write one in each line.")
    if arguments.negative_prompt is not None and not prompts:
        raise UserError("--negative-prompt goes with --prompt: give one.")
    return prompts


def _write(result, path: Path, note: dict | None):
    import numpy as np

    from ddpm_hf.figures import save_animation, save_png

    if path.suffix == ".npz":
        np.savez_compressed(path, **result.arrays())
    elif path.suffix == ".png":
        save_png(result.grid(), path, note)
    else:
        save_animation(result.animation(), path, path.suffix)


def _note(arguments, pipeline, labels: list[int] | None, prompts: list[str]) -> dict | None:
    """The settings that the picture holds; None where the Space, which reads them, has no such thing."""
    from ddpm_hf.hub import public_name
    from ddpm_hf.sampling import class_names, settings_note

    if (labels is not None and len(labels) > 1) or len(prompts) > 1 or arguments.negative_prompt:
        return None
    name = "any" if labels is None else class_names(pipeline)[labels[0]]
    guidance = (arguments.guidance_scale, arguments.guidance_interval)
    rest = (*guidance, arguments.scheduler, arguments.steps, arguments.seed)
    return settings_note(public_name(arguments.model), arguments.num_images, name, *rest, *prompts)
