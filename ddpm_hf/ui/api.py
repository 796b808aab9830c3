"""The endpoints for programs: /generate, /noise and /compare, documented by their annotations and docstrings."""

import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr

from ddpm_hf.samplers import DEFAULT_SAMPLER
from ddpm_hf.ui.comparison import compare_for_program
from ddpm_hf.ui.forward import forward_process
from ddpm_hf.ui.limits import ANY_CLASS, DEFAULT_COMPARED, DEFAULT_IMAGES, MAX_QUEUE
from ddpm_hf.ui.runs import Engine, generate_for_program

# The engine has a queue of its own, which is fair; Gradio lets in those who wait there, and the one who computes.
MODEL_QUEUE = {"concurrency_limit": 2 * MAX_QUEUE, "concurrency_id": "model"}


def session_of(request: gr.Request | None) -> str:
    """Who asks, for the fair queue."""
    return (request and request.session_hash) or ""


def add_api(engine: Engine):
    """Add the endpoints to the page that is being built."""
    _add_generate(engine)
    _add_noise(engine)
    _add_compare(engine)


def _without_choice(engine: Engine, function: Callable) -> Callable:
    """``function`` without its last parameter, the model, where there is only one."""
    if len(engine.models.names) > 1:
        return function
    signature = inspect.signature(function)
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "model"]
    function.__signature__ = signature.replace(parameters=parameters)
    del function.__annotations__["model"]
    function.__doc__ = "\n".join(line for line in function.__doc__.splitlines() if "model: one of" not in line)
    return function


def _guidance(engine: Engine) -> float:
    """What every model allows."""
    return engine.limits.default_guidance if len(engine.models.names) == 1 else 1.0


def _add_generate(engine: Engine):
    # gr.api documents an endpoint by its annotations, and for a generator by what it yields
    async def generate(
        request: gr.Request,
        num_images: int = DEFAULT_IMAGES,
        class_name: str = ANY_CLASS,
        guidance_scale: float = _guidance(engine),
        sampler: str = DEFAULT_SAMPLER,
        steps: int = engine.limits.default_steps,
        seed: int = 0,
        model: str = engine.models.first.name,
    ) -> dict[str, Any]:
        """Generate images: image i depends on the seed K + i alone, and is the same on the page.

        Args:
            num_images: how many.
            class_name: name or number of a class, or "any" for all of them in turn.
            guidance_scale: strength of classifier-free guidance; 1 is off and twice as fast.
            sampler: dpm, dpm-sde, unipc, ddim, euler, heun, ddpm or ddpm-small.
            steps: denoising steps.
            seed: K, from 0 to 4294967295.
            model: one of those that the page offers.

        Returns:
            {"done": True, "images": [{"seed", "label", "name", "png"}], "grid_png", "seconds", "settings"}
            where png and grid_png are PNG files in base64. Before it {"done": False, "step", "total"} reports the
            progress to those who listen.
        """
        values = {
            "num_images": num_images,
            "class_name": class_name,
            "guidance_scale": guidance_scale,
            "sampler": sampler,
            "steps": steps,
            "seed": seed,
            "model": model,
        }
        async for answer in generate_for_program(engine, values, session_of(request)):
            yield answer

    gr.api(_without_choice(engine, generate), api_name="generate", **MODEL_QUEUE)


def _add_noise(engine: Engine):
    def noise(
        t: int, example: int = 0, image: str = "", seed: int = 0, model: str = engine.models.first.name
    ) -> dict[str, Any]:
        """The forward process: a sample of q(x_t | x_0) for a picture.

        Args:
            t: timestep, from 0 to T - 1.
            example: number of one of the model's examples, used without an image.
            image: a picture file as a data URL.
            seed: of the noise.
            model: one of those that the page offers.

        Returns:
            {"t", "alpha_bar", "snr", "sigma", "x_t", "original", "strip"}; x_t, original and the four of strip (x_t at
            a quarter, a half, three quarters and all of the timesteps) are data URLs of PNG files.
        """
        return forward_process(engine, image or {"example": example}, t, seed, model)

    gr.api(_without_choice(engine, noise), api_name="noise", concurrency_limit=2)


def _add_compare(engine: Engine):
    async def compare(
        request: gr.Request,
        lanes: list[dict[str, Any]],
        num_images: int = DEFAULT_COMPARED,
        class_name: str = ANY_CLASS,
        guidance_scale: float = _guidance(engine),
        seed: int = 0,
        model: str = engine.models.first.name,
    ) -> dict[str, Any]:
        """Several samplers from the same noise, and how far each ends from the result of all steps.

        Args:
            lanes: 2 to 4 times {"sampler", "steps"}.
            num_images: how many.
            class_name: name or number of a class, or "any" for all of them in turn.
            guidance_scale: strength of classifier-free guidance; 1 is off.
            seed: of the first image, from 0 to 4294967295.
            model: one of those that the page offers.

        Returns:
            {"done": True, "lanes": a list, "note", "seeds", "names", "settings"} where a lane is
            {"sampler", "title", "steps", "calls", "seconds", "fresh_noise", "distance", "grid_png"} with the RMS
            distance over pixels in [0, 1] to DDIM with all steps, or null where the sampler adds fresh noise or it
            could not be measured (note says so in words), and a PNG file in base64. Before it
            {"done": False, "step", "total"}.
        """
        values = {
            "lanes": lanes,
            "num_images": num_images,
            "class_name": class_name,
            "guidance_scale": guidance_scale,
            "seed": seed,
            "model": model,
        }
        async for answer in compare_for_program(engine, values, session_of(request)):
            yield answer

    gr.api(_without_choice(engine, compare), api_name="compare", **MODEL_QUEUE)
