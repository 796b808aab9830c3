"""Small diffusion models: train on your own images, publish, load anywhere, watch them denoise."""

import importlib

__version__ = "0.1.0"

_HOME_OF = {
    "MyBlock": "unet",
    "MyTESA": "unet",
    "MyUNet": "unet",
    "MyDDPMScheduler": "scheduler",
    "MyDDPMPipeline": "pipeline",
    "DenoisingStep": "pipeline",
    "export_pipeline": "hub",
    "load_pipeline": "hub",
    "push": "hub",
    "TrainConfig": "config",
    "UserError": "errors",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    """Import on first use: torch and diffusers take seconds, and ``--help`` needs neither."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
