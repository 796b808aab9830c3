"""The page: what a visitor sees, and which handler each control calls."""

import html
import json
from pathlib import Path

import gradio as gr

from ddpm_hf.samplers import DEFAULT_SAMPLER, SAMPLERS
from ddpm_hf.ui.limits import ANY_CLASS, DEFAULT_IMAGES, MAX_GUIDANCE, MAX_QUEUE, MAX_SEED
from ddpm_hf.ui.runs import Engine, generate_for_program, stream_to_stage
from ddpm_hf.ui.stage import make_stage

TITLE = "Noise, becoming pictures"

# The model is one resource: its page runs and API runs wait in one line.
MODEL_QUEUE = {"concurrency_limit": 1, "concurrency_id": "model"}


def build_page(engine: Engine, name: str) -> gr.Blocks:
    """The page for one model, to be launched with ``look.launch_options()``. name: how the page calls the model."""
    with gr.Blocks(title=f"{TITLE} · {name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_masthead(engine, name), elem_id="masthead", apply_default_css=False)
        with gr.Row(elem_id="workbench"):
            with gr.Column(elem_id="settings", scale=1, min_width=300):
                controls = _controls(engine)
                with gr.Row(elem_id="actions"):
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(elem_id="stage-column", scale=2, min_width=320):
                stage = make_stage(elem_id="stage")
        _wire(engine, controls, generate, stop, stage)
        _add_api(engine)
    return page.queue(max_size=MAX_QUEUE, api_open=False)


def _masthead(engine: Engine, name: str) -> str:
    size = sum(parameter.numel() for parameter in engine.pipeline.unet.parameters()) / 1e6
    return (
        f"<header><h1>{TITLE}</h1><p>A diffusion model makes a picture by taking noise away, a little at every step. "
        f"Watch <b>{html.escape(name)}</b> do it: {size:.1f} million parameters, every frame computed as you watch.</p>"
        "</header>"
    )


def model_name(model: str | Path | None) -> str:
    """How to call a model on the page: a Hub id as it is, of a folder its name, never where it is."""
    if model is None:
        return "the small Fashion-MNIST model"
    return Path(model).resolve().name if Path(model).exists() else str(model)


# ---- controls


def _controls(engine: Engine) -> dict[str, gr.components.Component]:
    """The controls by the name of the argument of ``Limits.check`` that they set."""
    limits = engine.limits
    controls = {
        "num_images": gr.Slider(
            1, limits.max_images, DEFAULT_IMAGES, step=1, label="Images", elem_id="num-images", buttons=[]
        )
    }
    if limits.classes:
        choices = [("Any: all in turn", ANY_CLASS), *zip(limits.classes, limits.classes)]
        controls["class_name"] = gr.Dropdown(choices, value=ANY_CLASS, label="Class", elem_id="class-name")
    samplers = [(sampler.title, name) for name, sampler in SAMPLERS.items()]
    controls["sampler"] = gr.Dropdown(samplers, value=DEFAULT_SAMPLER, label="Sampler", elem_id="sampler")
    about = gr.HTML(_sampler_line(DEFAULT_SAMPLER), elem_id="sampler-about", apply_default_css=False)
    controls["sampler"].change(None, controls["sampler"], about, js=_about_script(), queue=False)
    controls["steps"] = gr.Slider(
        1, limits.max_steps, limits.default_steps, step=1, label="Steps", elem_id="steps", buttons=[]
    )
    if limits.classes:
        controls["guidance_scale"] = gr.Slider(
            0, MAX_GUIDANCE, 1.0, step=0.1, label="Guidance (1 is off)", elem_id="guidance", buttons=[]
        )
    with gr.Row(elem_id="seed-row"):
        controls["seed"] = gr.Number(0, precision=0, label="Seed", elem_id="seed", minimum=0, maximum=MAX_SEED)
        dice = gr.Button("Random", elem_id="dice", min_width=44, scale=0)
    dice.click(None, None, controls["seed"], js=f"() => Math.floor(Math.random() * {MAX_SEED + 1})", queue=False)
    return controls


def _sampler_line(name: str) -> str:
    about = SAMPLERS[name].about
    return html.escape(about[:1].upper() + about[1:] + ".")


def _about_script() -> str:
    lines = {name: _sampler_line(name) for name in SAMPLERS}
    return f"(name) => ({json.dumps(lines)})[name] ?? ''"


# ---- handlers


def _wire(engine: Engine, controls: dict, generate: gr.Button, stop: gr.Button, stage: gr.HTML):
    names = list(controls)

    async def run(*values):
        async for value in stream_to_stage(engine, dict(zip(names, values))):
            yield value

    running = generate.click(
        run,
        list(controls.values()),
        stage,
        js=f"(...values) => {{ {_signal('submit')}; return values; }}",
        preprocess=False,  # limits.py checks what came over the wire, with messages of its own
        trigger_mode="once",
        show_progress="hidden",
        api_visibility="private",
        **MODEL_QUEUE,
    )
    running.failure(None, js=f"() => {{ {_signal('failure')} }}", queue=False)
    stop.click(None, js=f"() => {{ {_signal('stop')} }}", queue=False)
    stop.click(None, cancels=[running], queue=False)


def _signal(name: str) -> str:
    """Script that tells the stage what happened on the page; see the end of stage.js."""
    return f"window.dispatchEvent(new CustomEvent('stage', {{ detail: '{name}' }}))"


def _add_api(engine: Engine):
    # gr.api documents an endpoint by its annotations, and for a generator by what it yields
    async def generate(
        num_images: int = DEFAULT_IMAGES,
        class_name: str = ANY_CLASS,
        guidance_scale: float = 1.0,
        sampler: str = DEFAULT_SAMPLER,
        steps: int = engine.limits.default_steps,
        seed: int = 0,
    ) -> dict:
        """Generate images: image i depends on the seed K + i alone, and is the same on the page.

        Args:
            num_images: how many.
            class_name: name or number of a class, or "any" for all of them in turn.
            guidance_scale: strength of classifier-free guidance; 1 is off and twice as fast.
            sampler: dpm, dpm-sde, unipc, ddim, euler, heun, ddpm or ddpm-small.
            steps: denoising steps.
            seed: K, from 0 to 4294967295.

        Returns:
            {"done": True, "images": [{"seed", "label", "name", "png"}], "grid_png", "seconds", "settings", "step",
            "total"}; png and grid_png are PNG files in base64. Before it {"done": False, "step", "total"} reports
            the progress to those who listen.
        """
        values = {
            "num_images": num_images,
            "class_name": class_name,
            "guidance_scale": guidance_scale,
            "sampler": sampler,
            "steps": steps,
            "seed": seed,
        }
        async for answer in generate_for_program(engine, values):
            yield answer

    gr.api(generate, api_name="generate", **MODEL_QUEUE)
