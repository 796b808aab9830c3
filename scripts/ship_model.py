"""Make the embedded model of a training run: weights in half precision, its metrics, and what it scores.

    python -m scripts.ship_model runs/fashion_mnist_small --dataset DIR

Writes ``pretrained/fashion_mnist_small``, with evaluation.json (--num-images of them, by the default sampler and
guidance), evaluation-1000.json (what the tests reproduce) and the figures of the first.
``python -m scripts.make_pictures`` then makes the README's pictures of it.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from ddpm_hf.samplers import DEFAULT_GUIDANCE, DEFAULT_SAMPLER, DEFAULT_STEPS

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "pretrained" / "fashion_mnist_small"
SETTINGS = ("--scheduler", DEFAULT_SAMPLER, "--steps", DEFAULT_STEPS, "--guidance-scale", DEFAULT_GUIDANCE)


def ddpm_hf(*words):
    subprocess.run([sys.executable, "-m", "ddpm_hf", *map(str, words)], cwd=ROOT, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output_dir of the run, finished or not")
    parser.add_argument("--dataset", required=True, help="what it was trained on")
    parser.add_argument("--weights", help="raw, or the decay of one of its averages")
    parser.add_argument("--num-images", type=int, default=10_000, help="for evaluation.json")
    arguments = parser.parse_args()
    weights = ["--weights", arguments.weights] if arguments.weights else []
    ddpm_hf("export", arguments.run, *weights, "--half", "--output", MODEL)
    shutil.copy(arguments.run / "metrics.jsonl", MODEL)
    for count, name in ((1000, "evaluation-1000.json"), (arguments.num_images, "evaluation.json")):
        figures = ["--no-figures"] if name == "evaluation-1000.json" else []
        of = ["--dataset", arguments.dataset, "--num-images", count, "--output", MODEL / name]
        ddpm_hf("evaluate", MODEL.relative_to(ROOT), *of, *SETTINGS, *figures)


if __name__ == "__main__":
    main()
