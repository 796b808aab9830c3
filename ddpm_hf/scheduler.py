"""MyDDPMScheduler: the original's diffusion process, linear beta and ancestral sampling, as a diffusers scheduler.

This file is uploaded beside the weights of every model, so it imports only the standard library, torch and
diffusers. Equation numbers are those of Ho et al. 2020, "Denoising Diffusion Probabilistic Models".
"""

import itertools
import json
from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

VARIANCE_TYPES = ("fixed_large", "fixed_small")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
ALGORITHM_TYPES = (None, "dpmsolver++", "sde-dpmsolver++")
# of the solver that takes fewer than T steps: it starts at the last timestep, and clips x_0 to the pixels' range
SOLVER_SETTINGS = {"timestep_spacing": "trailing", "thresholding": True, "sample_max_value": 1.0}


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _whole_number(name: str, value, low: int, high: int) -> int:
    """``value`` as int, from Python's, NumPy's or torch's numbers; a ValueError for others and outside [low, high]."""
    if not isinstance(value, bool | str) and value == value and low <= value <= high and value == int(value):
        return int(value)
    raise ValueError(f"{name} must be a whole number in [{low}, {high}], got {value}.")


def _rescale_to_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last is 0 and the first stays (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = root.square()
    return 1 - torch.cat((alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]))


