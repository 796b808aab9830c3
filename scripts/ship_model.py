"""Make the embedded model of a training run: weights in half precision, its metrics, and what it scores.

    python -m scripts.ship_model runs/fashion_mnist_small --dataset DIR

Writes ``pretrained/fashion_mnist_small``, with evaluation.json (10,000 images), evaluation-1000.json (what the tests
reproduce) and their figures. ``python -m scripts.make_pictures`` then makes the README's pictures of it.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "pretrained" / "fashion_mnist_small"


def ddpm_hf(*words):
    subprocess.run([sys.executable, "-m", "ddpm_hf", *map(str, words)], cwd=ROOT, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output_dir of the run, finished or not")
    parser.add_argument("--dataset", required=True, help="what it was trained on")
    parser.add_argument("--weights", help="raw, or the decay of one of its averages")
    arguments = parser.parse_args()
    weights = ["--weights", arguments.weights] if arguments.weights else []
    ddpm_hf("export", arguments.run, *weights, "--half", "--output", MODEL)
    shutil.copy(arguments.run / "metrics.jsonl", MODEL)
    for count, name in ((1000, "evaluation-1000.json"), (10_000, "evaluation.json")):
        figures = ["--no-figures"] if count == 1000 else []
        model = MODEL.relative_to(ROOT)
        output = MODEL / name
        ddpm_hf("evaluate", model, "--dataset", arguments.dataset, "--num-images", count, *figures, "--output", output)


if __name__ == "__main__":
    main()
