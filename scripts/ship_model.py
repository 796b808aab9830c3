"""Make the embedded model of a training run: weights in half precision, its metrics, what it scores, README's table.

    python -m scripts.ship_model runs/fashion_mnist_small --dataset DIR [--choose-sampling]
    python -m scripts.ship_model --card

Writes ``pretrained/fashion_mnist_small``, with the settings and facts of the run, evaluation.json (--num-images of
them, sampled in the model's own way), evaluation-1000.json (what the tests reproduce), the figures of the first, and
its card. ``--choose-sampling`` measures which of the run's weights, and which guidance, interval and number of steps
the model gets as its own (scripts/choose_sampling.py), and keeps the measurements in sampling.json. If any of it fails
or is interrupted, the model that was there before is put back. Then the README's table of scores is written;
``python -m scripts.make_pictures`` makes its pictures. With ``--card``, only the card is written anew, with
``--readme`` only the table; docs/samplers.png, the samplers' quality against their steps, is in the card where it is
there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml

from ddpm_hf.errors import Parser, UserError, run_command
from ddpm_hf.evaluation.report_schema import EvaluationReport, read_report
from ddpm_hf.files import write_whole
from ddpm_hf.hub.card import card_values, is_ours, render_card
from ddpm_hf.hub.publishing import upload_of
from ddpm_hf.hub.run_files import run_files_of, without_paths
from ddpm_hf.ownership import PIPELINE, ours_in, replace_folder
from ddpm_hf.run import RunFolder
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import interval_text
from scripts.choose_sampling import Candidate, Measured, choose
from scripts.settings_table import between

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MODEL = ROOT / "pretrained" / "fashion_mnist_small"
REPRODUCED = 1000  # images that the tests make again
LICENCES = {"hub_license": "apache-2.0", "dataset_license": "mit"}  # of the weights, and of Fashion-MNIST
OPTIONS = ()  # further ones of evaluate
RECORD = ("README.md", "config.yaml", "metrics.jsonl", "facts.json", "loss.png", "samplers.png", "sampling.json")
RECORD += ("evaluation.json", "evaluation-samples.png", "evaluation-neighbours.png", f"evaluation-{REPRODUCED}.json")
SHIPPED = replace(PIPELINE, names=PIPELINE.names + RECORD)
START, END = "<!-- scores -->", "<!-- /scores -->"


def ddpm_hf(*words):
    status = subprocess.run([sys.executable, "-m", "ddpm_hf", *map(str, words)], cwd=ROOT).returncode
    if status:
        raise UserError(f"{words[0]} failed, as it says above; {MODEL.name} is what it was.")


def ship(arguments):
    """Write the model and its evaluations in place of the embedded one, all or nothing."""
    options, measured = ["--weights", arguments.weights] if arguments.weights else [], None
    if arguments.choose_sampling:
        best, measured = choose(arguments.run, str(arguments.dataset), arguments.weights, arguments.choice_images)
        options = export_options(best)
    with tempfile.TemporaryDirectory(prefix=f".{MODEL.name}-", dir=MODEL.parent) as parent:
        before = Path(parent) / "before"
        before.mkdir()
        for name in ours_in(MODEL, SHIPPED.names):
            (before / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(MODEL / name, before / name)
        try:
            ddpm_hf("export", arguments.run, *options, "--half", "--output", MODEL)
            for name in ours_in(MODEL, RECORD):  # of the model before
                (MODEL / name).unlink()
            keep_record(arguments.run)
            if measured:
                keep_measurements(best, measured, arguments.choice_images)
            evaluate(arguments, REPRODUCED, f"evaluation-{REPRODUCED}.json", "--no-figures")
            evaluate(arguments, arguments.num_images, "evaluation.json")
            write_card()
        except BaseException:
            replace_folder(MODEL, before, SHIPPED)
            raise


def export_options(best: Candidate) -> list:
    """The choice as arguments of ``export``."""
    sampling, interval = best.sampling, interval_text(best.sampling.guidance_interval)
    options = ["--weights", best.weights, "--scheduler", sampling.sampler, "--steps", sampling.steps]
    guidance = ["--guidance-scale", sampling.guidance_scale, "--guidance-interval", interval] if interval else []
    return options + guidance


def keep_measurements(best: Candidate, measured: list[Measured], num_images: int):
    """Write sampling.json, and say what was chosen."""
    lines = [result.as_json() for result in measured]
    chosen = next(result for result in measured if result.candidate == best)
    content = {"num_images": num_images, "chosen": chosen.as_json(), "measured": lines}
    (MODEL / "sampling.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"chosen: {chosen}", flush=True)


def evaluate(arguments, count: int, name: str, *options):
    of = ["--dataset", arguments.dataset, "--num-images", count, "--output", MODEL / name]
    ddpm_hf("evaluate", MODEL.relative_to(ROOT), *of, *OPTIONS, *options)


def keep_record(run: Path):
    """Copy what the run says of itself, without this machine's folders."""
    with tempfile.TemporaryDirectory() as scratch:
        files = upload_of(run_files_of(run), "a/model", Path(scratch)).files  # as a push would send them
        for name in ("config.yaml", "metrics.jsonl", "loss.png"):
            if name in files:
                shutil.copyfile(files[name], MODEL / name)
    if settings := RunFolder(MODEL).settings():
        settings |= {name: settings.get(name) or licence for name, licence in LICENCES.items()}
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        (MODEL / "config.yaml").write_text(text, encoding="utf-8")
    facts = RunFolder(run).facts()
    RunFolder(MODEL).keep_facts(facts.model_copy(update={"bad_images": list(map(without_paths, facts.bad_images))}))


