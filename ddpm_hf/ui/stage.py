"""The page's own components: a tag each that a function of static/main.js fills."""

import gradio as gr


def make_stage(**options) -> gr.HTML:
    """A canvas with a scrubber, a play button and a switch between x_t and the predicted x_0.

    Its value is a dict, of which the script keeps all frames it has seen of the newest run:

        run: id of the run.
        state: "waiting", "running", "done", "stopped" or "failed".
        queue: while waiting, the place in the queue in words.
        total, steps: number of frames after the first, and of steps asked for (fewer with two network calls a step).
        seconds: since the start of the run. cached: whether it was answered from memory.
        tile: width and height of an image in pixels.
        seeds, names: for every image, its seed, and the name of its class or None.
        settings: the checked request.
        frames: by index, "0" being the noise, the newest ones: {"t": timestep of x_t, None for the finished images,
            "at": seconds, "src": data URL of the images side by side, x_t above the x_0 predicted from it}; see
            ``tasks.Frame``. "0" comes twice, without and with its x_0, all others once.
    """
    return make_part("stage(element, props, watch)", **options)


def make_wire(name: str) -> gr.HTML:
    """A component that is not seen: its value is a request of the script's, its submit and stop events start and end
    what that asks for."""
    return make_part(f"wire('{name}', props, trigger)", elem_classes="wire")


def make_part(call: str, **options) -> gr.HTML:
    """A component that the call ``ddpm.<call>`` fills, with ``element``, ``props``, ``trigger``, ``server``, ``watch``.

    A function, not a subclass of gr.HTML: for those Gradio writes a .pyi file beside the source.
    """
    # the template stays small: Gradio compiles it anew for every value
    return gr.HTML(html_template="<div></div>", js_on_load=f"ddpm.{call}", apply_default_css=False, **options)
