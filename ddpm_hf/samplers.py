"""The samplers that can be chosen by name: ours and stock ones, set up for pixels in [-1, 1]."""

from dataclasses import dataclass, field
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ddpm_hf.errors import UserError, nearest
from ddpm_hf.scheduler import SOLVER_SETTINGS, MyDDPMScheduler


@dataclass(frozen=True)
class Sampler:
    """A scheduler class and what it is set to; ``about`` is the line a visitor reads.

    fresh_noise: whether it adds noise at its steps. Those that do not end, with more and more steps, at the same images
    from the same start; those that do each at others.
    """

    title: str
    about: str
    scheduler_class: type[SchedulerMixin]
    settings: dict[str, Any] = field(default_factory=dict)
    fresh_noise: bool = False


# Clipping the predicted x_0 to the pixels' range helps most samplers that leave steps out; the multistep solvers
# offer it under the name of thresholding (with a largest value of 1 it is clipping).
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_ANCESTRAL = {"algorithm_type": None}  # not the solver that the model itself takes

SAMPLERS = {
    "dpm": Sampler(
        "DPM-Solver++ 2M",
        "second-order, deterministic: good pictures from 10 to 20 steps",
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", **SOLVER_SETTINGS},
    ),
    "dpm-sde": Sampler(
        "DPM-Solver++ 2M SDE",
        "second-order with fresh noise at every step, which corrects the network's errors: 15 to 50 steps",
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", **SOLVER_SETTINGS},
        fresh_noise=True,
    ),
    "unipc": Sampler(
        "UniPC",
        "predictor and corrector, deterministic: as few as 8 steps",
        diffusers.UniPCMultistepScheduler,
        SOLVER_SETTINGS,
    ),
    "ddim": Sampler(
        "DDIM",
        "first-order, deterministic: 20 to 100 steps",
        diffusers.DDIMScheduler,
        # Here a clipped x_0 is put together with the noise of the unclipped one, which moves x_t at every step by an
        # amount that more steps do not make smaller: it would lead away from where all the others end.
        {"timestep_spacing": "trailing", "clip_sample": False},
    ),
    "euler": Sampler(
        "Euler",
        "first-order in sigma, deterministic: 20 to 100 steps",
        diffusers.EulerDiscreteScheduler,
        {"timestep_spacing": "trailing"},
    ),
    "heun": Sampler(
        "Heun",
        "second-order, two network calls a step: 10 to 50 steps",
        diffusers.HeunDiscreteScheduler,
        {"timestep_spacing": "trailing", **_CLIP},
    ),
    "ddpm": Sampler(
        "DDPM",
        "the original's: fresh noise of variance beta at every step, best with all of them",
        MyDDPMScheduler,
        {"variance_type": "fixed_large", **_ANCESTRAL},
        fresh_noise=True,
    ),
    "ddpm-small": Sampler(
        "DDPM, small variance",
        "the posterior's variance and clipping: better than DDPM when steps are left out",
        MyDDPMScheduler,
        {"variance_type": "fixed_small", **_CLIP, **_ANCESTRAL},
        fresh_noise=True,
    ),
}
# What a training run writes into its model (benchmarks/NOTES.md): the sampler, its steps, and guidance of models with
# classes at the timesteps up to this share of T.
DEFAULT_SAMPLER = "dpm-sde"
DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 2.0
DEFAULT_GUIDED_SHARE = 0.4
WORDS_GUIDANCE = 4.0  # towards words, at all timesteps: what a picture shows is decided early
OWN_SAMPLERS = ("dpm", "dpm-sde", "ddim")  # that a model can be exported with


def make_scheduler(name: str, scheduler: SchedulerMixin, timesteps: int | None = None) -> SchedulerMixin:
    """The scheduler called ``name``, for the diffusion process of ``scheduler`` (any with diffusers' config keys).

    Args:
        timesteps: only the first so many of the process, for a start from an image that is noised no further: the
            beta and alpha_bar of each stay what they are, and the first step is from the last of them.

    Raises:
        UserError: for a name that is not in ``SAMPLERS``.
    """
    if name not in SAMPLERS:
        raise UserError(f"unknown scheduler {name!r}; {nearest(name, SAMPLERS)}")
    sampler = SAMPLERS[name]
    scheduler_class, settings = sampler.scheduler_class, dict(sampler.settings)
    if scheduler_class is MyDDPMScheduler and not _is_linear(scheduler, timesteps):
        scheduler_class = diffusers.DDPMScheduler  # for any betas and any schedule
    if timesteps is not None:
        settings |= _first(timesteps, scheduler, scheduler_class)
    return scheduler_class.from_config(scheduler.config, **settings)


def _is_linear(scheduler: SchedulerMixin, timesteps: int | None) -> bool:
    """Whether the betas, the first ``timesteps`` of them, are what ``MyDDPMScheduler`` computes from its settings."""
    config = scheduler.config
    cut_short = timesteps is not None and config.get("rescale_betas_zero_snr")
    given = config.get("trained_betas") is not None
    return config.get("beta_schedule", "linear") == "linear" and not given and not cut_short


def _first(timesteps: int, scheduler: SchedulerMixin, scheduler_class: type) -> dict[str, Any]:
    """Settings for the first ``timesteps`` of the process of ``scheduler``."""
    betas = scheduler.betas[:timesteps]
    settings = {"num_train_timesteps": timesteps, "rescale_betas_zero_snr": False, "timestep_spacing": "trailing"}
    if scheduler_class is MyDDPMScheduler:
        return settings | {"beta_end": max(betas[-1].item(), scheduler.config.beta_start)}  # float32 may be below
    return settings | {"trained_betas": betas.tolist()}
