"""The original's Fashion-MNIST experiment and a modern one, in one call: losses, times, scores, pictures and weights.

    python -m benchmarks.original_runs --dataset DIR --output DIR [--max-train-steps N] [--num-images 10000]
                                   [--parcel DIR [--weights-of modern]]

*published* is the original's network of 20.6 M trained parameters at its published settings: batch 28, learning rate
1e-3 throughout, 20 epochs, 1000 steps, no average. *modern* is ``configs/fashion_mnist_modern.yaml``. Each is trained
by train.py, which resumes, so that a call that was cut off is made again; then scored by ``evaluate``, and drawn by
``noise`` and ``sample``. What ends up in ``--output``: ``NAME/`` with metrics.jsonl, loss.png, score.json, noise.png
and samples.png, ``NAME-pipeline/`` with the weights in half precision in shards of at most 15 MB, and summary.json.
With --max-train-steps the same is done reduced, and the summary says so.

A rented machine may give back only a few files of limited size: ``--parcel`` holds the same as one archive in parts of
15 MiB, after every run that is done. Both runs make six parts, of 84 MB; ``--weights-of modern`` leaves out the weights
of the other, three parts, and ``--weights-of`` alone those of both. ``cat original_runs.tar.* | tar x`` unpacks them.
"""

import argparse
import json
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from ddpm_hf.ownership import RUN

ROOT = Path(__file__).resolve().parent.parent
RUNS = {
    "published": {
        "config": "configs/fashion_mnist.yaml",
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "ema_max_decay": 0,
    },
    "modern": {"config": "configs/fashion_mnist_modern.yaml"},
}
PART = 15 * 2**20  # bytes of a part of the parcel
KEPT = ("config.yaml", "metrics.jsonl", "loss.png", "timesteps.png")  # the first shows that the folder is ours


def call(*words):
    """Run a program of ours, which has told what is wrong if it fails; when we are stopped, it may save and stop."""
    child = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT)
    try:
        status = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if status:
        sys.exit(f"error: {' '.join(map(str, words))} ended with {status}.")


def train(name: str, options) -> tuple[Path, float]:
    """The finished run's folder, and the seconds that train.py took, those before an interruption included."""
    run = options.work / (f"{name}-reduced" if options.max_train_steps else name)
    settings = {**RUNS[name], "dataset": options.dataset, "output_dir": run, "report_to": "none"}
    if options.max_train_steps:
        settings |= {"max_train_steps": options.max_train_steps}
    if options.torch_compile:
        settings |= {"torch_compile": options.torch_compile}
    if not (run / "pipeline").exists():
        start = time.perf_counter()
        try:
            call("train.py", *(part for key, value in settings.items() for part in (f"--{key}", value)))
        finally:
            run.mkdir(parents=True, exist_ok=True)
            with (run / "seconds.txt").open("a") as file:  # also of a call that is cut off by a signal
                file.write(f"{time.perf_counter() - start}\n")
        if not (run / "pipeline").exists():  # a signal stops the trainer in good order: it has saved
            sys.exit(f"error: the run {name} was stopped before its end; the same command goes on.")
    return run, sum(map(float, (run / "seconds.txt").read_text().split()))


def look(name: str, run: Path, options) -> Path:
    """Score, pictures and weights of a finished run, in ``--output``."""
    out = options.output / name
    out.mkdir(parents=True, exist_ok=True)
    if taken := RUN.collisions(out):
        sys.exit(f"error: {out} has {taken[0]} of another program; choose another --output.")
    for file in KEPT:
        if (run / file).exists():
            shutil.copy(run / file, out / file)
    data = ["--dataset", options.dataset]
    count, steps = ["--num-images", options.num_images], ["--steps", options.sample_steps]
    call("-m", "ddpm_hf", "evaluate", run, *count, *steps, "--output", out / "score.json")
    call("-m", "ddpm_hf", "noise", run, *data, "--output", out / "noise.png")
    call("-m", "ddpm_hf", "sample", run, "--num-images", 64, "--output", out / "samples.png")
    weights = ["--half", "--max-shard-size", "15MB", "--output", options.output / f"{name}-pipeline"]
    call("-m", "ddpm_hf", "export", run, *weights)
    return out


