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
from ddpm_hf.errors import echo
from ddpm_hf.files import write_whole

FILMS = (".gif", ".webp", ".mp4")


def add_parser(commands):
    parser = commands.add_parser("sample", help="generate pictures", description="Generate pictures.")
    parser.add_argument("model", nargs="?", help="folder or Hub id of a pipeline; the embedded model when left out")
    parser.add_argument("--num-images", type=whole_number(1), default=16, help="number of pictures (default 16)")
    add_sampling(parser)
    add_seed(parser, "picture i gets the seed SEED + i")
    parser.add_argument("--labels", help="classes by name or number, 'Bag' or '0,3,Bag'; taken in turn")
    add_loading(parser)
    parser.add_argument(
        "--output", required=True, help=".png: a grid; .gif, .webp, .mp4: the denoising; .npz: arrays images and labels"
    )
    parser.set_defaults(run=run)


def run(arguments):
    output = output_file(arguments, (".png", *FILMS, ".npz"))

    from ddpm_hf.devices import best_device
    from ddpm_hf.sampling import ANIMATION_FRAMES, generate, labels_by_name, with_sampler

    pipeline = load(arguments, best_device())
    labels = labels_by_name(pipeline, arguments.labels)
    sampling = chosen_sampling(pipeline, arguments)
    result = generate(
        with_sampler(pipeline, sampling.sampler),
        arguments.num_images,
        labels=labels,
        guidance_scale=sampling.guidance_scale,
        guidance_interval=sampling.guidance_interval,
        steps=sampling.steps,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        num_frames=ANIMATION_FRAMES if output.suffix in FILMS else 0,
    )
    note = _note(arguments, pipeline, labels)
    write_whole(output, lambda path: _write(result, path, note))
    echo(f"wrote {output}: {arguments.num_images} pictures, seeds {arguments.seed} and up")


def _write(result, path: Path, note: dict | None):
    import numpy as np

    from ddpm_hf.figures import save_animation, save_png

    if path.suffix == ".npz":
        np.savez_compressed(path, **result.arrays())
    elif path.suffix == ".png":
        save_png(result.grid(), path, note)
    else:
        save_animation(result.animation(), path, path.suffix)


def _note(arguments, pipeline, labels: list[int] | None) -> dict | None:
    """The settings that the picture holds; None where the Space, which reads them, has no such thing."""
    from ddpm_hf.hub import public_name
    from ddpm_hf.sampling import class_names, settings_note

    if labels is not None and len(labels) > 1:
        return None
    name = "any" if labels is None else class_names(pipeline)[labels[0]]
    guidance = (arguments.guidance_scale, arguments.guidance_interval)
    rest = (*guidance, arguments.scheduler, arguments.steps, arguments.seed)
    return settings_note(public_name(arguments.model), arguments.num_images, name, *rest)
