"""The forward process on a picture, and the way back from any of its timesteps."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from ddpm_hf.errors import UserError
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import with_sampler
from ddpm_hf.ui import intake
from ddpm_hf.ui.examples import example_picture
from ddpm_hf.ui.frames import data_url, starting_noise
from ddpm_hf.ui.jobs import Job
from ddpm_hf.ui.limits import Settings, request_of
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.runs import SETTINGS, Engine, stage_values
from ddpm_hf.ui.tasks import Film, Item, labels_of

REQUEST = ("image", "example", "t", *SETTINGS)
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the timesteps, as the original shows them


# ---- pictures in, pictures out


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


def _shown(model: Model, x: torch.Tensor) -> str:
    return data_url(model.pipeline.postprocess(x)[0])


# ---- q(x_t | x_0)


def alphas_cumprod(model: Model) -> torch.Tensor:
    """alpha_bar_t (T,) in float64."""
    return torch.cumprod(1 - model.pipeline.scheduler.betas.double().cpu(), dim=0)


def add_noise(model: Model, x_0: torch.Tensor, noise: torch.Tensor, t: int) -> torch.Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon, of the shape of ``noise``."""
    alpha_bar = alphas_cumprod(model)[t].item()
    return alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise


def schedule_curve(engine: Engine, model: str | None = None) -> dict:
    """alpha_bar and the signal-to-noise ratio in decibels, for every timestep of the training process."""
    alpha_bar = alphas_cumprod(engine.models.get(model))
    return {
        "t": list(range(len(alpha_bar))),
        "alpha_bar": [float(f"{value:.6g}") for value in alpha_bar],
        "snr_db": [round(value, 3) for value in _decibels(alpha_bar).tolist()],
    }


def _decibels(alpha_bar: torch.Tensor) -> torch.Tensor:
    tiny = 1e-20  # a schedule may end at no signal at all
    return 10 * torch.log10(alpha_bar.clamp(min=tiny) / (1 - alpha_bar).clamp(min=tiny))


def forward_process(engine: Engine, image, t: int, seed: int = 0, model: str | None = None) -> dict:
    """A sample of q(x_t | x_0) for one t, and the original's strip of four.

    Args:
        image: a PIL image, ``{"example": i}``, or what ``intake.picture`` reads.
        t: timestep from 0 to T - 1. seed: of epsilon, the same for all t.

    Returns:
        {"t", "alpha_bar", "snr", "sigma": sqrt(1 - alpha_bar), "x_t", "original", "strip": x_t at 25, 50, 75 and 100 %
        of the timesteps}, the pictures as data URLs of PNG files.

    Raises:
        UserError: with one line for the visitor.
    """
    chosen = engine.models.get(model)
    t, seed = chosen.limits.check_timestep(t), chosen.limits.check_seed(seed)
    x_0 = to_network(chosen, chosen_picture(chosen, image))
    noise = starting_noise(chosen.pipeline, [seed])
    alpha_bar = alphas_cumprod(chosen)[t].item()
    steps = [round(share * chosen.timesteps) - 1 for share in SHARES]
    return {
        "t": t,
        "alpha_bar": float(f"{alpha_bar:.6g}"),
        "snr": float(f"{alpha_bar / max(1e-20, 1 - alpha_bar):.6g}"),
        "sigma": float(f"{(1 - alpha_bar) ** 0.5:.6g}"),
        "x_t": _shown(chosen, add_noise(chosen, x_0, noise, t)),
        "original": _shown(chosen, x_0),
        "strip": [_shown(chosen, add_noise(chosen, x_0, noise, step)) for step in steps],
    }


# ---- the way back


