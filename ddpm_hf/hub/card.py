"""The model card: what a run says of itself, in the words of model_card.md. What is not known is left out."""

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from ddpm_hf.errors import printable
from ddpm_hf.evaluation.report_schema import TITLES, EvaluationReport
from ddpm_hf.hub.run_files import RunFiles, without_paths
from ddpm_hf.reading import is_finite, parse_yaml
from ddpm_hf.run import Facts

HERE = Path(__file__).resolve()
# the checkout's; a wheel has it beside this file
TEMPLATE = (
    HERE.with_name("model_card.md") if HERE.with_name("model_card.md").exists() else HERE.parents[2] / "model_card.md"
)
# how the card samples where the model has no sampling of its own: the default sampler and steps, in diffusers' terms
# (ddpm_hf.samplers, which torch comes with), and guidance at all timesteps, as the code of such models has no interval
STEPS, GUIDANCE = 20, 1.5
SAMPLER = {
    "timestep_spacing": "trailing",
    "algorithm_type": "sde-dpmsolver++",
    "thresholding": True,
    "sample_max_value": 1.0,
}
FACTS = ("mode", "device", "settings_from", "code")  # texts that the card shows
EXAMPLE_PROMPTS = ["a red apple"]  # of a model that reads words, whose run is not known
LONGEST_PROMPT = 200  # characters
MOST_IN_ROW = 4  # grids of the run's course
TAGS = ["diffusers", "ddpm", "ddpm_hf"]
SETTINGS = (  # of config.yaml, that the card shows
    *(
        "model",
        "block_out_channels",
        "layers_per_block",
        "attention_levels",
        "num_attention_heads",
        "patch_size",
        "residual",
        "dropout",
    ),
    *("num_epochs", "max_train_steps", "gradient_accumulation_steps", "snr_gamma"),
    *("prediction_type", "loss_type", "num_train_timesteps", "beta_start", "beta_end", "train_batch_size"),
    *("learning_rate", "lr_scheduler", "lr_warmup_steps", "adam_weight_decay", "max_grad_norm", "ema_max_decay"),
    *("mixed_precision", "class_dropout_prob", "horizontal_flip", "sample_size", "resize", "seed"),
    *("text_encoder", "caption_template"),
)
ONLY_WITH = {  # setting -> the other one, and its value, without which it does nothing
    "layers_per_block": ("model", "unet2d"),
    "num_epochs": ("max_train_steps", None),
    "snr_gamma": ("loss_type", "min_snr"),
    "class_dropout_prob": ("class_conditional", True),
}


def card_values(contents: RunFiles, license: str | None = None, dataset_license: str | None = None) -> dict[str, Any]:
    """What the template is filled with, besides the repository's name; JSON can hold it.

    Args:
        contents: of the run or pipeline.
        license: identifier of the weights' licence, such as apache-2.0; None leaves it to the owner.
        dataset_license: of images whose licence the Hub does not know.
    """
    unet, index, settings, facts = contents.unet, contents.index, contents.settings, contents.facts
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
        "words": bool(unet.get("cross_attention_dim")),
        "prompts": [printable(prompt, LONGEST_PROMPT) for prompt in facts.prompts if prompt.strip()] or EXAMPLE_PROMPTS,
        "classes_asked": _arguments(class_labels=_some_labels(num_classes), guidance_scale=GUIDANCE)
        if num_classes is not None
        else [],
        "own": _own_sampling(index),
        "teacher": without_paths(str(settings.get("distill_from") or "")),
        "steps": min(STEPS, timesteps) if isinstance(timesteps, int) else STEPS,
        "default_steps": STEPS,
        "guidance": GUIDANCE,
        "sampler": _arguments(**SAMPLER),
        "parameters": contents.parameters,
        "num_train_timesteps": timesteps,
        "prediction_type": contents.scheduler.get("prediction_type", "epsilon"),
        "data": [{"id": name} for name in facts.hub_datasets],
        "local_data": [without_paths(name) for name in _local_data(settings, facts.hub_datasets)],
        "settings": _shown_settings(settings),
        "metrics": {name: value for name, value in contents.metrics.items() if is_finite(value)},
        "has_facts": facts != Facts(),
        "hours": facts.wall_seconds and facts.wall_seconds / 3600,
        "facts": {name: without_paths(getattr(facts, name) or "") for name in FACTS} | {"images": facts.images},
        "evaluation": _evaluation(contents.evaluation) if contents.evaluation else {},
        "grids": contents.grids(),
        "progress": _progress(contents.grids()),
        "figures": [name for name in contents.files if name.endswith(".png") and "/" not in name],
    }


