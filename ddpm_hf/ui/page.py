"""The page: what a visitor sees, and which handler each control calls."""

from pathlib import Path

import gradio as gr

from ddpm_hf.ui.api import MODEL_QUEUE, add_api, session_of
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.limits import MAX_QUEUE
from ddpm_hf.ui.runs import Engine, stream_to_stage
from ddpm_hf.ui.stage import make_part, make_stage

TITLE = "Noise, becoming pictures"
PANELS = [
    {"id": "generate", "title": "Generate"},
    {"id": "compare", "title": "Compare"},
    {"id": "forward", "title": "Forward"},
    {"id": "theory", "title": "How it works"},
    {"id": "take-away", "title": "Take away"},
]


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
        add_api(engine)
    return page.queue(max_size=MAX_QUEUE, api_open=False)


def model_name(model: str | Path | None) -> str:
    """How to call a model on the page: a Hub id as it is, of a folder its name, never where it is."""
    if model is None:
        return "the small Fashion-MNIST model"
    return Path(model).resolve().name if Path(model).exists() else str(model)


# ---- handlers


def _wire_generate(engine: Engine, form: gr.HTML, stage: gr.HTML):
    async def run(values, request: gr.Request):
        async for value in stream_to_stage(engine, values, session_of(request)):
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
