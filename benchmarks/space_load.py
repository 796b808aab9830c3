"""Many visitors of one app at once, honest and hostile ones: is everybody answered rightly, and does the server stay?

    python benchmarks/space_load.py                      # 32 clients, 10 minutes, the embedded model
    python benchmarks/space_load.py --minutes 60
    python benchmarks/space_load.py --model FOLDER --minutes 1 --clients 8

It starts ``app.py`` on a free port of 127.0.0.1 and sends nothing anywhere else. Half of the clients are honest: they
generate images, read the stream, and look at what they get. The others go through the kinds of ``abuse.py`` in random
order. Exit status 1 if the server crashes, logs an exception, gives a wrong answer, lets an honest visitor down, leaves
files, or grows by more than 5 %.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.abuse import ABUSES, Seen, Target, picture_abuses  # noqa: E402

START_SECONDS = 300
SLOW_SHARE = 0.02  # of abuse that takes half a minute; its clients would do little else
MAX_GROWTH = 0.05
BUSY = (429, 503)  # told to come again: an answer, though not the one that was hoped for


class App:
    """``app.py`` as a process, and what it writes."""

    def __init__(self, model: str | None, scratch: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.scratch = f"http://127.0.0.1:{port}", scratch
        self.errors, self.jobs = [], Counter()
        command = [sys.executable, "app.py", "--port", str(port), *(["--model", model] if model else [])]
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(scratch), "GRADIO_ANALYTICS_ENABLED": "0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        self._open = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._open.wait(START_SECONDS):
            self.process.kill()
            raise RuntimeError("the app did not start:\n" + "".join(self.errors))

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("open http"):
                self._open.set()
            elif line.startswith('{"time"'):
                entry = json.loads(line)
                if entry["event"] == "job":
                    self.jobs[entry["outcome"]] += 1
            elif line.strip():
                self.errors.append(line)

    @property
    def memory(self) -> float:
        """Resident, in MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    @property
    def descriptors(self) -> int:
        return psutil.Process(self.process.pid).num_fds()

    def files(self) -> int:
        """How many visitors have left on the disk."""
        return len(self._sizes())

    def file_bytes(self) -> int:
        return sum(self._sizes())

    def _sizes(self) -> list[int]:
        sizes = []
        for path in self.scratch.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # swept in between
                if path.is_file():
                    sizes.append(path.stat().st_size)
        return sizes

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Tally:
    """What the clients have seen. Each has its own address; all share this."""

    def __init__(self):
        self.lock = threading.Lock()
        self.served, self.busy, self.refused, self.kinds = 0, 0, 0, Counter()
        self.first, self.total, self.faults = [], [], []
        self.last_served = time.monotonic()
        self.longest_gap = 0.0

    def serve(self, first: float, total: float):
        with self.lock:
            self.served += 1
            self.first.append(first)
            self.total.append(total)
            now = time.monotonic()
            self.longest_gap, self.last_served = max(self.longest_gap, now - self.last_served), now

    def turn_away(self):
        with self.lock:
            self.busy += 1

    def refuse(self, kind: str):
        with self.lock:
            self.refused += 1
            self.kinds[kind] += 1

    def blame(self, fault: str):
        with self.lock:
            self.faults.append(fault)


def honest_visit(target: Target, tally: Tally, rng: random.Random):
    """One request as the page makes it, read to the end and looked at."""
    wanted = {"num_images": rng.choice([1, 2, 4]), "steps": rng.choice([5, 8, 10]), "seed": rng.randrange(2**31)}
    began, first = time.monotonic(), None
    answer, session = target.join(target.number_of("generate"), target.data_for("generate", **wanted))
    if answer.how in BUSY:
        tally.turn_away()
        time.sleep(1)
        return
    if answer.how != 200:
        tally.blame(f"an honest request was refused: {answer}")
        return
    for message in target.messages(session):
        if message["msg"] == "process_generating" and first is None:
            first = time.monotonic() - began
        if message["msg"] == "process_completed":
            if not message["success"]:
                error = str(message["output"].get("error"))
                if "queue" in error or "wait" in error:
                    tally.turn_away()
                else:
                    tally.blame(f"an honest request failed: {error}")
                return
            images = message["output"]["data"][0]["images"]
            seeds = list(range(wanted["seed"], wanted["seed"] + wanted["num_images"]))
            if [image["seed"] for image in images] != seeds or not all(image["png"] for image in images):
                tally.blame("an honest visitor got the images of another request")
                return
            tally.serve(first if first is not None else time.monotonic() - began, time.monotonic() - began)
            return
    tally.blame("an honest visitor's stream ended without an answer")


