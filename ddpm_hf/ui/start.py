"""Runs that start at a picture: noised up to a timestep and denoised from there.

Of one picture that gives variations (SDEdit, Meng et al. 2022); with a mask, a part of it made anew (RePaint, Lugmayr
et al. 2022); of two pictures the way from one to the other, spherical in their noise (DDIM, Song et al. 2021).
"""

import io
import math
from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageOps

from ddpm_hf.errors import UserError
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import with_sampler
from ddpm_hf.ui import intake
from ddpm_hf.ui.examples import example_picture
from ddpm_hf.ui.frames import png_url, starting_noise
from ddpm_hf.ui.limits import Settings, Start
from ddpm_hf.ui.models import Model

START = ("t", "image", "example", "mask", "to_image", "to_example")  # of a request, beside those of a generation
KINDS = (("image", "example"), ("to_image", "to_example"))  # of the first picture, and of the second


# ---- from a request, and back


def chosen_picture(model: Model, image) -> Image.Image:
    """A PIL image as it is, ``{"example": i}`` as one of the model's examples, and all else as ``intake`` reads it.

    Raises:
        UserError: if there is no such example, or it is no picture.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, dict) and set(image) == {"example"}:
        return example_picture(model, image["example"])
    return intake.picture(image)


def checked(model: Model, values: dict) -> Settings:
    """Settings from values of any type, those of a start among them; it reads pictures, so call it in a thread.

    Raises:
        UserError: naming the first value that is not allowed, and what is.
    """
    rest = {key: value for key, value in values.items() if key not in (*START, "model")}
    asked = {key: values[key] for key in START if values.get(key) not in (None, "")}
    if {"to_image", "to_example"} & set(asked):
        rest.setdefault("sampler", "ddim")  # the model's own may add noise
    settings = model.limits.check(**rest)
    if not asked:
        return settings
    settings = replace(settings, start=_start(model, settings, asked))
    if settings.start.other and model.limits.classes and settings.label is None:  # the two may be of different classes
        settings = replace(settings, guidance_scale=0.0, guidance_interval=(0, model.timesteps))
    return settings


def _start(model: Model, settings: Settings, asked: dict) -> Start:
    if not {"image", "example"} & set(asked):
        raise UserError("drop in a picture, or pick one.")
    between = {"to_image", "to_example"} & set(asked)
    if between and "mask" in asked:
        raise UserError("give either a mask or a second picture, not both.")
    if between and SAMPLERS[settings.sampler].fresh_noise:
        raise UserError("the way between two pictures needs a sampler without fresh noise, such as ddim.")
    t = model.limits.check_timestep(asked.get("t", model.timesteps - 1 if "mask" in asked else half_way(model)))
    picture = _seen(model, asked.get("image", {"example": asked.get("example")}))
    mask = _mask(model, asked["mask"]) if "mask" in asked else None
    other = _seen(model, asked.get("to_image", {"example": asked.get("to_example")})) if between else None
    number, other_number = (None if key[0] in asked else asked.get(key[1]) for key in KINDS)
    return Start(t, picture, number, mask, other, other_number)


def half_way(model: Model) -> int:
    """The last timestep with more of the picture than of noise."""
    return max(0, int((alphas_cumprod(model) >= 0.5).sum()) - 1)


def _seen(model: Model, image) -> bytes:
    """A picture as the model sees it, at its own size."""
    return _png(model.pipeline.postprocess(to_network(model, chosen_picture(model, image)))[0])


def _mask(model: Model, image) -> bytes:
    mask = ImageOps.fit(chosen_picture(model, image).convert("L"), model.image_size, Image.Resampling.NEAREST)
    mask = mask.point(lambda value: 255 * (value > 127))
    if not mask.getbbox():
        raise UserError("paint over the part of the picture that is to be made anew.")
    return _png(mask)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def start_values(start: Start | None) -> dict:
    """The request that ``start`` came from, as one that means the same everywhere."""
    if start is None:
        return {}
    values = {"t": start.t}
    for (image, example), content, number in zip(
        KINDS, (start.picture, start.other), (start.example, start.other_example)
    ):
        if content is not None:
            values |= {image: png_url(content)} if number is None else {example: number}
    return values | ({} if start.mask is None else {"mask": png_url(start.mask)})


# ---- for the network


def to_network(model: Model, image: Image.Image) -> torch.Tensor:
    """x_0 (1, C, S, S) in [-1, 1] from a picture of any size: scaled and cropped as the model's own pictures are."""
    width, height = model.image_size
    rows, columns = model.network_size
    image = ImageOps.fit(image.convert(model.mode), (width, height), Image.Resampling.LANCZOS)
    if model.pipeline.config.get("output_resize"):
        image = image.resize((columns, rows), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1).permute(2, 0, 1)
    padded = torch.zeros(1, len(pixels), rows, columns, dtype=torch.uint8)
    top, left = (rows - image.height) // 2, (columns - image.width) // 2  # where postprocess cuts
    padded[0, :, top : top + image.height, left : left + image.width] = pixels
    return padded.float() / 127.5 - 1