def write_card():
    """README.md of the model."""
    if (ROOT / "docs" / "samplers.png").is_file():
        shutil.copyfile(ROOT / "docs" / "samplers.png", MODEL / "samplers.png")
    (MODEL / "README.md").write_text(card_text(), encoding="utf-8")


def card_text() -> str:
    """The card of the model as it lies here; a push writes it anew, for its repository."""
    contents = run_files_of(MODEL)
    licences = [contents.settings.get(name) or licence for name, licence in LICENCES.items()]
    return render_card(card_values(contents, *licences), MODEL.relative_to(ROOT).as_posix())


# ---- the README's table


def with_scores(readme: str, report: EvaluationReport) -> str:
    """The README with what lies between its marks replaced by the scores of ``report``."""
    return between(readme, START, END, score_table(report))


def score_table(report: EvaluationReport) -> str:
    """Markdown: the scores of an evaluation.json beside those of real images, and the command that finds them."""
    protocol = report.protocol
    count = protocol["num_images"]
    rows = [(row.title, row.value, row.real) for row in report.rows()]
    rows.append(("FID, of that of as many real images", f"{report.fid_ratio:.1f}", "1"))
    ratio = f"{report.memorisation.ratio:.2f}"
    rows.append(("distance to the nearest training image, of that of unseen real images", ratio, "1"))
    model = f"{MODEL.parent.name}/{MODEL.name}"
    lines = [f"| | {count:,} images | real |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    guidance, interval = protocol["guidance_scale"], protocol.get("guidance_interval")
    sampling = f"--scheduler {protocol['sampler']} --steps {protocol['steps']} --guidance-scale {guidance}"
    sampling += f" --guidance-interval {interval}" if interval else ""
    command = f"python -m ddpm_hf evaluate {model} --dataset DIR --num-images {count} {sampling} --output score.json"
    where = f" at timesteps {interval.replace(',', ' to ')}" if interval else ""
    how = (
        f"{SAMPLERS[protocol['sampler']].title}, {protocol['steps']} steps, guidance {guidance}{where}, "
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
    parser.add_argument("--choose-sampling", action="store_true", help="measure the best weights and sampling first")
    parser.add_argument("--choice-images", type=int, default=2000, help="images of each of those measurements")
    parser.add_argument("--card", action="store_true", help="write its card alone")
    parser.add_argument("--readme", action="store_true", help="write the README's table alone")
    arguments = parser.parse_args(argv)
    card = MODEL / "README.md"
    if not arguments.readme and card.is_file() and not is_ours(card.read_text(encoding="utf-8")):
        raise UserError(f"{card} was not written by this script, or was changed since; move it to another place.")
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
    text = with_scores(README.read_text(encoding="utf-8"), read_report(MODEL / "evaluation.json"))
    write_whole(README, lambda path: path.write_text(text, encoding="utf-8"))
    print("wrote README.md's table of scores; update what docs/evaluation.md says about the training")


if __name__ == "__main__":
    sys.exit(run_command(main))