def hostile_visit(target: Target, tally: Tally, rng: random.Random, kinds: list):
    kind = rng.choice(kinds)
    if kind.slow and rng.random() > SLOW_SHARE * len(kinds):
        return
    seen = kind.act(target)
    if isinstance(seen, Seen) and seen.how in BUSY and seen.how not in kind.hows:
        tally.turn_away()  # many share the limits of the whole server
    elif fault := kind.fault(seen):
        tally.blame(fault)
    else:
        tally.refuse(kind.name)


def client(base: Target, tally: Tally, end: float, number: int, hostile: bool):
    """Visits until the end, of a hostile client each from a new address."""
    rng = random.Random(number)
    kinds = [*ABUSES, *(picture_abuses() if "noise" in base.endpoints else [])]
    target = base.like()
    while time.monotonic() < end:
        try:
            if hostile:
                hostile_visit(target, tally, rng, kinds)
                target.close()
                target = base.like()
            else:
                honest_visit(target, tally, rng)
                time.sleep(rng.uniform(0, 0.5))
        except httpx.HTTPError as error:
            tally.blame(
                f"{'a hostile' if hostile else 'an honest'} client was let down: {type(error).__name__} {error}"
            )
    target.close()


def measure(model: str | None, minutes: float, clients: int, honest: int) -> dict:
    """Run the load and say what happened; see ``report`` for the fields."""
    with tempfile.TemporaryDirectory() as scratch:
        app = App(model, Path(scratch))
        try:
            return _measure(app, minutes, clients, honest)
        finally:
            if app.process.poll() is None:
                app.stop()


def _measure(app: App, minutes: float, clients: int, honest: int) -> dict:
    base, tally = Target(app.url).look(), Tally()
    base.call("generate", num_images=1, steps=1)  # the first run of a process is slow
    tally.last_served, end = time.monotonic(), time.monotonic() + 60 * minutes
    threads = [
        threading.Thread(target=client, args=(base, tally, end, i, i >= honest), daemon=True) for i in range(clients)
    ]
    for thread in threads:
        thread.start()
    memory, descriptors, files_on_the_way = [], [], []
    while time.monotonic() < end and app.process.poll() is None:
        memory.append(app.memory)
        descriptors.append(app.descriptors)
        files_on_the_way.append((app.files(), app.file_bytes()))
        time.sleep(min(2.0, 60 * minutes / 30))
    for thread in threads:
        thread.join(90)
    stuck = sum(thread.is_alive() for thread in threads)
    crashed = app.process.poll() is not None
    after = Seen("closed") if crashed else _patiently(base)
    files = app.files()
    status = None if crashed else app.stop()
    base.close()
    return {
        "minutes": minutes,
        "clients": clients,
        "honest": honest,
        "served": tally.served,
        "busy": tally.busy,
        "refused": tally.refused,
        "kinds": len(tally.kinds),
        "faults": tally.faults,
        "stuck": stuck,
        "crashes": int(crashed) + ("Traceback" in "".join(app.errors)),
        "log": app.errors,
        "jobs": dict(app.jobs),
        "after": after.how,
        "exit": status,
        "first": tally.first,
        "total": tally.total,
        "gap": tally.longest_gap,
        "memory": memory,
        "growth": growth(memory),
        "descriptors": (descriptors[0], descriptors[-1]) if descriptors else (0, 0),
        "files_on_the_way": files_on_the_way,
        "files": files,
    }


