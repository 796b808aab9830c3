"""Kill a training run with SIGKILL, again and again, and see whether it ends where an uninterrupted one does.

    python -m benchmarks.kill_resume [--kills 50] [--processes 1] [--seed 0]

A reference run keeps all its checkpoints. The other is killed at a random moment, every third time while it writes a
checkpoint, and started again by the same command. A kill is survived if the newest whole checkpoint it leaves equals
the reference's of the same step, bit for bit: weights, optimizer, averages and counters; so must the finished run.
Prints a line a kill and "50 of 50" at the end; exits with 1 if one was not survived.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from tqdm.auto import tqdm

from ddpm_hf.checkpoints import newest_whole

ROOT = Path(__file__).resolve().parent.parent
STEPS_PER_KILL = 15
SETTINGS = {
    "dataset": str(ROOT / "data" / "fashion_mnist_tiny.parquet"),
    "max_images": 100,
    "class_conditional": True,
    "horizontal_flip": True,
    "dropout": 0.1,
    "block_out_channels": [8, 16],
    "attention_levels": [1],
    "num_attention_heads": 1,
    "time_embed_dim": 16,
    "feed_forward_dim": 16,
    "num_train_timesteps": 50,
    "train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "ema_max_decay": [0.9999, 0.99],
    "lr_warmup_steps": 5,
    "logging_steps": 7,
    "checkpointing_steps": 3,
    "validation_steps": 40,
    "sample_steps": 50,
    "num_samples": 2,
    "report_to": "none",
}
TIMING = ("images_per_second", "seconds", "wall_seconds")


def command(folder: Path, **settings) -> list[str]:
    """The command line of a run in ``folder``."""
    values = {**SETTINGS, **settings, "output_dir": str(folder)}
    return [part for name, value in values.items() for part in (f"--{name}", json.dumps(value).strip('"'))]


def launch(arguments: list[str], processes: int = 1) -> psutil.Process:
    """Start ``train.py`` as a user would, on the CPU."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    return psutil.Popen(
        [*launcher, "train.py", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(process: psutil.Process):
    """SIGKILL to a process and all that it started: launchers put their workers into sessions of their own."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)


def differences(first: Path, second: Path) -> list[str]:
    """Names of the files in which two checkpoints differ, counters apart that measure time."""
    names = {path.relative_to(first) for path in first.rglob("*.safetensors")}
    names |= {path.relative_to(second) for path in second.rglob("*.safetensors")}
    found = [str(name) for name in sorted(names) if _bytes(first / name) != _bytes(second / name)]
    if _state(first) != _state(second):
        found.append("state.json")
    return found


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _state(checkpoint: Path) -> dict:
    state = json.loads((checkpoint / "state.json").read_text())
    state["progress"] = {name: value for name, value in state["progress"].items() if name not in TIMING}
    return state


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what measures time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def wait_for_moment(process, run: Path, rng: random.Random, seconds: float, while_writing: bool):
    """Wait up to ``seconds``, at random, in a run that is under way, and then maybe until it writes a checkpoint."""
    start_step = _newest_step(run)
    while _is_alive(process) and _newest_step(run) == start_step:
        time.sleep(0.002)  # until it has resumed and saved once
    time.sleep(rng.uniform(0, seconds))
    while while_writing and _is_alive(process):
        time.sleep(0.001)
        if _half_written(run):
            time.sleep(rng.uniform(0, 0.02))
            if _half_written(run):  # otherwise that was too late: the next one
                return


def _is_alive(process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _half_written(run: Path) -> list[Path]:
    """Checkpoints that are being written; those that are being deleted end in .old.partial."""
    return [path for path in run.glob("checkpoints/.step-*.partial") if not path.name.endswith(".old.partial")]


def seconds_of_a_step(run: Path) -> float:
    """How fast a run was that kept all its checkpoints."""
    first, *_, last = sorted(run.glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))
    steps = int(last.name[5:]) - int(first.name[5:])
    return (last.stat().st_mtime - first.stat().st_mtime) / steps


def _newest_step(run: Path) -> int:
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=0)


def survive(folder: Path, kills: int, seed: int, start: Callable[[list[str]], psutil.Process], say=print) -> int:
    """Run the experiment in ``folder``; returns how many kills were survived, -1 if the end differs.

    start: starts a run from its command line.
    """
    rng = random.Random(seed)
    steps = {"max_train_steps": STEPS_PER_KILL * kills}
    reference, victim = folder / "reference", folder / "victim"
    say(f"reference run of {steps['max_train_steps']} steps ...")
    start(command(reference, **steps, checkpoints_total_limit=10**6)).wait()
    # so that, with what it takes to save and to find it writing, the run does not end before the last kill
    most = STEPS_PER_KILL / 2 * seconds_of_a_step(reference)
    survived = 0
    for number in range(1, kills + 1):
        process = start(command(victim, **steps))
        wait_for_moment(process, victim, rng, most, while_writing=number % 3 == 0)
        kill(process)
        doing = "writing a checkpoint" if _half_written(victim) else "training"  # what it left tells
        checkpoint, torn = newest_whole(victim)
        wrong = torn or differences(reference / "checkpoints" / checkpoint.name, checkpoint)
        if process.wait() == 0:
            wrong = ["it had ended before"]
        survived += not wrong
        say(f"kill {number}: {doing}, left {checkpoint.name}: {'equal' if not wrong else ', '.join(wrong)}")
    start(command(victim, **steps)).wait()
    last = f"checkpoints/step-{steps['max_train_steps']}"
    wrong = differences(reference / last, victim / last) or differences_at_the_end(reference, victim)
    say(f"the finished run: {'equal' if not wrong else ', '.join(wrong)}")
    return survived if not wrong else -1


def differences_at_the_end(reference: Path, victim: Path) -> list[str]:
    """Names of what differs between two finished runs, besides their last checkpoints."""
    wrong = [] if metrics(reference) == metrics(victim) else ["metrics.jsonl"]
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    names = [weights, *(str(path.relative_to(reference)) for path in sorted(reference.glob("samples/*.png")))]
    return wrong + [name for name in names if _bytes(reference / name) != _bytes(victim / name)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=arguments.kills, unit="kill") as bar:

        def say(line: str):
            bar.write(line)
            bar.update(line.startswith("kill"))

        def start(line: list[str]) -> psutil.Process:
            return launch(line, arguments.processes)

        survived = survive(Path(folder), arguments.kills, arguments.seed, start, say)
    print(f"{max(0, survived)} of {arguments.kills}")
    sys.exit(survived != arguments.kills)


if __name__ == "__main__":
    main()
