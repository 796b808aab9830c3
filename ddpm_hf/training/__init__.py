"""The trainer: ``Trainer(config).train()`` trains a run, or resumes it to the bit."""

from ddpm_hf.training.build import build_pipeline, build_scheduler, build_unet, exported_pipeline, rate_factor
from ddpm_hf.training.loss import Draw, diffusion_loss, min_snr_weight, squared_error
from ddpm_hf.training.plan import print_plan
from ddpm_hf.training.state import Progress, TrainState
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.weights import load_weights_of

__all__ = [
    "Draw",
    "Progress",
    "TrainState",
    "Trainer",
    "build_pipeline",
    "build_scheduler",
    "build_unet",
    "diffusion_loss",
    "exported_pipeline",
    "load_weights_of",
    "min_snr_weight",
    "print_plan",
    "rate_factor",
    "squared_error",
]