def _patiently(target: Target) -> Seen:
    """An honest request after it all; the queue may still be emptying."""
    for _ in range(30):
        seen = target.like().call("generate", num_images=1, steps=2)
        if seen.how == "done":
            return seen
        time.sleep(1)
    return seen


def growth(memory: list[float]) -> float:
    """The middle of the last quarter over that of the second: the first is for caches to fill."""
    quarter = max(1, len(memory) // 4)
    second, last = (
        sorted(part)[len(part) // 2] for part in (memory[quarter : 2 * quarter] or memory, memory[-quarter:])
    )
    return last / second - 1


def on_disk(samples: list[tuple[int, int]]) -> str:
    """How (number, bytes) of files went, in words."""
    if not samples:
        return "none seen"
    (first, _), (last, size) = samples[0], samples[-1]
    most, largest = (max(column) for column in zip(*samples))
    return f"{first} at first, {last} at last ({size / 1e3:.0f} kB), at most {most} ({largest / 1e3:.0f} kB)"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def failures(result: dict, max_growth: float = MAX_GROWTH) -> list[str]:
    """What is not as it should be, in words; empty if all is."""
    checks = [
        (result["crashes"], f"{result['crashes']} crashes or exceptions: {''.join(result['log'])[-2000:]}"),
        (result["faults"], f"{len(result['faults'])} wrong answers: {result['faults'][:5]}"),
        (result["stuck"], f"{result['stuck']} clients are stuck"),
        (result["after"] != "done", f"no answer to an honest request after it all, but {result['after']}"),
        (result["exit"] != 0, f"exit status {result['exit']} at the end"),
        (not result["served"], "no honest request was served"),
        (not result["refused"], "no abuse was answered"),
        (result["files"], f"{result['files']} files are left"),
        (result["growth"] > max_growth, f"memory grew by {result['growth']:.1%}"),
    ]
    return [words for wrong, words in checks if wrong]


def report(result: dict):
    """The numbers, one a line."""
    first, total = result["first"], result["total"]
    hostile = result["clients"] - result["honest"]
    lines = [
        ("clients", f"{result['honest']} honest, {hostile} hostile, {result['minutes']:g} minutes"),
        ("served", f"{result['served']} honest requests, at least one every {result['gap']:.1f} s"),
        ("told to come again", f"{result['busy']}"),
        ("refused with the right message", f"{result['refused']} of {result['kinds']} kinds"),
        ("wrong answers", f"{len(result['faults'])}"),
        ("crashes", f"{result['crashes']}"),
        ("first frame", f"p50 {percentile(first, 0.5):.2f} s, p95 {percentile(first, 0.95):.2f} s"),
        ("whole answer", f"p50 {percentile(total, 0.5):.2f} s, p95 {percentile(total, 0.95):.2f} s"),
        ("memory", f"{result['memory'][0]:.0f} MB at first, {result['memory'][-1]:.0f} MB at last, "
                   f"{result['growth']:+.1%} from the second quarter to the last"),
        ("open descriptors", "{} at first, {} at last".format(*result["descriptors"])),
        ("files during the run", on_disk(result["files_on_the_way"])),
        ("files left", f"{result['files']}"),
        ("jobs by outcome", ", ".join(f"{name} {count}" for name, count in sorted(result["jobs"].items()))),
    ]  # fmt: skip
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {words}" for name, words in lines), flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--honest", type=int, help="how many of them are (default: half)")
    parser.add_argument("--model", help="folder of a pipeline (default: the embedded model)")
    arguments = parser.parse_args(argv)
    honest = arguments.clients // 2 if arguments.honest is None else arguments.honest
    result = measure(arguments.model, arguments.minutes, arguments.clients, honest)
    report(result)
    wrong = failures(result)
    for line, count in itertools.islice(Counter(result["faults"]).items(), 20):
        print(f"wrong ({count} times): {line}")
    print("\n".join(f"FAILED: {words}" for words in wrong) or "all is well")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
