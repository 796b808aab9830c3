"""What the page's script needs to know of a model to build its controls and to tell of it."""

from ddpm_hf.errors import printable
from ddpm_hf.evaluation.report_schema import read_report
from ddpm_hf.pipeline import LONGEST_PROMPT
from ddpm_hf.reading import LARGEST_JSON, is_finite, read_text
from ddpm_hf.run import RunFolder
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.ui.examples import example_images
from ddpm_hf.ui.forward import schedule_curve
from ddpm_hf.ui.limits import DEFAULT_IMAGES, MAX_COMPARED, MAX_GUIDANCE, MAX_SEED
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.runs import Engine

SHOWN_LOSSES = 120
MOST_EXAMPLES, LONGEST_EXAMPLE = 6, 60  # prompts, and characters of one
PREDICTIONS = {"epsilon": "the noise ε", "v_prediction": "the velocity v", "sample": "the picture x₀"}


def describe(engine: Engine, name: str | None = None) -> dict:
    """The model called ``name``, loaded if need be, as JSON.

    Returns:
        {"model", "models": all names, "prompts": examples of what it can draw, or None of a model that reads no words,
        "classes": [{"name", "src": data URL or None}], "examples": as ``example_images``, "image_size": [width,
        height], "gray", "limits", "defaults", "samplers": [{"value", "title", "about", "fresh_noise"}], "schedule": as
        ``schedule_curve``, "prediction_type": as in diffusers, "card": {"url", "settings", "scores", "judged",
        "losses"}}.
    """
    model = engine.models.get(name)
    limits, examples = model.limits, example_images(engine, model.name)
    pictures = {example["name"]: example["src"] for example in examples}
    return {
        "model": model.name,
        "models": engine.models.names,
        "prompts": _prompts(model) if limits.words else None,
        "classes": [{"name": name, "src": pictures.get(name)} for name in limits.classes],
        "examples": examples,
        "image_size": model.image_size,
        "gray": model.mode == "L",
        "limits": {
            "max_images": limits.max_images,
            "max_compared": MAX_COMPARED,
            "max_steps": limits.max_steps,
            "max_guidance": MAX_GUIDANCE,
            "max_seed": MAX_SEED,
            "max_prompt": LONGEST_PROMPT,
        },
        "defaults": {
            "num_images": DEFAULT_IMAGES,
            "steps": limits.own.steps,
            "sampler": limits.own.sampler,
            "guidance_scale": limits.own.guidance_scale,
            "guidance_interval": limits.own.guidance_interval,
        },
        "samplers": [
            {
                "value": name,
                "title": sampler.title,
                "about": _sentence(sampler.about),
                "fresh_noise": sampler.fresh_noise,
            }
            for name, sampler in SAMPLERS.items()
        ],
        "schedule": schedule_curve(engine, model.name),
        "prediction_type": _prediction_type(model),
        "card": _card(model),
    }


def _prompts(model: Model) -> list[str]:
    """Of the run that made the model, where that is here."""
    prompts = RunFolder(model.folder).facts().prompts if model.folder else []
    shown = [prompt for prompt in prompts if 0 < len(prompt) <= LONGEST_EXAMPLE and prompt.isprintable()]
    return shown[:MOST_EXAMPLES]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


# ---- the model's card


def _card(model: Model) -> dict:
    """{"url": on the Hub, or None, "settings": [name, value] pairs, "scores": [name, value, that of real images or ""],
    "judged": how they came about, in words, "losses": [images seen, loss] pairs}."""
    return {
        "url": f"https://huggingface.co/{model.source}" if model.is_of_hub else None,
        "settings": _settings(model),
        **_scores(_file(model, "evaluation.json")),
        "losses": _losses(model),
    }


def _file(model: Model, name: str) -> str:
    """The text of a file of the model; "" where it has none, or it is not on this machine."""
    try:
        return read_text(model.folder / name, LARGEST_JSON) if model.folder else ""
    except (OSError, ValueError):
        return ""


def _settings(model: Model) -> list[list[str]]:
    network, process = model.pipeline.unet.config, model.pipeline.scheduler.config
    width, height = model.image_size
    blocks = " · ".join(map(str, network.get("block_out_channels", ())))  # a foreign network may have none
    rows = [
        ("Images", f"{width} x {height}, {'gray' if model.mode == 'L' else 'RGB'}"),
        ("Classes", str(len(model.limits.classes)) if model.limits.classes else "none"),
        ("Network", type(model.pipeline.unet).__name__),
        ("Parameters", f"{sum(p.numel() for p in model.pipeline.unet.parameters()) / 1e6:.1f} million"),
        ("Channels by level", blocks),
        ("Timesteps T", str(process.num_train_timesteps)),
        ("Schedule", f"{process.beta_schedule}, β from {process.beta_start:g} to {process.beta_end:g}"),
        ("The network predicts", PREDICTIONS.get(_prediction_type(model), _prediction_type(model))),
    ]
    return [[name, printable(value)] for name, value in rows if value]


def _prediction_type(model: Model) -> str:
    return printable(model.pipeline.scheduler.config.get("prediction_type", "epsilon"))


def _scores(text: str) -> dict:
    """ "scores" and "judged" of an evaluation.json; both empty for a file that is not as it should be."""
    try:
        report = read_report(text)
        return {
            "scores": [[row.title, row.value, row.real] for row in report.rows()],
            "judged": _judged(report.protocol),
        }
    except (ValueError, TypeError):
        return {"scores": [], "judged": ""}


def _judged(protocol: dict) -> str:
    """What the scores were computed from: without it they say nothing."""
    names, count = [protocol.get("dataset"), protocol.get("reference_split")], protocol.get("num_features")
    parts = [
        f"{protocol['num_images']:,} generated images against {protocol['reference_images']:,} real ones "
        f"({' '.join(filter(None, names)) or 'of an unnamed data set'})",
        f"in the space of {f'{count:,} ' if count else ''}features of the network {protocol['features']}, not "
        f"comparable with scores in another",
    ]
    if "sampler" in protocol:
        sampler = SAMPLERS.get(protocol["sampler"])
        how = [sampler.title if sampler else str(protocol["sampler"])]
        how += [f"{protocol['steps']} steps"] if "steps" in protocol else []
        how += [f"guidance {protocol['guidance_scale']:g}"] if protocol.get("guidance_scale") else []
        how += [f"guided timesteps {protocol['guidance_interval']}"] if protocol.get("guidance_interval") else []
        parts.append(f"made with {', '.join(how)}")
    return printable(f"{'; '.join(parts)}.")


def _losses(model: Model) -> list[list[float]]:
    """[images seen, loss] pairs of metrics.jsonl, about ``SHOWN_LOSSES`` of them. Lines without a loss are skipped."""
    lines = RunFolder(model.folder).lines(LARGEST_JSON) if model.folder else []
    pairs = [[line.get("images_seen"), line.get("loss")] for line in lines]
    pairs = [pair for pair in pairs if all(map(is_finite, pair)) and pair[1] > 0]
    return pairs[:: max(1, len(pairs) // SHOWN_LOSSES)]
