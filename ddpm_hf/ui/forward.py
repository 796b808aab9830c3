"""The forward process on a picture."""

import torch

from ddpm_hf.ui.frames import data_url, starting_noise
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.runs import Engine
from ddpm_hf.ui.start import add_noise, alphas_cumprod, chosen_picture, to_network

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the timesteps, as the original shows them


def _shown(model: Model, x: torch.Tensor) -> str:
    return data_url(model.pipeline.postprocess(x)[0])


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
