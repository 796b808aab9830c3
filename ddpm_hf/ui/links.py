"""A run as a link, and as code that makes the same images elsewhere."""

import json
from urllib.parse import parse_qsl, urlencode

from ddpm_hf.errors import UserError
from ddpm_hf.samplers import SAMPLERS, make_scheduler
from ddpm_hf.sampling import interval_text
from ddpm_hf.ui.files import settings_values
from ddpm_hf.ui.limits import request_of
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.runs import SETTINGS, Engine
from ddpm_hf.ui.start import checked
from ddpm_hf.ui.tasks import labels_of

MAX_QUERY = 200_000  # characters: pictures may be in it
READ = {  # from the text in a link
    "guidance_scale": float,
    "guidance_interval": lambda text: [float(part) for part in text.split(",")],
    "num_images": int,
    "steps": int,
    "seed": int,
    "t": int,
    "example": int,
    "to_example": int,
}
SNIPPETS = ("diffusers", "gradio_client", "curl")
SNIPPETS_OF_STARTS = SNIPPETS[1:]  # a picture would be most of the code
EMBEDDED_SOURCE = "pretrained/fashion_mnist_small"
LOCAL_URL = "http://127.0.0.1:7860"


def query_of(settings: dict) -> str:
    """The query of a link that reproduces a run; settings as in a stage's value."""
    return urlencode({key: _short(settings[key]) for key in SETTINGS if settings.get(key) is not None})


def _short(value) -> str:
    if isinstance(value, list | tuple):
        return interval_text(value)
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def settings_of_query(engine: Engine, query: str) -> dict:
    """Checked settings from the query of a link; what it does not name has its default.

    Raises:
        UserError: with one line for the visitor.
    """
    if not isinstance(query, str) or len(query) > MAX_QUERY:
        raise UserError("this link is too long.")
    pairs = dict(parse_qsl(query.removeprefix("?")))
    values = {key: _value(key, text) for key, text in pairs.items() if key in SETTINGS}
    return checked_settings(engine, values)


def _value(key: str, text: str):
    """What a text in a link stands for; a text that is no number stays, and is refused with the others."""
    try:
        return READ.get(key, str)(text)
    except ValueError:
        return text


def checked_settings(engine: Engine, values) -> dict:
    """All settings of a run from some that came from outside.

    Raises:
        UserError: naming the first that is not allowed, and what is.
    """
    values = request_of(values, SETTINGS)
    model = engine.models.get(values.pop("model", None))
    return settings_values(model, checked(model, values))


# ---- code


def snippet(engine: Engine, settings: dict, kind: str, url: str = LOCAL_URL) -> str:
    """Code that makes the images of ``settings``, which are those of a stage's value.

    Args:
        kind: "diffusers", "gradio_client" or "curl". url: where this app is reached.

    Raises:
        UserError: with one line for the visitor.
    """
    if kind not in SNIPPETS:
        raise UserError(f"code comes for {', '.join(SNIPPETS)}.")
    settings = checked_settings(engine, settings)
    if "t" in settings and kind not in SNIPPETS_OF_STARTS:
        raise UserError(f"the code of a run from a picture comes for {', '.join(SNIPPETS_OF_STARTS)}.")
    model = engine.models.get(settings["model"])
    if kind == "diffusers":
        return _diffusers_code(model, settings)
    arguments = {key: settings[key] for key in SETTINGS if key in settings and key in _api_names(engine)}
    name = "vary" if "t" in settings else "generate"
    return (_client_code if kind == "gradio_client" else _curl_code)(name, arguments, url.rstrip("/"))


def _api_names(engine: Engine) -> list[str]:
    """Parameters of the endpoint that say something: which model, only where there are several."""
    return [key for key in SETTINGS if key != "model" or len(engine.models.names) > 1]


def _client_code(name: str, arguments: dict, url: str) -> str:
    lines = "".join(f"    {key}={value!r},\n" for key, value in arguments.items())
    return f"""import base64
from gradio_client import Client

answer = Client({url!r}).predict(
{lines}    api_name="/{name}",
)
for image in answer["images"]:
    with open(f"{{image['seed']}}.png", "wb") as file:
        file.write(base64.b64decode(image["png"]))
"""


def _curl_code(name: str, arguments: dict, url: str) -> str:
    # the shell's quotes hold everything but a quote of their own
    body = json.dumps(arguments).replace("'", "'\\''")
    return f"""EVENT=$(curl -s {url}/gradio_api/call/v2/{name} -H 'Content-Type: application/json' \\
  -d '{body}' | cut -d '"' -f 4)
curl -sN {url}/gradio_api/call/{name}/$EVENT
"""


def _diffusers_code(model: Model, settings: dict) -> str:
    asked = checked(model, settings)
    sampler = SAMPLERS[settings["sampler"]]
    labels = labels_of(model.pipeline, asked)
    ours = model.pipeline.unet.__class__.__module__.startswith("ddpm_hf")
    scheduler = type(make_scheduler(settings["sampler"], model.pipeline.scheduler))
    own = scheduler.__module__.startswith("ddpm_hf")
    name = scheduler.__name__
    options = "".join(f", {key}={value!r}" for key, value in sampler.settings.items())
    source = source_of(model)
    dtype = model.pipeline.unet.dtype
    calls = [f"batch_size={asked.num_images}"]
    if labels is not None:
        calls.append(f"class_labels={labels if len(set(labels)) > 1 else labels[0]}")
    if asked.prompt is not None:
        calls.append(f"prompt={asked.prompt!r}")
    if model.limits.guided:
        calls.append(f"guidance_scale={asked.guidance_scale:g}")
        calls.append(f"guidance_interval={asked.guidance_interval}")
    calls += [f"num_inference_steps={asked.steps}", f"seed={asked.seed}"]
    imports = "" if own else f"from diffusers import {name}\n"
    torch_line, load_dtype = "", ""
    if str(dtype) != "torch.float32":
        torch_line, load_dtype = "import torch\n", f", {'torch_dtype' if ours else 'dtype'}={dtype}"
    if ours:
        loading = f"DiffusionPipeline.from_pretrained({source!r}, trust_remote_code=True{load_dtype})"
        imports = f"{torch_line}from diffusers import DiffusionPipeline{'' if own else ', ' + name}\n"
    else:
        loading = f"load_pipeline({source!r}{load_dtype})"
        imports = f"{torch_line}{imports}from ddpm_hf import load_pipeline{', ' + name if own else ''}\n"
    setter = "type(pipeline.scheduler)" if own and ours else name
    return f"""{imports}
pipeline = {loading}
pipeline.scheduler = {setter}.from_config(pipeline.scheduler.config{options})
images = pipeline({", ".join(calls)}).images
"""


def source_of(model: Model) -> str:
    """What others load the model by: a Hub id, or a folder's name, never where it is here."""
    return EMBEDDED_SOURCE if model.source is None else model.name
