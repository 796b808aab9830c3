"""Make the embedded model of a training run: weights in half precision, its metrics, what it scores, README's table.

    python -m scripts.ship_model runs/fashion_mnist_small --dataset DIR
    python -m scripts.ship_model --card

Writes ``pretrained/fashion_mnist_small``, with the settings and facts of the run, evaluation.json (--num-images of
them, by the default sampler and guidance), evaluation-1000.json (what the tests reproduce), the figures of the first,
and its card. If any of it fails or is interrupted, the model that was there before is put back. Then the README's table
of scores is written; ``python -m scripts.make_pictures`` makes its pictures. With ``--card``, only the card is written
anew, with ``--readme`` only the table; docs/samplers.png, the samplers' quality against their steps, is in the card
where it is there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from ddpm_hf.errors import Parser, UserError, run_command
from ddpm_hf.files import write_whole
from ddpm_hf.hub.card import card_values, render_card
from ddpm_hf.hub.contents import contents_of, without_paths
from ddpm_hf.hub.publishing import upload_of
from ddpm_hf.samplers import DEFAULT_GUIDANCE, DEFAULT_SAMPLER, DEFAULT_STEPS, SAMPLERS
from scripts.settings_table import README, between

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "pretrained" / "fashion_mnist_small"
LICENCES = {"hub_license": "apache-2.0", "dataset_license": "mit"}  # of the weights, and of Fashion-MNIST
SETTINGS = ("--scheduler", DEFAULT_SAMPLER, "--steps", DEFAULT_STEPS, "--guidance-scale", DEFAULT_GUIDANCE)
START, END = "<!-- scores -->", "<!-- /scores -->"
REPRODUCED = 1000  # images that the tests make again


def ddpm_hf(*words):
    status = subprocess.run([sys.executable, "-m", "ddpm_hf", *map(str, words)], cwd=ROOT).returncode
    if status:
        raise UserError(f"{words[0]} failed, as it says above; {MODEL.name} is what it was.")


def ship(arguments):
    """Write the model and its evaluations in place of the embedded one, all or nothing."""
    weights = ["--weights", arguments.weights] if arguments.weights else []
    with tempfile.TemporaryDirectory(prefix=f".{MODEL.name}-", dir=MODEL.parent) as parent:
        before = Path(parent) / "before"
        if MODEL.exists():
            shutil.copytree(MODEL, before)
        try:
            ddpm_hf("export", arguments.run, *weights, "--half", "--output", MODEL)
            keep_record(arguments.run)
            evaluate(arguments, REPRODUCED, f"evaluation-{REPRODUCED}.json", "--no-figures")
            evaluate(arguments, arguments.num_images, "evaluation.json")
            write_card()
        except BaseException:
            shutil.rmtree(MODEL, ignore_errors=True)
            if before.exists():
                before.rename(MODEL)
            raise


def evaluate(arguments, count: int, name: str, *options):
    of = ["--dataset", arguments.dataset, "--num-images", count, "--output", MODEL / name]
    ddpm_hf("evaluate", MODEL.relative_to(ROOT), *of, *SETTINGS, *options)


def keep_record(run: Path):
    """Copy what the run says of itself, without this machine's folders."""
    with tempfile.TemporaryDirectory() as scratch:
        files = upload_of(contents_of(run), "a/model", Path(scratch)).files  # as a push would send them
        for name in ("config.yaml", "metrics.jsonl", "loss.png"):
            if name in files:
                shutil.copyfile(files[name], MODEL / name)
    if (config := MODEL / "config.yaml").is_file():
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        settings |= {name: settings.get(name) or licence for name, licence in LICENCES.items()}
        config.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
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
    licences = [contents.settings.get(name) or licence for name, licence in LICENCES.items()]
    return render_card(card_values(contents, *licences), MODEL.relative_to(ROOT).as_posix())


# ---- the README's table


def with_scores(readme: str, report: dict) -> str:
    """The README with what lies between its marks replaced by the scores of ``report``."""
    return between(readme, START, END, score_table(report))


def score_table(report: dict) -> str:
    """Markdown: the scores of an evaluation.json beside those of real images, and the command that finds them."""
    scores, floor, protocol = report["scores"], report["floor"], report["protocol"]
    count = protocol["num_images"]
    rows = [
        ("FID", f"{scores['fid']:.3f}", f"{floor['fid']:.3f}"),
        ("FID, of that of as many real images", f"{report['fid_ratio']:.1f}", "1"),
        ("KID x 1000", f"{1000 * scores['kid']:.2f}", f"{1000 * floor['kid']:.2f}"),
        ("precision", f"{scores['precision']:.3f}", f"{floor['precision']:.3f}"),
        ("recall", f"{scores['recall']:.3f}", f"{floor['recall']:.3f}"),
        ("label accuracy", f"{scores['label_accuracy']:.3f}", f"{floor['label_accuracy']:.3f}"),
        (
            "distance to the nearest training image, of that of unseen real images",
            f"{report['memorisation']['ratio']:.2f}",
            "1",
        ),
    ]
    model = f"{MODEL.parent.name}/{MODEL.name}"
    lines = [f"| | {count:,} images | real |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    command = f"python -m ddpm_hf evaluate {model} --dataset DIR --num-images {count} --output score.json"
    how = (
        f"{SAMPLERS[protocol['sampler']].title}, {protocol['steps']} steps, guidance {protocol['guidance_scale']}, "
        f"{protocol['dtype']}, images of seed {protocol['seed']} and up, against {protocol['reference_images']:,} of "
        f"the {protocol['reference_split']} split"
    )
    return "\n".join([*lines, "", f"`{command}`", "", f"{how}."])


def main(argv: list[str] | None = None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="output_dir of the run, finished or not")
    parser.add_argument("--dataset", help="what it was trained on")
    parser.add_argument("--weights", help="raw, or the decay of one of its averages")
    parser.add_argument("--num-images", type=int, default=10_000, help="for evaluation.json")
    parser.add_argument("--card", action="store_true", help="write its card alone")
    parser.add_argument("--readme", action="store_true", help="write the README's table alone")
    arguments = parser.parse_args(argv)
    if arguments.card:
        write_card()
        return
    if not arguments.readme:
        if arguments.run is None or arguments.dataset is None:
            raise UserError("the run and --dataset are needed (or --card, or --readme).")
        if not (arguments.run / "metrics.jsonl").is_file():
            raise UserError(f"{arguments.run} is not the output_dir of a run: it has no metrics.jsonl.")
        if Path(arguments.dataset).exists():
            arguments.dataset = Path(arguments.dataset).resolve()  # the commands run in the repository's root
        arguments.run = arguments.run.resolve()
        ship(arguments)
    text = with_scores(README.read_text(encoding="utf-8"), json.loads((MODEL / "evaluation.json").read_text()))
    write_whole(README, lambda path: path.write_text(text, encoding="utf-8"))
    print("wrote README.md's table of scores; what its text says of the training is yours to mend")


if __name__ == "__main__":
    sys.exit(run_command(main))
