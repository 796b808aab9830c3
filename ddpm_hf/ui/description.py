"""What the page's script needs to know of a model to build its controls and to tell of it."""

import json

from ddpm_hf.samplers import DEFAULT_SAMPLER, SAMPLERS
from ddpm_hf.ui.examples import example_images
from ddpm_hf.ui.forward import schedule_curve
from ddpm_hf.ui.limits import DEFAULT_IMAGES, MAX_COMPARED, MAX_GUIDANCE, MAX_SEED
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.runs import Engine

SHOWN_LOSSES = 120
# title, factor, and format of each
SCORES = {
    "fid": ("FID", 1, ".2f"),
    "kid": ("KID x 1000", 1000, ".1f"),
    "precision": ("Precision", 1, ".3f"),
    "recall": ("Recall", 1, ".3f"),
    "inception_score": ("Inception score", 1, ".2f"),
    "label_accuracy": ("Classes recognised", 1, ".1%"),
}
PREDICTIONS = {"epsilon": "the noise ε", "v_prediction": "the velocity v", "sample": "the picture x₀"}


def describe(engine: Engine, name: str | None = None) -> dict:
    """The model called ``name``, loaded if need be, as JSON.

    Returns:
        {"model", "models": all names, "classes": [{"name", "src": data URL or None}], "examples": as
        ``example_images``, "limits", "defaults", "samplers": [{"value", "title", "about", "fresh_noise"}], "schedule":
        as ``schedule_curve``, "prediction_type": as in diffusers, "card": {"url", "settings", "scores", "judged",
        "losses"}}.
    """
    model = engine.models.get(name)
    limits, examples = model.limits, example_images(engine, model.name)
    pictures = {example["name"]: example["src"] for example in examples}
    return {
        "model": model.name,
        "models": engine.models.names,
        "classes": [{"name": name, "src": pictures.get(name)} for name in limits.classes],
        "examples": examples,
        "limits": {
            "max_images": limits.max_images,
            "max_compared": MAX_COMPARED,
            "max_steps": limits.max_steps,
            "max_guidance": MAX_GUIDANCE,
            "max_seed": MAX_SEED,
        },
        "defaults": {
            "num_images": DEFAULT_IMAGES,
            "steps": limits.default_steps,
            "sampler": DEFAULT_SAMPLER,
            "guidance_scale": limits.default_guidance,
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
        "losses": _losses(_file(model, "metrics.jsonl")),
    }


def _file(model: Model, name: str) -> str:
    """The text of a file of the model; "" where it has none, or it is not on this machine."""
    try:
        return (model.folder / name).read_text() if model.folder else ""
    except (OSError, UnicodeDecodeError):
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
    return [list(row) for row in rows if row[1]]


def _prediction_type(model: Model) -> str:
    return str(model.pipeline.scheduler.config.get("prediction_type", "epsilon"))


def _scores(text: str) -> dict:
    """ "scores" and "judged" of an evaluation.json; both empty for a file that is not as it should be."""
    try:
        report = json.loads(text)
        scores, floor = report["scores"], report.get("floor") or {}
        rows = [
            [title, f"{factor * scores[key]:{style}}", "" if real is None else f"{factor * real:{style}}"]
            for key, (title, factor, style) in SCORES.items()
            for real in [floor.get(key)]
            if scores.get(key) is not None
        ]
        return {"scores": rows, "judged": _judged(report.get("protocol") or {})}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"scores": [], "judged": ""}


def _judged(protocol: dict) -> str:
    """What the scores were computed from: without it they say nothing."""
    parts = [f"{protocol['num_images']:,} generated images"] if "num_images" in protocol else []
    if "reference_images" in protocol:
        names = [protocol.get("dataset"), protocol.get("reference_split")]
        parts.append(f"against {protocol['reference_images']:,} real ones ({' '.join(filter(None, names))})")
    if "features" in protocol:
        count = protocol.get("num_features")
        space = f"in the space of {f'{count:,} ' if count else ''}features of the network {protocol['features']}"
        parts.append(f"{space}, not comparable with scores in another")
    if "sampler" in protocol:
        sampler = SAMPLERS.get(protocol["sampler"])
        how = [sampler.title if sampler else str(protocol["sampler"])]
        how += [f"{protocol['steps']} steps"] if "steps" in protocol else []
        how += [f"guidance {protocol['guidance_scale']:g}"] if protocol.get("guidance_scale") else []
        parts.append(f"made with {', '.join(how)}")
    return f"{'; '.join(parts)}.".replace("; against", " against") if parts else ""


def _losses(text: str) -> list[list[float]]:
    """[images seen, loss] pairs of metrics.jsonl, some ``SHOWN_LOSSES`` of them; [] for a file that is no such."""
    try:
        rows = [json.loads(line) for line in text.splitlines()]
        pairs = [[row["images_seen"], row["loss"]] for row in rows if row.get("loss", 0) > 0]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return pairs[:: max(1, len(pairs) // SHOWN_LOSSES)]
