"""The page: what a visitor sees, and which handler each part calls."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import gradio as gr

from ddpm_hf.ui.api import MODEL_QUEUE, add_api, session_of
from ddpm_hf.ui.calls import page_functions
from ddpm_hf.ui.comparison import stream_comparison
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.forward import stream_from
from ddpm_hf.ui.limits import MAX_QUEUE
from ddpm_hf.ui.runs import Engine, stream_to_stage
from ddpm_hf.ui.stage import make_part, make_stage, make_wire

TITLE = "Noise, becoming pictures"
PANELS = {
    "generate": "Generate",
    "compare": "Compare",
    "forward": "Forward",
    "theory": "How it works",
    "take-away": "Take away",
}


def build_page(engine: Engine, name: str) -> gr.Blocks:
    """The page, to be launched with ``look.launch_options()``. name: how the page calls the first model."""
    about = {"title": TITLE, "name": name, "panels": PANELS, "description": describe(engine)}
    with gr.Blocks(title=f"{TITLE} · {name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        make_part(
            "masthead(element, props, server)",
            about=about,
            server_functions=page_functions(engine),
            elem_id="masthead",
        )
        with gr.Column(elem_id="panel-generate"), gr.Row(elem_classes="workbench"):
            make_part("form(element)", elem_id="settings")
            stage = make_stage(elem_id="stage")
        with gr.Column(elem_id="panel-compare"):
            lanes = make_part("compare(element, props, watch)", elem_id="compare")
        with gr.Column(elem_id="panel-forward"), gr.Row(elem_classes="workbench"):
            make_part("forwardSettings(element)", elem_id="forward-settings")
            back = make_part("forward(element, props, watch)", elem_id="forward")
        with gr.Column(elem_id="panel-theory"):
            make_part("theory(element)", elem_id="theory")
        with gr.Column(elem_id="panel-take-away"):
            make_part("takeAway(element)", elem_id="take-away")
        _connect(engine, "generate", stream_to_stage, stage)
        _connect(engine, "compare", stream_comparison, lanes)
        _connect(engine, "denoise", stream_from, back)
        make_part("start()", elem_classes="wire")
        add_api(engine)
    return page.queue(max_size=MAX_QUEUE, api_open=False)


def model_name(model: str | Path | None) -> str:
    """How to call a model on the page: a Hub id as it is, of a folder its name, never where it is."""
    if model is None:
        return "the small Fashion-MNIST model"
    return Path(model).resolve().name if Path(model).exists() else str(model)


def _connect(engine: Engine, name: str, stream: Callable[..., AsyncIterator[dict]], output: gr.HTML):
    """``wires[name]`` of the script starts and stops ``stream(engine, values, session)``, which fills ``output``."""
    wire = make_wire(name)

    async def run(values, request: gr.Request):
        async for value in stream(engine, values, session_of(request)):
            yield value

    running = wire.submit(
        run,
        wire,
        output,
        preprocess=False,  # limits.py checks what came over the wire, with messages of its own
        trigger_mode="once",
        show_progress="hidden",
        api_visibility="private",
        **MODEL_QUEUE,
    )
    for end, well in ((running.success, "true"), (running.failure, "false")):
        end(None, js=f"() => {{ ddpm.wires['{name}'].over({well}) }}", queue=False)
    wire.stop(None, cancels=[running], queue=False)
