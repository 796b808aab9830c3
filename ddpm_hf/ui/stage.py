"""The stage: a canvas that shows the frames of a run while they arrive, and keeps them all."""

import gradio as gr

from ddpm_hf.ui.look import STATIC


def make_stage(**options) -> gr.HTML:
    """A canvas with a scrubber, a play button and a switch between x_t and the predicted x_0.

    Its value is a dict, of which the script keeps all frames it has seen of the newest run:

        run: id of the run.
        state: "running", "done", "stopped" or "failed".
        total, steps: number of frames after the first, and of steps asked for (fewer with two network calls a step).
        seconds: since the start of the run.
        tile: width and height of an image in pixels.
        seeds, names: for every image, its seed, and the name of its class or None.
        frames: by index, "0" being the noise, the newest ones: {"t": timestep, "at": seconds, "src": data URL of the
            images side by side, x_t above x_0}.

    A function, not a subclass of gr.HTML: for those Gradio writes a .pyi file beside the source.
    """
    return gr.HTML(
        html_template=(STATIC / "stage.html").read_text(),
        js_on_load=(STATIC / "stage.js").read_text(),
        apply_default_css=False,
        **options,
    )
