"""The model card: what a run says of itself, in the words of model_card.md. What is not known is left out."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ddpm_hf.hub.contents import Contents, without_paths
from ddpm_hf.hub.evaluations import is_finite

HERE = Path(__file__).resolve()
# the checkout's; a wheel has it beside this file
TEMPLATE = (
    HERE.with_name("model_card.md") if HERE.with_name("model_card.md").exists() else HERE.parents[2] / "model_card.md"
)
# how the card samples: the defaults of ``sample``, in diffusers' terms (ddpm_hf.samplers, which torch comes with)
STEPS, GUIDANCE = 20, 1.5
SAMPLER = {
    "timestep_spacing": "trailing",
    "algorithm_type": "sde-dpmsolver++",
    "thresholding": True,
    "sample_max_value": 1.0,
}
MOST_IN_ROW = 4  # grids of the run's course
TAGS = ["diffusers", "ddpm", "ddpm_hf"]
# name in a report -> (type of the metric, its name)
METRICS = {
    "fid": ("fid", "FID"),
    "kid": ("kid", "KID"),
    "precision": ("precision", "Precision"),
    "recall": ("recall", "Recall"),
    "inception_score": ("inception_score", "Inception score"),
    "label_accuracy": ("accuracy", "Label accuracy"),
}
SETTINGS = (  # of config.yaml, that the card shows
    *(
        "model",
        "block_out_channels",
        "layers_per_block",
        "attention_levels",
        "num_attention_heads",
        "residual",
        "dropout",
    ),
    *("num_epochs", "max_train_steps", "gradient_accumulation_steps", "snr_gamma"),
    *("prediction_type", "loss_type", "num_train_timesteps", "beta_start", "beta_end", "train_batch_size"),
    *("learning_rate", "lr_scheduler", "lr_warmup_steps", "adam_weight_decay", "max_grad_norm", "ema_max_decay"),
    *("mixed_precision", "class_dropout_prob", "horizontal_flip", "sample_size", "resize", "seed"),
)
ONLY_WITH = {  # setting -> the other one, and its value, without which it does nothing
    "layers_per_block": ("model", "unet2d"),
    "num_epochs": ("max_train_steps", None),
    "snr_gamma": ("loss_type", "min_snr"),
    "class_dropout_prob": ("class_conditional", True),
}


def card_values(contents: Contents, license: str | None = None, dataset_license: str | None = None) -> dict[str, Any]:
    """What the template is filled with, besides the repository's name; JSON can hold it.

    Args:
        contents: of the run or pipeline.
        license: identifier of the weights' licence, such as apache-2.0; None leaves it to the owner.
        dataset_license: of images whose licence the Hub does not know.
    """
    unet, index, settings = contents.unet, contents.index, contents.settings
    sides = unet.get("sample_size")
    height, width = (sides, sides) if isinstance(sides, int) else sides or (None, None)
    labels = index.get("id2label")
    labels = labels if isinstance(labels, dict) else {}
    timesteps = contents.scheduler.get("num_train_timesteps")
    num_classes = unet.get("num_class_embeds")
    return {
        "license": license,
        "dataset_license": dataset_license,
        "base_model": contents.base_model,
        "stock": index.get("_class_name") == "DDPMPipeline",
        "channels": unet.get("out_channels"),
        "height": index.get("output_height") or height,
        "width": index.get("output_width") or width,
        "classes": [name for _, name in sorted(labels.items(), key=_place_of_label)],
        "conditional": num_classes is not None,
        "classes_asked": _arguments(class_labels=_some_labels(num_classes), guidance_scale=GUIDANCE)
        if num_classes is not None
        else [],
        "steps": min(STEPS, timesteps) if isinstance(timesteps, int) else STEPS,
        "default_steps": STEPS,
        "sampler": _arguments(**SAMPLER),
        "parameters": contents.parameters,
        "num_train_timesteps": timesteps,
        "prediction_type": contents.scheduler.get("prediction_type", "epsilon"),
        "data": [{"id": name} for name in _lines(contents.facts.get("Hub data sets"))],
        "local_data": [without_paths(name) for name in _local_data(settings, contents.facts)],
        "settings": _shown_settings(settings),
        "metrics": {name: value for name, value in contents.metrics.items() if isinstance(value, (int, float))},
        "hours": _hours(contents.facts.get("Wall time")),
        "facts": {name: without_paths(str(value)) for name, value in contents.facts.items()},
        "evaluation": _evaluation(contents.evaluation),
        "grids": contents.grids(),
        "progress": _progress(contents.grids()),
        "figures": [name for name in contents.files if name.endswith(".png") and "/" not in name],
    }


def _progress(grids: list[str]) -> list[tuple[str, int]]:
    """Grids from the first to the last, few enough for a row, and their steps."""
    last = len(grids) - 1
    chosen = [grids[round(i * last / (MOST_IN_ROW - 1))] for i in range(MOST_IN_ROW)] if last >= MOST_IN_ROW else grids
    steps = [re.fullmatch(r"samples/step-(\d+)\.png", name) for name in chosen]
    return [(name, int(step[1])) for name, step in zip(chosen, steps) if step]


def _shown_settings(settings: dict) -> dict:
    """The settings that are in force, in the card's order."""
    shown = {
        name: settings[name] for name in SETTINGS if settings.get(name) is not None and settings[name] is not False
    }
    for name, (other, value) in ONLY_WITH.items():
        if settings.get(other) != value:
            shown.pop(name, None)
    return shown