def from_png(model: Model, content: bytes) -> torch.Tensor:
    return to_network(model, Image.open(io.BytesIO(content)))


def alphas_cumprod(model: Model) -> torch.Tensor:
    """alpha_bar_t (T,) in float64."""
    return torch.cumprod(1 - model.pipeline.scheduler.betas.double().cpu(), dim=0)


def add_noise(model: Model, x_0: torch.Tensor, noise: torch.Tensor, t: int) -> torch.Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon, of the shape of ``noise``."""
    alpha_bar = alphas_cumprod(model)[t].item()
    return alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise


def sampler_of(model: Model, settings: Settings) -> MyDDPMPipeline:
    """The sampler of ``settings``, its timesteps chosen.

    From a picture: that of the process's first t + 1 timesteps, with the share of the steps that falls on them.
    """
    start = settings.start
    pipeline = with_sampler(model.pipeline, settings.sampler, start and start.t + 1)
    steps = settings.steps
    if start:
        steps = min(start.t + 1, max(1, round(steps * (start.t + 1) / model.timesteps)))
    pipeline.scheduler.set_timesteps(steps)
    return pipeline


def noised(model: Model, settings: Settings, labels: Sequence[int] | None) -> Generator[None, None, torch.Tensor]:
    """x_t (B, C, S, S) where a run starts: its picture noised for every seed or, of two, what lies between them.

    The latter are turned into the noise that a sampler without fresh noise makes them of, and it yields after every
    call of the network.
    """
    start = settings.start
    x_0 = from_png(model, start.picture)
    if start.other is None:
        return add_noise(model, x_0, starting_noise(model.pipeline, settings.seeds), start.t)
    first, second = yield from _inverted(model, settings, labels, torch.cat([x_0, from_png(model, start.other)]))
    shares = torch.linspace(0, 1, settings.num_images).tolist()
    return torch.stack([spherical(first, second, share) for share in shares])


def _inverted(model: Model, settings: Settings, labels, x: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    """x_t (B, C, S, S) of the pictures x_0, from which DDIM leads back to them: its steps taken backwards.

    Each takes the noise that the network sees in x at its lower timestep (Song et al. 2021, section 4.3); the first
    starts at sqrt(alpha_bar) x_0, without noise.
    """
    one, alpha_bar = with_sampler(model.pipeline, "ddpm"), alphas_cumprod(model)
    timesteps = sampler_of(model, replace(settings, sampler="ddim")).scheduler.timesteps.flip(0).tolist()
    levels = [(alpha_bar[t].item() ** 0.5, (1 - alpha_bar[t].item()) ** 0.5) for t in timesteps]
    x = levels[0][0] * x
    for t, (signal, sigma), (next_signal, next_sigma) in zip(timesteps, levels, levels[1:]):
        options = {"timesteps": [t], "latents": x, "guidance_interval": settings.guidance_interval}
        options["prompt"] = settings.prompt and [settings.prompt] * len(x)
        step = next(one.denoise(len(x), labels and labels[:1], settings.guidance_scale, **options))
        x_0 = step.pred_original_sample
        x = next_signal * x_0 + next_sigma * (x - signal * x_0) / sigma
        yield
    return x


def spherical(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """The point on the arc between two tensors of about the same length; share 0 is the first, 1 the second."""
    cosine = torch.dot(first.flatten(), second.flatten()) / (first.norm() * second.norm())
    angle = torch.acos(cosine.clamp(-1, 1)).item()
    if math.sin(angle) < 1e-4:  # the same direction, or the opposite one
        return torch.lerp(first, second, share)
    return (math.sin((1 - share) * angle) * first + math.sin(share * angle) * second) / math.sin(angle)


def denoise_options(
    model: Model, pipeline: MyDDPMPipeline, start: Start, seeds: Sequence[int], x_t: torch.Tensor
) -> dict:
    """Arguments of ``pipeline.denoise`` that make the way back from x_t (B, C, S, S), of variance 1."""
    # generators that have drawn what made x_t: fresh noise must not be the same again
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    for generator in generators:
        torch.randn((1, *x_t.shape[1:]), generator=generator)
    options = {"generator": generators, "latents": x_t * _scale_at_start(pipeline)}
    if start.mask is not None:
        mask = to_network(model, Image.open(io.BytesIO(start.mask)))[:, :1] > 0
        options |= {"image": from_png(model, start.picture), "mask": mask}
    return options


def _scale_at_start(pipeline: MyDDPMPipeline) -> float:
    """What x_t of variance 1 is multiplied by for ``denoise(latents=...)``, which multiplies by init_noise_sigma."""
    if not pipeline.holds_sigma:
        return 1.0
    sigma = float(pipeline.scheduler.sigmas[0])  # such schedulers hold x_0 + sigma epsilon
    return (1 + sigma**2) ** 0.5 / float(pipeline.scheduler.init_noise_sigma)