def summary(name: str, out: Path, seconds: float, options) -> dict:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = {key: value for line in lines for key, value in line.items()}  # the newest of every number
    score = json.loads((out / "score.json").read_text())
    return {
        "run": name,
        "reduced": bool(options.max_train_steps),
        "steps": last["step"],
        "images": last["images_seen"],
        "seconds": round(seconds, 1),
        "loss": last["loss"],
        "validation_loss": last.get("validation_loss"),
        "num_images": score["protocol"]["num_images"],
        **{key: score["scores"][key] for key in ("fid", "kid", "precision", "recall")},
        "real_fid": score["floor"]["fid"],
    }


def pack(options):
    """``--output`` in ``--parcel``: one archive in parts, the weights last, so that a lost part costs them alone."""
    weights = [options.output / f"{name}-pipeline" for name in RUNS]
    left_out = [folder for folder, name in zip(weights, RUNS) if name not in options.weights_of]
    files = [file for file in options.output.rglob("*") if file.is_file() and not set(left_out) & set(file.parents)]
    options.parcel.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for file in sorted(files, key=lambda file: (bool(set(weights) & set(file.parents)), str(file))):
                archive.add(file, file.relative_to(options.output))
        whole.seek(0)
        for old in options.parcel.glob("original_runs.tar.[0-9][0-9]"):
            old.unlink()
        number = 0
        while part := whole.read(PART):
            (options.parcel / f"original_runs.tar.{number:02}").write_bytes(part)
            number += 1


def print_table(rows: list[dict]):
    print(
        f"\n{'run':12}{'steps':>8}{'images':>11}{'seconds':>9}{'loss':>8}{'FID':>9}{'real':>7}{'prec.':>7}{'recall':>8}"
    )
    for row in rows:
        print(
            f"{row['run']:12}{row['steps']:8,.0f}{row['images']:11,.0f}{row['seconds']:9,.0f}{row['loss']:8.4f}"
            f"{row['fid']:9.2f}{row['real_fid']:7.2f}{row['precision']:7.3f}{row['recall']:8.3f}"
            f"{'  reduced' if row['reduced'] else ''}"
        )


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Fashion-MNIST, as for train.py")
    parser.add_argument("--output", type=Path, required=True, help="folder of what comes out")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "original_runs", help="folder of the runs themselves"
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--max-train-steps", type=int, help="a reduced run")
    parser.add_argument("--num-images", type=int, default=10_000, help="to score")
    parser.add_argument("--sample-steps", type=int, default=50, help="of the sampler, for the score")
    parser.add_argument("--torch-compile", help="mode of torch.compile, as for train.py")
    parser.add_argument("--parcel", type=Path, help="folder for all of it as one archive in parts")
    parser.add_argument("--weights-of", nargs="*", choices=RUNS, default=list(RUNS), help="runs whose weights it holds")
    options = parser.parse_args(argv)
    options.output, options.work = options.output.resolve(), options.work.resolve()
    if Path(options.dataset).exists():
        options.dataset = str(Path(options.dataset).resolve())  # the programs run in the repository's root
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    import torch

    from ddpm_hf.devices import best_device, device_name

    device = device_name(best_device())
    print(f"{platform.machine()}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    table = options.output / "summary.json"
    rows = {row["run"]: row for row in json.loads(table.read_text())["runs"]} if table.exists() else {}
    for name in options.only:
        run, seconds = train(name, options)
        rows[name] = {**summary(name, look(name, run, options), seconds, options), "machine": device}
        table.write_text(json.dumps({"runs": list(rows.values())}, indent=2) + "\n")
        if options.parcel:
            pack(options)
    print_table(list(rows.values()))


if __name__ == "__main__":
    main()
