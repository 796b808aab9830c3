"""The page: what a visitor sees, and which handler each control calls."""

from pathlib import Path

import gradio as gr

from ddpm_hf.samplers import DEFAULT_SAMPLER
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.limits import ANY_CLASS, DEFAULT_IMAGES, MAX_QUEUE
from ddpm_hf.ui.runs import Engine, generate_for_program, stream_to_stage
from ddpm_hf.ui.stage import make_part, make_stage

TITLE = "Noise, becoming pictures"
PANELS = [
    {"id": "generate", "title": "Generate"},
    {"id": "compare", "title": "Compare"},
    {"id": "forward", "title": "Forward"},
    {"id": "theory", "title": "How it works"},
    {"id": "take-away", "title": "Take away"},
]

# The model is one resource: its page runs and API runs wait in one line.
MODEL_QUEUE = {"concurrency_limit": 1, "concurrency_id": "model"}


def build_page(engine: Engine, name: str) -> gr.Blocks:
    """The page for one model, to be launched with ``look.launch_options()``. name: how the page calls the model."""
    description = describe(engine, name)
    with gr.Blocks(title=f"{TITLE} · {name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        masthead = {"title": TITLE, "description": description, "panels": PANELS}
        make_part("masthead(element, props)", masthead=masthead, elem_id="masthead")
        with gr.Column(elem_id="panel-generate", elem_classes="panel"), gr.Row(elem_classes="workbench"):
            form = make_part("form(element, props, trigger)", description=description, elem_id="settings")
            stage = make_stage(elem_id="stage")
        _wire_generate(engine, form, stage)
        _add_api(engine)
    return page.queue(max_size=MAX_QUEUE, api_open=False)


def model_name(model: str | Path | None) -> str:
    """How to call a model on the page: a Hub id as it is, of a folder its name, never where it is."""
    if model is None:
        return "the small Fashion-MNIST model"
    return Path(model).resolve().name if Path(model).exists() else str(model)


# ---- handlers


def _wire_generate(engine: Engine, form: gr.HTML, stage: gr.HTML):
    async def run(values):
        async for value in stream_to_stage(engine, values):
            yield value

    running = form.submit(
        run,
        form,
        stage,
        preprocess=False,  # limits.py checks what came over the wire, with messages of its own
        trigger_mode="once",
        show_progress="hidden",
        api_visibility="private",
        **MODEL_QUEUE,
    )
    running.failure(None, js="() => { ddpm.tell('failed') }", queue=False)
    form.stop(None, cancels=[running], queue=False)


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
