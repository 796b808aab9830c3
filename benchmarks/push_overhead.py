"""Images a second in training with and without pushes to a slow Hub.

    python -m benchmarks.push_overhead [--steps 300] [--every 100] [--rounds 3] [--delay 1] [--rate 1e6]

Both sides train the small network and save every ``--every`` steps; one pushes each checkpoint as well
(``hub_strategy: every_save``), to the Hub double of the tests, which answers every request ``--delay`` seconds late and
reads uploads at ``--rate`` bytes a second. Every side of a round runs in a process of its own, one after the other.
A side's figure is images a second over its whole loop, checkpoints and samples included, of its best round; what is
waited for after the last step is printed beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("no push", "pushes")


def measure(side: str, folder: str, steps: int, every: int, batch: int) -> dict:
    """Train in this process: images a second of the loop, and the seconds from its end to that of the run."""
    from ddpm_hf.config import load_config
    from ddpm_hf.training import Trainer

    arguments = ["--config", str(ROOT / "configs" / "fashion_mnist_small.yaml"), "--output_dir", folder]
    arguments += ["--dataset", str(ROOT / "data" / "fashion_mnist_tiny.parquet"), "--report_to", "none"]
    arguments += ["--max_train_steps", str(steps), "--checkpointing_steps", str(every), "--logging_steps", "10"]
    arguments += ["--train_batch_size", str(batch), "--sample_steps", "1000000", "--num_samples", "1"]
    arguments += ["--validation_split", "null"]
    if side == "pushes":
        arguments += ["--push_to_hub", "--hub_model_id", "alice/run", "--hub_strategy", "every_save"]
    trainer = Trainer(load_config(arguments))
    loop, times = trainer.loop, []

    def timed():
        times.append(time.perf_counter())
        loop()
        times.append(time.perf_counter())

    trainer.loop = timed
    trainer.train()
    return {"images_per_second": steps * batch / (times[1] - times[0]), "wait": time.perf_counter() - times[1]}


def run_side(side: str, endpoint: str, steps: int, every: int, batch: int) -> dict:
    """``measure`` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"NO_PROXY": "127.0.0.1,localhost", "HF_HOME": str(Path(folder) / "home")}
        command = [sys.executable, "-m", "benchmarks.push_overhead", "--side", side, "--folder", f"{folder}/run"]
        command += ["--steps", str(steps), "--every", str(every), "--batch", str(batch)]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def slow_hub(folder: str, delay: float, rate: float):
    """The tests' Hub double, late and slow."""
    sys.path.insert(0, str(ROOT / "tests" / "hub"))
    from hubdouble import Hub

    hub = Hub(folder).start()
    hub.add_user("hf_write", "alice")
    hub.fault("*", "", times=1_000_000_000, delay=delay, rate=rate)
    return hub


def main(arguments: list[str]):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.push_overhead")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=1.0, help="seconds before the Hub answers")
    parser.add_argument("--rate", type=float, default=1e6, help="bytes a second that the Hub takes")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options.side, options.folder, options.steps, options.every, options.batch)))
        return
    best, waits = dict.fromkeys(SIDES, 0.0), dict.fromkeys(SIDES, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        hub = slow_hub(folder, options.delay, options.rate)
        for i in range(options.rounds):
            for side in SIDES[:: 1 if i % 2 == 0 else -1]:
                hub.repos.clear()
                result = run_side(side, hub.endpoint, options.steps, options.every, options.batch)
                best[side] = max(best[side], result["images_per_second"])
                waits[side] = result["wait"]
                print(f"round {i + 1}, {side}: {result['images_per_second']:.1f} images/s", flush=True)
                if side == "pushes":
                    repo = hub.repos.get(("model", "alice/run"))
                    commits = len(repo.commits) - 1 if repo else 0
    share = best["pushes"] / best["no push"]
    print("\n| | images/s | waited for after the last step |\n|---|---|---|")
    for side in SIDES:
        print(f"| {side} | {best[side]:.1f} | {waits[side]:.0f} s |")
    print(f"\nwith pushes {100 * share:.1f} % of without; {commits} commits in the last round that pushed")


if __name__ == "__main__":
    main(sys.argv[1:])
