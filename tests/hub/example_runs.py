"""Runs as far as a push reads them, and the card that it makes of them."""

from pathlib import Path

from helpers import tiny_pipeline
from huggingface_hub import HfApi, ModelCard
from PIL import Image

from ddpm_hf.hub import export_pipeline

NAMES = {"0": "sun", "1": "moon"}
EVALUATION = {
    "protocol": {
        "dataset": "shapes",
        "num_images": 100,
        "reference_images": 90,
        "features": "fashion-mnist",
        "sampler": "dpm",
        "steps": 20,
        "seed": 0,
        "reference_split": "test",
        "command": "python -m ddpm_hf evaluate /home/me/runs/x --num-images 100 --output evaluation.json",
    },
    "scores": {"fid": 12.5, "kid": 0.25, "label_accuracy": None},
    "floor": {"fid": 3.5},
    "memorisation": {"ratio": 0.9},
    "findings": ["collapsed: recall 0.5"],
}
FACTS = {
    "images": 1000,
    "mode": "gray",
    "device": "2 x GPU 9000",
    "wall_seconds": 95400.0,
    "code": "0123abc",
    "hub_datasets": ["alice/shapes", "alice/secret"],
}


def a_run(folder: Path, **pipeline) -> Path:
    export_pipeline(folder / "pipeline", tiny_pipeline(**pipeline))
    settings = (
        "dataset: alice/shapes\noutput_dir: /home/me/My runs/x\nseed: 0\nlearning_rate: 0.001\nhorizontal_flip: false\n"
    )
    (folder / "config.yaml").write_text(settings)
    (folder / "metrics.jsonl").write_text('{"step": 1200, "loss": 0.125, "images_seen": 76800}\n{"step": 1300, "lo')
    (folder / "samples").mkdir()
    for name in ("samples/step-0001200.png", "samples/step-0001300.png", "loss.png"):
        Image.new("L", (8, 8)).save(folder / name)
    return folder


def card_of(hub, name="alice/m") -> ModelCard:
    text = hub.repos["model", name].resolve("main").files["README.md"].data.decode()
    HfApi()._validate_yaml(text)  # by the Hub's own check, here the double's
    return ModelCard(text)