class MyDDPMScheduler(SchedulerMixin, ConfigMixin):
    """Linear beta from ``beta_start`` to ``beta_end``, sigma_t^2 = beta_t, no clipping: the original's sampler.

    The configuration keys are diffusers' own, so stock schedulers build with ``.from_config(scheduler.config)``.
    With 1e-4 -> 0.02 the last step keeps some signal, the more the fewer the steps: alpha_bar_T is about 4e-5 for
    1000 steps, 0.006 for 500 and 0.13 for 200, and sampling from pure noise then starts off-distribution.

    Args:
        num_train_timesteps: T.
        beta_start, beta_end: variance of the first and the last forward step, in (0, 1).
        beta_schedule: "linear".
        variance_type: sigma_t^2 of the reverse step: "fixed_large" is beta_t, "fixed_small" the posterior's
            variance (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) * beta_t (section 3.2).
        prediction_type: what the network predicts: "epsilon", "v_prediction" (Salimans and Ho 2022, appendix D)
            or "sample" (x_0).
        clip_sample: clip the predicted x_0 to [-clip_sample_range, clip_sample_range] at every step.
        timestep_spacing: "leading", "trailing" or "linspace" (Lin et al. 2023, table 2).
        steps_offset: added to every timestep of "leading", or as much of it as keeps them all below T.
        rescale_betas_zero_snr: make alpha_bar_T exactly 0. Refused with "epsilon", which tells nothing of x_0 there.
        trained_betas: the variances of all forward steps, each in (0, 1). They replace ``beta_start`` and ``beta_end``,
            and their number is T.
        algorithm_type: what samples in fewer than T steps. None is ancestral sampling over the chosen timesteps;
            "dpmsolver++" and "sde-dpmsolver++" are the second-order solvers of diffusers'
            DPMSolverMultistepScheduler (Lu et al. 2022), with ``SOLVER_SETTINGS``. All T steps are always ancestral.
            From a configuration with the last one, DEISMultistepScheduler needs its own ``algorithm_type="deis"``.

    Raises:
        ValueError: for a value outside these choices.
    """

    _compatibles: ClassVar = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        variance_type: str = "fixed_large",
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        trained_betas: Sequence[float] | None = None,
        algorithm_type: str | None = None,
    ):
        _check_choice("beta_schedule", beta_schedule, ("linear",))
        _check_choice("variance_type", variance_type, VARIANCE_TYPES)
        _check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        _check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        _check_choice("algorithm_type", algorithm_type, ALGORITHM_TYPES)
        if trained_betas is not None:
            trained_betas = torch.as_tensor(trained_betas, dtype=torch.float64)
            if trained_betas.ndim != 1 or not ((trained_betas > 0) & (trained_betas < 1)).all():
                raise ValueError("trained_betas must be a list of numbers between 0 and 1.")
            num_train_timesteps = len(trained_betas)
            self.register_to_config(num_train_timesteps=num_train_timesteps, trained_betas=trained_betas.tolist())
        # NumPy's numbers as JSON has them: a configuration that was saved and loaded is equal to the first
        self.register_to_config(**{key: value.item() for key, value in self.config.items() if hasattr(value, "item")})
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}.")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"betas need 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}.")
        if not 0 <= steps_offset < num_train_timesteps:
            raise ValueError(f"steps_offset must lie in [0, {num_train_timesteps - 1}], got {steps_offset}.")
        if rescale_betas_zero_snr and num_train_timesteps < 2:
            raise ValueError("rescale_betas_zero_snr needs at least 2 timesteps.")
        if rescale_betas_zero_snr and prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr needs prediction_type 'v_prediction' or 'sample': at zero signal-to-noise "
                "ratio the noise says nothing about the image."
            )
        # diffusers' from_config leaves out what was not given by keyword, and the other class's defaults then win:
        # DDPMScheduler would clip and use fixed_small. None is no solver of theirs, which keep their own default
        self.register_to_config(_use_default_values=["algorithm_type"] if algorithm_type is None else [])

        # float64 while the products build up; float32 is what the images are in
        betas = trained_betas
        if betas is None:
            betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
        if rescale_betas_zero_snr:
            betas = _rescale_to_zero_terminal_snr(betas)
        self.betas = betas.float()
        self.alphas = (1 - betas).float()
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0).float()
        self._alphas_cumprod64 = torch.cumprod(1 - betas, dim=0)

        self.init_noise_sigma = 1.0
        self.num_inference_steps = None
        self._solver = None  # of fewer than T steps
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def to_json_string(self) -> str:
        """The configuration as it is saved, in which None is left out: no stock scheduler knows this algorithm_type."""
        config = json.loads(super().to_json_string())
        return json.dumps({key: value for key, value in config.items() if value is not None}, indent=2) + "\n"

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def scale_model_input(self, sample: torch.Tensor, timestep: int | None = None) -> torch.Tensor:
        """The identity; other schedulers scale x_t here."""
        return sample

    # ---- forward process

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon (equation 4).

        original_samples, noise: (B, C, H, W); timesteps: whole numbers (B,) or one for all. Returns (B, C, H, W).
        """
        signal, sigma = self._signal_and_sigma(timesteps, original_samples)
        return signal * original_samples + sigma * noise

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v = sqrt(alpha_bar_t) epsilon - sqrt(1 - alpha_bar_t) x_0; arguments as in ``add_noise``."""
        signal, sigma = self._signal_and_sigma(timesteps, sample)
        return signal * noise - sigma * sample

    def training_target(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network is to predict from x_t, by ``prediction_type``; arguments as in ``add_noise``."""
        if self.config.prediction_type == "epsilon":
            return noise
        if self.config.prediction_type == "sample":
            return sample
        return self.get_velocity(sample, noise, timesteps)

    def loss_weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Weight of the variational bound, beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) (equation 12), shape (B,).

        It multiplies the squared error of epsilon; the simple loss (equation 14) leaves it out. Where "fixed_small"
        gives sigma_0 = 0, sigma_1 stands in for it (Nichol and Dhariwal 2021, section 3.1).
        """
        beta = self.betas.double()
        alphas_cumprod = self._alphas_cumprod64
        variance = beta
        if self.config.variance_type == "fixed_small" and len(self) > 1:
            posterior = (1 - alphas_cumprod[:-1]) / (1 - alphas_cumprod[1:]) * beta[1:]  # sigma_1^2 ... sigma_{T-1}^2
            variance = torch.cat((posterior[:1], posterior))
        weight = beta.square() / (2 * variance * (1 - beta) * (1 - alphas_cumprod))
        return weight.float().to(timesteps.device)[timesteps]

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t) of x_t, float32, of the shape of ``timesteps``."""
        ratio = self._alphas_cumprod64 / (1 - self._alphas_cumprod64)
        return ratio.float().to(timesteps.device)[timesteps]

    def _signal_and_sigma(self, timesteps, like: torch.Tensor):
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to multiply images, in the images' dtype."""
        # cast before it moves: not every device has float64
        timesteps = torch.as_tensor(timesteps, device=like.device)
        shape = (-1, *[1] * (like.ndim - 1))
        roots = (self._alphas_cumprod64.sqrt(), (1 - self._alphas_cumprod64).sqrt())
        signal, sigma = (root.to(like.dtype).to(like.device)[timesteps].reshape(shape) for root in roots)
        return signal, sigma

    # ---- reverse process

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ):
        """Choose ``num_inference_steps`` of the T training steps to sample with, spaced by ``timestep_spacing``.

        Fewer than T are taken by the solver of ``algorithm_type``, where there is one.

        Args:
            timesteps: instead of a number of steps, the training steps to take: whole numbers, falling, in [0, T - 1].

        Raises:
            ValueError: unless 1 <= num_inference_steps <= T, or for timesteps that are not so.
        """
        total = self.config.num_train_timesteps
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give either num_inference_steps or timesteps.")
        if timesteps is not None:
            chosen = [_whole_number("timesteps", t, 0, total - 1) for t in timesteps]
            if not chosen or any(high <= low for high, low in itertools.pairwise(chosen)):
                raise ValueError(f"timesteps must be a list of falling whole numbers, got {chosen}.")
            num_inference_steps = len(chosen)
        count = self.num_inference_steps = _whole_number("num_inference_steps", num_inference_steps, 1, total)
        self._solver = None
        if self.config.algorithm_type is not None and count < total:
            self._solver = DPMSolverMultistepScheduler.from_config(self.config, **SOLVER_SETTINGS)
            steps = {"num_inference_steps": count} if timesteps is None else {"timesteps": chosen}
            self._solver.set_timesteps(**steps, device=device)
            self.timesteps = self._solver.timesteps
            return
        if timesteps is not None:
            self.timesteps = torch.tensor(chosen, device=device)
            return
        if self.config.timestep_spacing == "leading":
            timesteps = torch.arange(count - 1, -1, -1) * (total // count)
            timesteps += min(self.config.steps_offset, total - 1 - int(timesteps[0]))  # near T, some would coincide
        elif self.config.timestep_spacing == "trailing":
            timesteps = (total - torch.arange(count, dtype=torch.float64) * total / count).round().long() - 1
        else:
            timesteps = torch.linspace(0, total - 1, count, dtype=torch.float64).round().long().flip(0)
        self.timesteps = timesteps.to(device)

    def previous_timestep(self, timestep: int) -> int:
        """The timestep that follows ``timestep`` on the way down to -1, which stands for the finished image."""
        if self.num_inference_steps is None:
            return timestep - 1
        later = self.timesteps[self.timesteps < timestep]
        return int(later[0]) if len(later) else -1

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Sample x_{t-1} from p(x_{t-1} | x_t), with the mean of equation 11 and the variance of ``variance_type``.

        In fewer than T steps, the solver of ``algorithm_type`` takes it, where there is one.

        Args:
            model_output: (B, C, H, W), the network's prediction.
            timestep: t, a whole number in [0, T - 1].
            sample: (B, C, H, W), x_t.
            generator: source of the noise; a list gives every image its own.
            return_dict: False returns (prev_sample, pred_original_sample).

        Returns:
            ``prev_sample`` x_{t-1} and ``pred_original_sample``, the predicted x_0, both (B, C, H, W). No noise
            is added by the last step.
        """
        t = int(timestep)
        if not 0 <= t < len(self) or t != timestep:
            raise ValueError(f"timestep must be a whole number in [0, {len(self) - 1}], got {timestep}.")
        if self._solver is not None:
            p, q = self._x0_coefficients(self._alphas_cumprod64[t].item())
            x0 = p * sample + q * model_output
            prev_sample = self._solver.step(model_output, timestep, sample, generator=generator).prev_sample
            return DDPMSchedulerOutput(prev_sample, x0) if return_dict else (prev_sample, x0)
        previous = self.previous_timestep(t)
        alpha_bar = self._alphas_cumprod64[t].item()
        alpha_bar_previous = self._alphas_cumprod64[previous].item() if previous >= 0 else 1.0
        alpha = alpha_bar / alpha_bar_previous  # over several training steps when some are left out
        beta = 1 - alpha

        # x_0 = p x_t + q output, and the mean of q(x_{t-1} | x_t, x_0) of equation 7 is a x_0 + b x_t
        p, q = self._x0_coefficients(alpha_bar)
        a = alpha_bar_previous**0.5 * beta / (1 - alpha_bar)
        b = alpha**0.5 * (1 - alpha_bar_previous) / (1 - alpha_bar)
        x0 = p * sample + q * model_output
        if self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
            prev_sample = a * x0 + b * sample
        else:  # one sum, equation 11: going through x_0, huge at large t, would cost three digits of float32
            prev_sample = (a * p + b) * sample + a * q * model_output

        if previous >= 0:
            variance = beta
            if self.config.variance_type == "fixed_small":
                variance *= (1 - alpha_bar_previous) / (1 - alpha_bar)
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            prev_sample = prev_sample + variance**0.5 * noise

        if not return_dict:
            return prev_sample, x0
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def _x0_coefficients(self, alpha_bar: float) -> tuple[float, float]:
        """p and q in x_0 = p x_t + q output."""
        signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        if self.config.prediction_type == "sample":
            return 0.0, 1.0
        if self.config.prediction_type == "epsilon":  # equation 4 solved for x_0
            return 1 / signal, -sigma / signal
        return signal, -sigma