def _arguments(**values) -> list[str]:
    """In Python, as one writes it."""
    return [f"{name}={json.dumps(value) if isinstance(value, str) else repr(value)}" for name, value in values.items()]


def _some_labels(num_classes) -> list[int]:
    """Of four images."""
    return [label % num_classes for label in range(4)] if isinstance(num_classes, int) and num_classes > 0 else [0] * 4


def _place_of_label(item: tuple[str, Any]) -> tuple:
    label = item[0]
    return (0, int(label), "") if label.isdecimal() else (1, 0, label)


def is_ours(text: str) -> bool:
    """Whether a README.md is a card as we wrote it, or has metadata only: nobody's words are lost with it."""
    body, _, seal = text.rstrip().rpartition("\n")
    if seal == _seal(body):
        return True
    return not re.sub(r"\A\s*---\r?\n.*?\n---\s*(\n|\Z)", "", text, flags=re.DOTALL).strip()


def given_in(text: str | None) -> dict[str, Any]:
    """What the owner of a repository says in the metadata of its README.md, and a new card keeps: licence and base."""
    from huggingface_hub import ModelCard

    if not (text or "").lstrip().startswith("---"):
        return {}
    try:
        data = ModelCard(text, ignore_metadata_errors=True).data
    except ValueError:
        return {}
    license, base = data.get("license"), data.get("base_model")
    base = base if isinstance(base, str) or (isinstance(base, list) and all(isinstance(b, str) for b in base)) else None
    return {"license": license if isinstance(license, str) else None, "base_model": base}


def _seal(body: str) -> str:
    """The last line of a card, by which one that somebody has changed is known."""
    digest = hashlib.sha256(body.strip().encode()).hexdigest()[:16]
    return f"<!-- written by ddpm_hf ({digest}); once changed, it is left alone -->"


def render_card(values: dict[str, Any], repo_id: str) -> str:
    """The text of README.md.

    Args:
        values: of ``card_values``; an entry of ``data`` may also have the ``license`` of a data set.
        repo_id: name/model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    name = repo_id.split("/")[-1]
    metadata = {
        "license": values["license"],
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": TAGS + ["class-conditional"] * values["conditional"],
        "base_model": values["base_model"] if values["base_model"] != repo_id else None,
        "datasets": [data["id"] for data in values["data"]] or None,
    }
    if values["evaluation"]:
        results = _eval_results(values)
        metadata |= {
            "model_name": name,
            "eval_results": results,
            "metrics": sorted({result.metric_type for result in results}),
        }
    card_data = ModelCardData(**{key: value for key, value in metadata.items() if value is not None})
    card = ModelCard.from_template(
        card_data, template_path=str(TEMPLATE), **{**values, "repo_id": repo_id, "model_name": name}
    )
    body = re.sub(r"\n{3,}", "\n\n", str(card)).rstrip()
    return f"{body}\n\n{_seal(body)}\n"


def _eval_results(values: dict) -> list:
    from huggingface_hub import EvalResult

    protocol, data = values["evaluation"]["protocol"], values["data"]
    name = str(protocol.get("dataset", "unknown"))
    # a data set that is not on the Hub has no identifier; its name stands for it
    dataset = next((entry["id"] for entry in data if entry["id"].split("/")[-1] == name), name)
    how = f"{protocol.get('features', '?')} features, {protocol.get('num_images', 0):,} images"
    return [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=dataset,
            dataset_name=name,
            dataset_split=_reference_split(protocol),
            metric_type=METRICS[metric][0],
            metric_name=f"{METRICS[metric][1]} ({how})",
            metric_value=round(row["value"], 6),
        )
        for metric, row in values["evaluation"]["rows"].items()
    ]


def _reference_split(protocol: dict) -> str | None:
    """The split that a model was compared with, where it is one of the data set's own."""
    split = str(protocol.get("reference_split"))
    return split if re.fullmatch(r"[\w\[\]:%+-]+", split) and split not in ("None", "auto") else None


def _evaluation(report: dict) -> dict:
    """Scores beside those of real images, and the protocol, of a report of ``evaluate``; {} if there is none."""
    if not report:
        return {}
    scores, floor, memorisation = (
        {name: value for name, value in report.get(part, {}).items() if is_finite(value)}
        for part in ("scores", "floor", "memorisation")
    )
    rows = {
        name: {"title": METRICS[name][1], "value": scores[name], "real": floor.get(name)}
        for name in METRICS
        if name in scores
    }
    protocol = {name: without_paths(v) if isinstance(v, str) else v for name, v in report["protocol"].items()}
    rest = {"memorisation": memorisation, "findings": report.get("findings", [])}
    return {"rows": rows, "protocol": protocol, **rest} if rows else {}


def _hours(wall_time: str | None) -> float | None:
    """Hours of a time such as '1 day, 2:03:04'."""
    found = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", wall_time or "")
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 24 + hours + minutes / 60 + seconds / 3600


def _lines(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _local_data(settings: dict, facts: dict) -> list[str]:
    """Names of data sets that are no Hub ids, as far as the settings tell."""
    sources = settings.get("datasets") or [settings.get("dataset")]
    names = [source.get("dataset") if isinstance(source, dict) else source for source in sources]
    hub = _lines(facts.get("Hub data sets"))
    return [name for name in names if isinstance(name, str) and name not in hub]
