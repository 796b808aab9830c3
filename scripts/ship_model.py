"""Make the embedded model of a training run: weights in half precision, its metrics, and what it scores.

    python -m scripts.ship_model runs/fashion_mnist_small --dataset DIR
    python -m scripts.ship_model --card

Writes ``pretrained/fashion_mnist_small``, with the settings and facts of the run, evaluation.json (--num-images of
them, by the default sampler and guidance), evaluation-1000.json (what the tests reproduce), the figures of the first,
and its card. ``python -m scripts.make_pictures`` then makes the README's pictures of it. With ``--card``, only the card
is written anew; docs/samplers.png, the samplers' quality against their steps, is in it where it is there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ddpm_hf.hub.card import card_values, render_card
from ddpm_hf.hub.contents import contents_of, without_paths
from ddpm_hf.hub.publishing import upload_of
from ddpm_hf.samplers import DEFAULT_GUIDANCE, DEFAULT_SAMPLER, DEFAULT_STEPS

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "pretrained" / "fashion_mnist_small"
LICENCES = ("apache-2.0", "mit")  # of the weights, and of Fashion-MNIST
SETTINGS = ("--scheduler", DEFAULT_SAMPLER, "--steps", DEFAULT_STEPS, "--guidance-scale", DEFAULT_GUIDANCE)


def ddpm_hf(*words):
    subprocess.run([sys.executable, "-m", "ddpm_hf", *map(str, words)], cwd=ROOT, check=True)


def keep_record(run: Path):
    """Copy what the run says of itself, without this machine's folders."""
    with tempfile.TemporaryDirectory() as scratch:
        files = upload_of(contents_of(run), "a/model", Path(scratch)).files  # as a push would send them
        for name in ("config.yaml", "metrics.jsonl", "loss.png"):
            if name in files:
                shutil.copyfile(files[name], MODEL / name)
    if (run / "facts.json").is_file():
        facts = json.loads((run / "facts.json").read_text())
        facts = {name: without_paths(str(value)) for name, value in facts.items()}
        (MODEL / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


def write_card():
    """README.md of the model."""
    if (ROOT / "docs" / "samplers.png").is_file():
        shutil.copyfile(ROOT / "docs" / "samplers.png", MODEL / "samplers.png")
    (MODEL / "README.md").write_text(card_text(), encoding="utf-8")


def card_text() -> str:
    """The card of the model as it lies here; a push writes it anew, for its repository."""
    contents = contents_of(MODEL)
    return render_card(card_values(contents, *LICENCES), MODEL.relative_to(ROOT).as_posix())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="output_dir of the run, finished or not")
    parser.add_argument("--dataset", help="what it was trained on")
    parser.add_argument("--card", action="store_true", help="write its card alone")
    parser.add_argument("--weights", help="raw, or the decay of one of its averages")
    parser.add_argument("--num-images", type=int, default=10_000, help="for evaluation.json")
    arguments = parser.parse_args()
    if arguments.card:
        write_card()
        return
    if arguments.run is None or arguments.dataset is None:
        parser.error("give the run and --dataset, or --card")
    weights = ["--weights", arguments.weights] if arguments.weights else []
    ddpm_hf("export", arguments.run, *weights, "--half", "--output", MODEL)
    keep_record(arguments.run)
    for count, name in ((1000, "evaluation-1000.json"), (arguments.num_images, "evaluation.json")):
        figures = ["--no-figures"] if name == "evaluation-1000.json" else []
        of = ["--dataset", arguments.dataset, "--num-images", count, "--output", MODEL / name]
        ddpm_hf("evaluate", MODEL.relative_to(ROOT), *of, *SETTINGS, *figures)
    write_card()


if __name__ == "__main__":
    main()
