"""``python -m ddpm_hf noise``: the forward process on real images, and what a model makes of its end."""

from ddpm_hf.commands.options import add_sampling, add_seed, chosen_sampling, output_file, whole_number
from ddpm_hf.errors import UserError, echo
from ddpm_hf.files import write_whole

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the timesteps, as the original shows them


def add_parser(commands):
    parser = commands.add_parser(
        "noise",
        help="show real images noised, and what a model makes of the noise",
        description="A picture of real images, the same at 25, 50, 75 and 100 % of the timesteps, and, with a model, "
        "what it makes of the last row.",
    )
    parser.add_argument("model", nargs="?", help="folder or Hub id of a pipeline; left out: no last row")
    parser.add_argument("--dataset", required=True, help="the real images, as for train.py")
    parser.add_argument("--num-images", type=whole_number(1), default=10, help="images (default 10)")
    parser.add_argument("--on-bad-image", choices=("error", "skip"), default="error", help="skip unreadable images")
    parser.add_argument("--sample-size", type=whole_number(2), default=32, help="pixels, without a model (default 32)")
    add_sampling(parser)  # of the last row
    add_seed(parser, "of the choice of images and the noise")
    parser.add_argument("--output", required=True, help="FILE.png")
    parser.set_defaults(run=run)


def run(arguments):
    output = output_file(arguments, (".png",))

    from ddpm_hf.data import load_images
    from ddpm_hf.figures import cell_scale, make_titled_rows
    from ddpm_hf.hub import load_pipeline
    from ddpm_hf.samplers import make_scheduler
    from ddpm_hf.sampling import class_names
    from ddpm_hf.scheduler import MyDDPMScheduler

    bad = arguments.on_bad_image
    pipeline = None if arguments.model is None else load_pipeline(arguments.model)
    if pipeline is None:
        data = load_images(arguments.dataset, sample_size=arguments.sample_size, on_bad_image=bad)
        scheduler = MyDDPMScheduler()
    else:
        config = pipeline.unet.config
        mode = "L" if config.in_channels == 1 else "RGB"
        if not isinstance(config.sample_size, int):
            raise UserError(f"model {arguments.model} makes images of {config.sample_size}; square ones can be shown.")
        data = load_images(arguments.dataset, sample_size=config.sample_size, image_mode=mode, on_bad_image=bad)
        sampling = chosen_sampling(pipeline, arguments)
        # the training process, whatever sampler the pipeline was saved with
        scheduler = make_scheduler("ddpm", pipeline.scheduler)
    rows, captions = _noised(data, scheduler, arguments), None
    if pipeline is not None:
        rows.append(("final result", _denoised(pipeline, rows[-1][1], sampling, arguments.seed)))
        names = class_names(pipeline)
        captions = [names[i % len(names)] for i in range(len(rows[0][1]))] if names else None
    shown = [(title, _shown(tensor, data.output_size)) for title, tensor in rows]
    picture = make_titled_rows(shown, scale=cell_scale(shown[0][1][0]), captions=captions)
    write_whole(output, picture.save)
    echo(f"wrote {output}")


def _noised(data, scheduler, arguments) -> list[tuple]:
    """(title, images (B, C, S, S) in [-1, 1]) of the originals and the noised ones, all with the same noise."""
    import torch

    generator = torch.Generator().manual_seed(arguments.seed)
    images, _ = data.batch(torch.randperm(len(data), generator=generator)[: arguments.num_images].numpy())
    noise = torch.randn(images.shape, generator=generator)
    rows = [("original", images)]
    for share in SHARES:
        timestep = torch.full((len(images),), max(1, round(share * len(scheduler))) - 1)
        rows.append((f"{100 * share:.0f} % noise", scheduler.add_noise(images, noise, timestep)))
    return rows


def _denoised(pipeline, noise, sampling, seed: int):
    """What the model makes of ``noise`` (B, C, S, S), of its classes in turn."""
    import torch

    from ddpm_hf.sampling import with_sampler

    pipeline = with_sampler(pipeline, sampling.sampler)
    classes = pipeline.num_classes
    labels = None if classes is None else [i % classes for i in range(len(noise))]
    generator = torch.Generator().manual_seed(seed)
    try:
        *_, last = pipeline.denoise(
            len(noise),
            labels,
            sampling.guidance_scale,
            sampling.steps,
            generator,
            latents=noise,
            guidance_interval=sampling.guidance_interval,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return last.sample


def _shown(images, size: tuple[int, int]):
    """PIL images of (B, C, S, S), the padding cut off where there is one."""
    from ddpm_hf.figures import to_pil

    top, left = (max(0, have - want) // 2 for have, want in zip(images.shape[-2:], size))
    images = images[..., top : top + size[0], left : left + size[1]]
    return to_pil(((images + 1) * 127.5).round().clamp(0, 255).byte())
