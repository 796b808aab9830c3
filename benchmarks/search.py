"""Small networks and settings compared at equal training time, for the model that ships.

    python -m benchmarks.search --dataset DIR --minutes 8 [--only base v-prediction ...]

Every variant is timed for some steps, trained by train.py for as many as fit in the time, and scored by
``python -m ddpm_hf evaluate``. Lines of the table are appended to ``--output`` as they come; variants that are there
already are left out, so the same command goes on. Two of these may share a machine if each has its own --only and one
thread (OMP_NUM_THREADS=1).
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE_STEPS = 40

BASE = {
    "class_conditional": True,
    "block_out_channels": [32, 64, 128, 256],
    "attention_levels": [1, 2, 3],
    "num_attention_heads": 1,
    "feed_forward_dim": 512,
    "residual": True,
    "normalize_input": False,
    "lr_warmup_steps": 100,
    "report_to": "none",
}
# settings that change what a step costs
NETWORK = {"block_out_channels", "attention_levels", "residual", "normalize_input", "train_batch_size"}
CHOSEN = {"attention_levels": [2], "prediction_type": "v_prediction"}
VARIANTS = {
    "base": {},
    "seed's block": {"residual": False, "normalize_input": True},
    "attention at 8 and 4": {"attention_levels": [2, 3]},
    "attention at 8": {"attention_levels": [2]},
    "wide and shallow": {"block_out_channels": [48, 96, 192], "attention_levels": [2], "norm_num_groups": 8},
    "narrow": {"block_out_channels": [24, 48, 96, 192], "attention_levels": [2, 3]},
    "v-prediction": {"prediction_type": "v_prediction"},
    "min-SNR": {"loss_type": "min_snr"},
    # what the first round chose, and what was tried on top of it
    "chosen": CHOSEN,
    "chosen, min-SNR": {**CHOSEN, "loss_type": "min_snr"},
    "chosen, learning rate 2e-3": {**CHOSEN, "learning_rate": 2e-3},
    "chosen, learning rate 5e-4": {**CHOSEN, "learning_rate": 5e-4},
    "chosen, batch 32": {**CHOSEN, "train_batch_size": 32},
    "chosen, batch 128": {**CHOSEN, "train_batch_size": 128},
    "chosen, short average": {**CHOSEN, "ema_max_decay": 0.99},
}


def arguments_of(settings: dict) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", json.dumps(value).strip('"'))]


def train(dataset: str, settings: dict, steps: int, folder: Path) -> dict:
    """Train and return the last line of metrics.jsonl."""
    pace = {"logging_steps": 10, "validation_steps": 10**6, "sample_steps": 10**6, "checkpointing_steps": 10**6}
    settings = {**BASE, **settings, **pace, "max_train_steps": steps, "output_dir": str(folder), "dataset": dataset}
    subprocess.run([sys.executable, "train.py", *arguments_of(settings)], cwd=ROOT, check=True)
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def images_per_second(folder: Path) -> float:
    """The median over the probe's lines but the first."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(line["images_per_second"] for line in lines[1:] if "images_per_second" in line)
    return rates[len(rates) // 2]


def evaluate(run: Path, dataset: str, num_images: int, steps: int) -> dict:
    report = run / "score.json"
    command = [sys.executable, "-m", "ddpm_hf", "evaluate", str(run), "--dataset", dataset, "--no-figures"]
    options = ["--num-images", str(num_images), "--steps", str(steps), "--output", str(report)]
    subprocess.run([*command, *options], cwd=ROOT, check=True)
    return json.loads(report.read_text())["scores"]


def probe(settings: dict, done: list[dict], dataset: str, folder: Path) -> float:
    """Images a second: what was measured for a variant of the same network and batch, or measured now."""
    for line in done:
        if _costs(VARIANTS[line["variant"]]) == _costs(settings):
            return line["images_per_second"]
    train(dataset, settings, PROBE_STEPS, folder)
    rate = images_per_second(folder)
    shutil.rmtree(folder)
    return rate


def _costs(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name in NETWORK}


def run_variant(name: str, options, done: list[dict]) -> dict:
    settings, folder = VARIANTS[name], options.folder / name.replace(" ", "-").replace("'", "")
    shutil.rmtree(folder, ignore_errors=True)
    rate = probe(settings, done, options.dataset, folder)
    batch = settings.get("train_batch_size", 64)
    steps = round(options.minutes * 60 * rate / batch)
    last = train(options.dataset, settings, steps, folder)
    scores = evaluate(folder, options.dataset, options.num_images, options.steps)
    kept = {key: scores[key] for key in ("fid", "precision", "recall", "label_accuracy")}
    return {"variant": name, "images": steps * batch, "images_per_second": rate, "loss": last.get("loss"), **kept}


def print_table(lines: list[dict]):
    print(f"\n{'variant':28}{'images':>9}{'img/s':>7}{'FID':>8}{'prec.':>7}{'recall':>8}{'accuracy':>10}")
    for line in sorted(lines, key=lambda line: line["fid"]):
        print(
            f"{line['variant']:28}{line['images']:9,}{line['images_per_second']:7.1f}{line['fid']:8.2f}"
            f"{line['precision']:7.3f}{line['recall']:8.3f}{line['label_accuracy']:10.3f}"
        )


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Fashion-MNIST, as for train.py")
    parser.add_argument("--minutes", type=float, default=8, help="of training, each variant")
    parser.add_argument("--num-images", type=int, default=1000, help="to score")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "search")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "search" / "table.jsonl")
    options = parser.parse_args(argv)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.touch()
    of = [options.dataset, options.minutes, options.num_images, options.steps]
    for name in options.only:
        done = [json.loads(line) for line in options.output.read_text().splitlines()]
        if any(line["of"] != of for line in done):
            sys.exit(f"error: {options.output} is of other minutes, images or steps; choose another --output.")
        if name not in [line["variant"] for line in done]:
            line = {**run_variant(name, options, done), "of": of}
            with options.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print_table([json.loads(line) for line in options.output.read_text().splitlines()])


if __name__ == "__main__":
    main()