def _own_sampling(index: dict) -> dict:
    """Steps, guidance and interval that the model takes by itself; {} of one that has none of its own."""
    steps, scale, interval = (
        index.get(name) for name in ("num_inference_steps", "guidance_scale", "guidance_interval")
    )
    if not isinstance(steps, int):
        return {}
    scale = scale if is_finite(scale) and scale != 1 else None
    known = isinstance(interval, list) and len(interval) == 2 and all(map(is_finite, interval))
    return {"steps": steps, "guidance_scale": scale, "guidance_interval": interval if scale and known else None}


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


def writer_of_readme(values: dict[str, Any], own: str | None, present: str | None = None) -> str:
    """Whose README.md a repository is to have: that of the "folder", of the "repository", or the "card".

    What somebody has written stays, that of the folder before that of the repository. A card of ours in the folder is
    written anew for its repository where the facts of its run are beside it: without, it would say less.

    Args:
        values: of ``card_values``.
        own, present: the README.md in the folder and in the repository, None where there is none.
    """
    if own is not None and not (values["has_facts"] and is_ours(own)):
        return "folder"
    return "card" if present is None or is_ours(present) else "repository"


def is_ours(text: str) -> bool:
    """Whether a README.md is a card as we wrote it, or has metadata only: nobody's words are lost with it."""
    return is_sealed(text) or not re.sub(r"\A\s*---\r?\n.*?\n---\s*(\n|\Z)", "", text, flags=re.DOTALL).strip()


def is_sealed(text: str) -> bool:
    """Whether a README.md is a card as we wrote it."""
    body, _, seal = text.rstrip().rpartition("\n")
    return seal == _seal(body)


def given_in(text: str | None) -> dict[str, Any]:
    """What the owner of a repository says in the metadata of its README.md, and a new card keeps: licence and base."""
    found = re.match(r"\s*---[\r\n]+(.*?)[\r\n]+---(\r|\n|$)", text or "", re.DOTALL)
    try:
        data = parse_yaml(found[1]) if found else None
    except ValueError:
        data = None
    if not isinstance(data, dict):
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
        "pipeline_tag": "text-to-image" if values["words"] else "unconditional-image-generation",
        "widget": [{"text": prompt} for prompt in values["prompts"]] if values["words"] else None,
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
        card_data,
        template_path=str(TEMPLATE),
        **{**values, "repo_id": repo_id, "model_name": name},
        quoted=json.dumps(values["prompts"][0], ensure_ascii=False),
        shell_quoted=shlex.quote(values["prompts"][0]),
    )
    body = re.sub(r"\n{3,}", "\n\n", str(card)).rstrip()
    return f"{body}\n\n{_seal(body)}\n"


def _eval_results(values: dict) -> list:
    from huggingface_hub import EvalResult

    evaluation, data = values["evaluation"], values["data"]
    protocol = evaluation["protocol"]
    name = protocol.get("dataset", "unknown")
    how = f"{protocol['features']} features, {protocol['num_images']:,} images"
    return [
        EvalResult(
            task_type="text-to-image" if values["words"] else "unconditional-image-generation",
            # a data set that is not on the Hub has no identifier; its name stands for it
            dataset_type=next((entry["id"] for entry in data if entry["id"].split("/")[-1] == name), name),
            dataset_name=name,
            dataset_split=_reference_split(protocol),
            metric_type=TITLES[row["name"]].hub_type,
            metric_name=f"{TITLES[row['name']].metric} ({how})",
            metric_value=round(evaluation["scores"][row["name"]], 6),
        )
        for row in evaluation["rows"]
    ]


def _reference_split(protocol: dict) -> str | None:
    """The split that a model was compared with, where it is one of the data set's own."""
    split = str(protocol.get("reference_split"))
    return split if re.fullmatch(r"[\w\[\]:%+-]+", split) and split not in ("None", "auto") else None


def _evaluation(report: EvaluationReport) -> dict:
    """What the card shows of a report of ``evaluate``; {} if no score is known."""
    rows = [row._asdict() for row in report.rows()]
    protocol = {name: without_paths(v) if isinstance(v, str) else v for name, v in report.protocol.items()}
    rest = report.model_dump(include={"scores", "memorisation", "findings"})
    return {"rows": rows, "protocol": protocol, **rest} if rows else {}


def _local_data(settings: dict, hub: list[str]) -> list[str]:
    """Names of data sets that are no Hub ids, as far as the settings tell."""
    sources = settings.get("datasets") or [settings.get("dataset")]
    names = [source.get("dataset") if isinstance(source, dict) else source for source in sources]
    return [name for name in names if isinstance(name, str) and name not in hub]
