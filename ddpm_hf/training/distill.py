"""Distillation: a student that takes a few steps where its teacher takes many (``distill_from``).

The student follows its teacher's deterministic trajectories from noise to image, as in Simple and Fast Distillation
(Zhou et al. 2024, arXiv 2409.19681). Guidance is part of the trajectories, so the student needs one network call a
step. Unlike there, the gradients of all steps of a batch make one optimizer step: a step of training stays a function
of the weights and (seed, step), so that a run resumes to the bit.
"""

import math

import torch
import torch.nn.functional as F

from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline, public_name
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.samplers import make_scheduler
from ddpm_hf.sampling import Sampling, own_sampling, with_sampler

TEACHER_SAMPLER = "dpm"  # the best of the deterministic ones at the teacher's number of steps (benchmarks/NOTES.md)
STUDENT_SAMPLER = "ddim"  # first-order: each step depends on its start alone
# what has to be the same; how to sample need not
PROCESS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


def student_sampling(steps: int, num_train_timesteps: int, conditional: bool) -> Sampling:
    """How a student makes its pictures: in so many steps, without guidance, which its weights have learned."""
    return Sampling(STUDENT_SAMPLER, steps, 1.0, (0, num_train_timesteps) if conditional else None)


class Teacher:
    """The trajectories that a student learns.

    Args:
        pipeline: the teacher; its own number of steps (rounded up to a multiple of ``steps``), guidance and interval.
        steps: of the student.
    """

    def __init__(self, pipeline: MyDDPMPipeline, steps: int):
        self.pipeline = with_sampler(pipeline, TEACHER_SAMPLER)
        own = own_sampling(pipeline)
        self.guidance = {"guidance_scale": own.guidance_scale, "guidance_interval": own.guidance_interval}
        if pipeline.num_classes is None:
            self.guidance = {}
        total = pipeline.scheduler.config.num_train_timesteps
        self.stride = max(1, math.ceil(min(own.steps, total) / steps))
        self.scheduler = make_scheduler(STUDENT_SAMPLER, pipeline.scheduler)
        self.scheduler.set_timesteps(steps, device=pipeline.device)

    def trajectory(self, noise: torch.Tensor, labels: torch.Tensor | None) -> list[torch.Tensor]:
        """x after each of the student's steps, (B, C, S, S) each; the last is the image. noise: of that shape too."""
        steps = self.pipeline.denoise(
            len(noise),
            class_labels=labels,
            latents=noise,
            num_inference_steps=self.stride * len(self.scheduler.timesteps),
            **self.guidance,
        )
        return [step.sample for step in steps if (step.index + 1) % self.stride == 0]

    def loss(
        self, student: torch.nn.Module, noise: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's mean absolute error on trajectories from ``noise``, and that of its images, two scalars.

        Each step starts at the student's own point, without gradient to the steps before, and is to end at the
        teacher's. The distance is measured in x_0, of which the step makes a known share: near pure noise, where
        pictures are decided, the points themselves hardly differ.
        """
        points = self.trajectory(noise, labels)
        sample, errors = noise, []
        for timestep, point in zip(self.scheduler.timesteps, points, strict=True):
            prediction = student(sample, timestep.expand(len(sample)), labels, return_dict=False)[0].float()
            after = self.scheduler.step(prediction, timestep, sample).prev_sample
            errors.append(F.l1_loss(after, point) / self._share_of_x0(int(timestep)))
            sample = after.detach()
        return torch.stack(errors).mean(), errors[-1].detach()

    def _share_of_x0(self, timestep: int) -> float:
        """The coefficient of x_0 in x after the student's step from ``timestep`` (Song et al. 2020, equation 12)."""
        alphas_cumprod = self.scheduler.alphas_cumprod
        before = timestep - len(alphas_cumprod) // len(self.scheduler.timesteps)
        alpha_bar, alpha_bar_after = alphas_cumprod[timestep].item(), 1.0
        if before >= 0:
            alpha_bar_after = alphas_cumprod[before].item()
        return alpha_bar_after**0.5 - ((1 - alpha_bar_after) * alpha_bar / (1 - alpha_bar)) ** 0.5


def load_teacher(model: str, steps: int, unet: torch.nn.Module, scheduler, device: torch.device | str) -> Teacher:
    """The teacher of a run whose network and diffusion process are ``unet`` and ``scheduler``.

    Args:
        model: folder of a pipeline or a run, Hub id, or "shipped".
        steps: of the student.

    Raises:
        UserError: if the model cannot be loaded, or has another network or process than its student.
    """
    name = None if model == "shipped" else model
    pipeline = load_pipeline(name, device=device)
    for part, theirs, ours in (("unet", pipeline.unet, unet), ("scheduler", pipeline.scheduler, scheduler)):
        for key, value in ours.config.items():
            chosen_freely = key == "dropout" if part == "unet" else key not in PROCESS
            if key.startswith("_") or chosen_freely:
                continue
            if _plain(theirs.config.get(key, value)) != _plain(value):
                raise UserError(
                    f"distill_from {public_name(name)}: its {part} has {key}={theirs.config[key]}, the student's has "
                    f"{value}; python -m ddpm_hf distill takes over the teacher's settings."
                )
    if not 1 <= steps <= len(scheduler):
        raise UserError(f"distill_steps must lie in [1, {len(scheduler)}], the number of timesteps, got {steps}.")
    return Teacher(pipeline, steps)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
