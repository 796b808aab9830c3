"""Small diffusion models: train on your own images, publish, load anywhere, watch them denoise."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors read; at run time __getattr__ imports
    from ddpm_hf import samplers as samplers
    from ddpm_hf.config import TrainConfig as TrainConfig
    from ddpm_hf.errors import UserError as UserError
    from ddpm_hf.evaluation.evaluate import evaluate as evaluate
    from ddpm_hf.hub.export import export_pipeline as export_pipeline
    from ddpm_hf.hub.loading import load_pipeline as load_pipeline
    from ddpm_hf.hub.publishing import push as push
    from ddpm_hf.hub.space import deploy_space as deploy_space
    from ddpm_hf.pipeline import DenoisingStep as DenoisingStep
    from ddpm_hf.pipeline import MyDDPMPipeline as MyDDPMPipeline
    from ddpm_hf.sampling import with_sampler as with_sampler
    from ddpm_hf.scheduler import MyDDPMScheduler as MyDDPMScheduler
    from ddpm_hf.training.trainer import Trainer as Trainer
    from ddpm_hf.unet import MyBlock as MyBlock
    from ddpm_hf.unet import MyTESA as MyTESA
    from ddpm_hf.unet import MyUNet as MyUNet

__version__ = "0.1.0"

_HOME_OF = {
    "DenoisingStep": "pipeline",
    "MyBlock": "unet",
    "MyDDPMPipeline": "pipeline",
    "MyDDPMScheduler": "scheduler",
    "MyTESA": "unet",
    "MyUNet": "unet",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "UserError": "errors",
    "deploy_space": "hub.space",
    "evaluate": "evaluation.evaluate",
    "export_pipeline": "hub.export",
    "load_pipeline": "hub.loading",
    "push": "hub.publishing",
    "samplers": "samplers",  # the module
    "with_sampler": "sampling",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    """Import on first use: torch and diffusers take seconds, and ``--help`` needs neither."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    return module if name == _HOME_OF[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
