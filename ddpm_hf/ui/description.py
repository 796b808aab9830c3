"""What the page's script needs to know of a model to build its controls and to tell of it."""

import json
from pathlib import Path

from ddpm_hf.hub import EMBEDDED_MODEL
from ddpm_hf.samplers import DEFAULT_SAMPLER, SAMPLERS
from ddpm_hf.ui.examples import example_images
from ddpm_hf.ui.forward import schedule_curve
from ddpm_hf.ui.limits import DEFAULT_IMAGES, MAX_COMPARED, MAX_GUIDANCE, MAX_SEED
from ddpm_hf.ui.models import Model
from ddpm_hf.ui.runs import Engine

SHOWN_LOSSES = 120
SCORES = {
    "fid": "FID",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "inception_score": "Inception score",
    "label_accuracy": "Classes recognised",
}


def describe(engine: Engine, name: str | None = None) -> dict:
    """The model called ``name``, loaded if need be, as JSON.

    Returns:
        {"model", "models": all names, "classes": [{"name", "src": data URL or None}], "examples": as
        ``example_images``, "limits", "defaults", "samplers": [{"value", "title", "about"}], "schedule": as
        ``schedule_curve``, "card": {"url", "settings", "scores", "losses"}}.
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
            {"value": name, "title": sampler.title, "about": _sentence(sampler.about)}
            for name, sampler in SAMPLERS.items()
        ],
        "schedule": schedule_curve(engine, model.name),
        "card": _card(model),
    }


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


# ---- the model's card


def _card(model: Model) -> dict:
    """{"url": on the Hub, or None, "settings", "scores": [name, value] pairs, "losses": [images seen, loss] pairs}."""
    folder = _folder(model)
    on_hub = model.source is not None and folder is None
    return {
        "url": f"https://huggingface.co/{model.source}" if on_hub else None,
        "settings": _settings(model),
        "scores": _scores(_file(model, folder, "evaluation.json")),
        "losses": _losses(_file(model, folder, "metrics.jsonl")),
    }


def _folder(model: Model) -> Path | None:
    """Where the model lies on this machine, None for one of the Hub."""
    folder = EMBEDDED_MODEL if model.source is None else Path(model.source)
    return folder if folder.is_dir() else None


def _file(model: Model, folder: Path | None, name: str) -> str:
    """The text of a file of the model; "" where it has none, or it is not on this machine."""
    if folder is None:  # in the cache, the folder of the commit that was loaded
        origin = model.pipeline.unet.config.get("_name_or_path")
        folder = Path(origin).parent if origin else None
    try:
        return (folder / name).read_text() if folder else ""
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
        ("Prediction", str(process.get("prediction_type", "epsilon"))),
    ]
    return [list(row) for row in rows if row[1]]


def _scores(text: str) -> list[list[str]]:
    """What evaluation.json says, each score beside that of real images; [] for a file that is not as it should be."""
    try:
        report = json.loads(text)
        scores, floor = report["scores"], report.get("floor") or {}
        rows = [
            [title, _beside(scores[key], floor.get(key))]
            for key, title in SCORES.items()
            if scores.get(key) is not None
        ]
        count = report.get("protocol", {}).get("num_images")
        return rows + ([["Judged on", f"{int(count):,} images"]] if count else [])
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _beside(value: float, of_real: float | None) -> str:
    return f"{value:.3g}" if of_real is None else f"{value:.3g} (real images: {of_real:.3g})"


def _losses(text: str) -> list[list[float]]:
    """[images seen, loss] pairs of metrics.jsonl, some ``SHOWN_LOSSES`` of them; [] for a file that is no such."""
    try:
        rows = [json.loads(line) for line in text.splitlines()]
        pairs = [[row["images_seen"], row["loss"]] for row in rows if row.get("loss", 0) > 0]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return pairs[:: max(1, len(pairs) // SHOWN_LOSSES)]