@dataclass(frozen=True)
class FromPicture:
    """Images made from a noised picture. picture: PNG bytes at the model's own size; t: where the way back starts."""

    model: str
    settings: Settings
    t: int
    picture: bytes

    @property
    def group(self):
        """Shares its calls with no other task."""
        return self

    @property
    def rows(self) -> int:
        return self.settings.num_images * (1 if self.settings.guidance_scale == 1 else 2)

    def totals(self, model: Model) -> list[int]:
        return [len(self._sampler(model).scheduler.timesteps)]

    @staticmethod
    def run(model: Model, tasks: Sequence["FromPicture"]) -> Iterator[Item]:
        """The one task."""
        (task,) = tasks
        settings, pipeline = task.settings, task._sampler(model)
        steps, timesteps = pipeline.scheduler.num_inference_steps, pipeline.scheduler.timesteps.tolist()
        x_0 = to_network(model, Image.open(io.BytesIO(task.picture)))
        x_t = add_noise(model, x_0, starting_noise(model.pipeline, settings.seeds), task.t)
        stream = pipeline.denoise(
            settings.num_images,
            labels_of(model.pipeline, settings),
            settings.guidance_scale,
            steps,
            generator=_after_noise(model, settings.seeds),
            latents=x_t * _scale_at_start(pipeline),
            guidance_interval=[min(t, task.t + 1) for t in settings.guidance_interval or (0, task.t)],
        )
        yield from Film(model, [(pipeline, stream)], x_t, timesteps).frames([settings.num_images])

    def _sampler(self, model: Model) -> MyDDPMPipeline:
        """The sampler of the process's first t + 1 timesteps, with the share of the steps that falls on them."""
        pipeline = with_sampler(model.pipeline, self.settings.sampler, self.t + 1)
        share = (self.t + 1) / model.timesteps
        pipeline.scheduler.set_timesteps(min(self.t + 1, max(1, round(self.settings.steps * share))))
        return pipeline


def _after_noise(model: Model, seeds: Sequence[int]) -> list[torch.Generator]:
    """Generators that have drawn what made x_t: fresh noise must not be the same again."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    shape = (1, model.pipeline.unet.config.in_channels, *model.network_size)
    for generator in generators:
        torch.randn(shape, generator=generator)
    return generators


def _scale_at_start(pipeline: MyDDPMPipeline) -> float:
    """What x_t of variance 1 is multiplied by for ``denoise(latents=...)``, which multiplies by init_noise_sigma."""
    if not pipeline.holds_sigma:
        return 1.0
    sigma = float(pipeline.scheduler.sigmas[0])  # such schedulers hold x_0 + sigma epsilon
    return (1 + sigma**2) ** 0.5 / float(pipeline.scheduler.init_noise_sigma)


async def stream_from(engine: Engine, values: dict, session: str = "", address: str = "") -> AsyncIterator[dict]:
    """Values for the stage while the model makes its way back from a picture noised up to t.

    Args:
        values: image (or example: the number of one), t, and those of a generation; num_images is 1 without.
            ``steps`` are those of the whole way, of which the part from t down is made: at least one.

    Yields:
        As ``stream_to_stage``, and "original": data URL of the picture as the model sees it, "t": where it started.

    Raises:
        UserError: with one line for the visitor.
    """
    values = request_of(values, REQUEST)
    model = await engine.model(values)
    task, original = await _task_from(model, values)
    job = Job(task, model, session, address)
    async with aclosing(stage_values(engine, job, task.settings, t=task.t, original=original)) as stream:
        async for value in stream:
            yield value


async def _task_from(model: Model, values: dict) -> tuple[FromPicture, str]:
    values.pop("model", None)
    t = model.limits.check_timestep(values.pop("t", None))
    image, example = values.pop("image", None), values.pop("example", None)
    settings = model.limits.check(**{"num_images": 1, **values})
    if image is None and example is None:
        raise UserError("drop in a picture, or pick one.")
    source = image if image is not None else {"example": example}
    picture = await asyncio.to_thread(chosen_picture, model, source)
    seen = model.pipeline.postprocess(to_network(model, picture))[0]
    buffer = io.BytesIO()
    seen.save(buffer, "PNG")
    return FromPicture(model.name, settings, t, buffer.getvalue()), data_url(seen)
