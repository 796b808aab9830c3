"""What the page's script needs to know of a model to build its controls."""

from ddpm_hf.samplers import DEFAULT_SAMPLER, SAMPLERS
from ddpm_hf.ui.limits import DEFAULT_IMAGES, MAX_GUIDANCE, MAX_SEED
from ddpm_hf.ui.runs import Engine


def describe(engine: Engine, name: str) -> dict:
    """The model called ``name``, as JSON: its classes with pictures, its limits, the samplers.

    Returns:
        {"model", "models", "parameters", "classes": [{"name", "src"}], "limits", "defaults", "samplers"}.
    """
    limits = engine.limits
    return {
        "model": name,
        "models": [name],
        "parameters": sum(parameter.numel() for parameter in engine.pipeline.unet.parameters()),
        "classes": [{"name": name, "src": None} for name in limits.classes],
        "limits": {
            "max_images": limits.max_images,
            "max_steps": limits.max_steps,
            "max_guidance": MAX_GUIDANCE,
            "max_seed": MAX_SEED,
        },
        "defaults": {"num_images": DEFAULT_IMAGES, "steps": limits.default_steps, "sampler": DEFAULT_SAMPLER},
        "samplers": [
            {"value": name, "title": sampler.title, "about": sentence(sampler.about)}
            for name, sampler in SAMPLERS.items()
        ],
    }


def sentence(text: str) -> str:
    """``text`` with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
