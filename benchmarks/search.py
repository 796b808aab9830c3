"""Changes of the small preset compared at equal training time on Fashion-MNIST.

    python -m benchmarks.search --dataset DIR --probe
    python -m benchmarks.search --dataset DIR --minutes 8 [--only preset AdamW ...] [--seeds 0 1 2]

A variant is ``configs/fashion_mnist_small.yaml`` with some settings changed. ``--probe`` measures how many images a
second each trains, while nothing else runs, and writes rates.json. A run then takes as many steps as fit into
``--minutes`` at that rate, so it may run beside other work. Every weight average of a run is scored by ``python -m
ddpm_hf evaluate``; the best counts. Lines are appended to table.jsonl in ``--folder``; runs that are there already are
left out, and a run that was interrupted resumes, so the same command continues.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from ddpm_hf.errors import UserError, run_command

ROOT = Path(__file__).resolve().parent.parent
PRESET = ROOT / "configs" / "fashion_mnist_small.yaml"
PROBE_STEPS = 40
# of a run of about a thousand steps; averages over about the last hundredth to a tenth
BASE = {"lr_warmup_steps": 100, "ema_max_decay": [0.99, 0.995, 0.97], "report_to": "none"}
SAMPLING = {"scheduler": "dpm-sde", "steps": 20, "guidance-scale": 2, "guidance-interval": "0,400"}
COSTLY = {"block_out_channels", "optimizer", "train_batch_size"}  # settings that change what an image costs
VARIANTS = {
    "preset": {},
    "AdamW 1e-3": {"optimizer": "adamw", "learning_rate": 1e-3},
    "AdamW 2e-3": {"optimizer": "adamw"},
    "Muon 0.01": {"muon_learning_rate": 0.01},
    "Muon 0.05": {"muon_learning_rate": 0.05},
    "Muon, weight decay 0.01": {"adam_weight_decay": 0.01},
    "AdamW part 1e-3": {"learning_rate": 1e-3},
    "v, min-SNR": {"prediction_type": "v_prediction"},
    "v": {"prediction_type": "v_prediction", "loss_type": "simple"},
    "x_0 without min-SNR": {"loss_type": "simple"},
    "uniform timesteps": {"timestep_sampling": "uniform"},
    "batch 32": {"train_batch_size": 32},
    "batch 128": {"train_batch_size": 128},
    "narrow": {"block_out_channels": [24, 48, 96, 192]},
    "wide and shallow": {"block_out_channels": [48, 96, 192], "norm_num_groups": 8},
    "rate falls linearly": {"lr_scheduler": "linear"},
    "rate stays": {"lr_scheduler": "constant"},
}


def train(options, settings: dict, steps: int, folder: Path):
    pace = {"logging_steps": 10, "validation_steps": 10**6, "sample_steps": 10**6, "checkpointing_steps": 10**6}
    settings = {**BASE, **settings, **pace, "max_train_steps": steps, "output_dir": str(folder)}
    words = [part for name, value in settings.items() for part in (f"--{name}", json.dumps(value).strip('"'))]
    command = [sys.executable, "train.py", "--config", str(options.config), "--dataset", options.dataset, *words]
    subprocess.run(command, cwd=ROOT, check=True)


def cost_key(settings: dict) -> str:
    """What the images a second of a variant depend on."""
    return json.dumps({name: value for name, value in settings.items() if name in COSTLY}, sort_keys=True)


def measured_rates(options) -> dict[str, float]:
    """Images a second by ``cost_key``: those of rates.json, and those that are missing there, measured now."""
    path = options.folder / "rates.json"
    rates = json.loads(path.read_text()) if path.exists() else {}
    for name in options.only:
        if (key := cost_key(VARIANTS[name])) not in rates:
            with tempfile.TemporaryDirectory() as folder:
                train(options, VARIANTS[name], PROBE_STEPS, Path(folder))
                lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
            seen = sorted(json.loads(line)["images_per_second"] for line in lines[1:-1])
            rates[key] = seen[len(seen) // 2]
            path.write_text(json.dumps(rates, indent=1))
    return rates


def scores_of(run: Path, options) -> dict[str, dict]:
    """Scores by weight average."""
    scores, report = {}, run / "score.json"
    for decay in yaml.safe_load((run / "config.yaml").read_text())["ema_max_decay"]:
        words = [sys.executable, "-m", "ddpm_hf", "evaluate", str(run), "--dataset", options.dataset, "--no-figures"]
        sampling = [word for name, value in SAMPLING.items() for word in (f"--{name}", str(value))]
        rest = ["--weights", str(decay), "--num-images", str(options.num_images), "--output", str(report)]
        subprocess.run([*words, *sampling, *rest], cwd=ROOT, check=True)
        found = json.loads(report.read_text())["scores"]
        scores[str(decay)] = {name: found[name] for name in ("fid", "precision", "recall", "label_accuracy")}
    return scores


def run_variant(name: str, seed: int, rate: float, options) -> dict:
    settings, folder = VARIANTS[name], options.folder / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    batch = settings.get("train_batch_size", yaml.safe_load(PRESET.read_text())["train_batch_size"])
    steps = max(1, round(options.minutes * 60 * rate / batch))
    train(options, {**settings, "seed": seed}, steps, folder)
    scores = scores_of(folder, options)
    best = min(scores, key=lambda decay: scores[decay]["fid"])
    line = {"variant": name, "seed": seed, "minutes": options.minutes, "images": steps * batch, "rate": rate}
    return {**line, "average": best, **scores[best], "averages": scores}


def print_table(lines: list[dict]):
    print(
        f"\n{'variant':26}{'seed':>5}{'images':>9}{'img/s':>7}{'average':>9}{'FID':>8}{'prec.':>7}{'recall':>8}{'acc.':>7}"
    )
    for line in sorted(lines, key=lambda line: line["fid"]):
        print(
            f"{line['variant']:26}{line['seed']:5}{line['images']:9,}{line['rate']:7.1f}{line['average']:>9}"
            f"{line['fid']:8.2f}{line['precision']:7.3f}{line['recall']:8.3f}{line['label_accuracy']:7.3f}"
        )


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Fashion-MNIST, as for train.py")
    parser.add_argument("--config", type=Path, default=PRESET, help="what the variants change")
    parser.add_argument("--minutes", type=float, default=8, help="of training, each run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--num-images", type=int, default=2000, help="to score")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--probe", action="store_true", help="measure images a second, and stop")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "search")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    rates = measured_rates(options)
    if options.probe:
        print("\n".join(f"{rate:7.1f} images/s {key}" for key, rate in rates.items()))
        return
    output = options.folder / "table.jsonl"
    lines = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    if any(line["minutes"] != options.minutes for line in lines):
        raise UserError(f"{output} has runs of other lengths; use another --folder.")
    for seed in options.seeds:
        for name in options.only:
            if not any((line["variant"], line["seed"]) == (name, seed) for line in lines):
                lines.append(run_variant(name, seed, rates[cost_key(VARIANTS[name])], options))
                with output.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print_table(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
