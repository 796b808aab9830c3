"""The command in processes of its own: kills, signals, two ranks, a full disk, mistakes."""

import functools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, moments_file
from tiny_runs import SMOKE, TORCHRUN, assert_same_weights, metrics, newest, train_command, untimed

import train
from benchmarks.kill_resume import kill, launch, survive
from ddpm_hf.checkpoints import newest_whole, problem_of

TWO_RANKS = [*SMOKE, "--max_train_steps", "12", "--checkpointing_steps", "4", "--sample_steps", "6"]
TWO_RANKS += ["--validation_steps", "4", "--gradient_accumulation_steps", "2", "--report_to", "tensorboard"]


def wait_for(condition, process=None, seconds: float = 200):
    """Wait until ``condition()``, and fail if the process ends or the time is over before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def finish(process, seconds: float = 200) -> str:
    """The output of a process that ends well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path):
    """Each leaves a checkpoint equal to that of the uninterrupted run; so does the end, down to metrics and grids."""
    lines = []
    assert survive(tmp_path, kills=10, seed=1, start=launch, say=lines.append) == 10, lines
    assert any("writing a checkpoint" in line for line in lines)


@pytest.mark.slow
def test_two_ranks_killed_and_resumed(tmp_path):
    """Two ranks over gloo, with accumulation, averages, dropout and a kill in the middle of an epoch."""
    random = ["--dropout", "0.1", "--horizontal_flip", "--ema_max_decay", "[0.9999, 0.9]"]

    def start(folder: Path):
        arguments = [*TWO_RANKS, *random, "--output_dir", str(folder)]
        return train_command(*arguments, launcher=TORCHRUN, ACCELERATE_USE_CPU="1")

    assert "2 process(es)" in finish(start(tmp_path / "whole"))
    process = start(tmp_path / "broken")
    wait_for((tmp_path / "broken/checkpoints/step-4").exists, process)
    kill(psutil.Process(process.pid))
    process.communicate(timeout=300)
    finish(start(tmp_path / "broken"))
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert untimed(metrics(tmp_path / "whole")) == untimed(metrics(tmp_path / "broken"))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_rank_and_two_are_the_same_run(tmp_path, optimizer):
    """The same images, noise, timesteps and grids; only sums round differently. One of two ranks may go on alone."""
    arguments = [*TWO_RANKS, "--optimizer", optimizer, "--timestep_sampling", "stratified"]
    arguments += ["--mixed_precision", "no", "--score_features", moments_file(tmp_path / "features.pt")]
    arguments += ["--score_steps", "6", "--score_images", "21"]
    finish(train_command(*arguments, "--output_dir", str(tmp_path / "one")))
    two = [*arguments, "--output_dir", str(tmp_path / "two")]
    finish(train_command(*two, launcher=TORCHRUN, ACCELERATE_USE_CPU="1"))
    scores = 0
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        if "validation_loss" in a:
            assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-3)
            assert b["validation_loss_by_timestep"] == pytest.approx(a["validation_loss_by_timestep"], rel=1e-2)
        if "frechet_distance" in a:
            assert b["frechet_distance"] == pytest.approx(a["frechet_distance"], rel=1e-2)
            scores += 1
    assert scores == 2
    names = [sorted(path.name for path in (tmp_path / run / "samples").iterdir()) for run in ("one", "two")]
    assert names[0] == names[1]
    (tmp_path / "two" / "checkpoints" / "step-12").rename(tmp_path / "gone")
    assert "this run had 2 process(es) and has 1 now" in finish(train_command(*two))


# ---- signals


ENDLESS = [*SMOKE, "--max_train_steps", "100000", "--block_out_channels", "[8,16]", "--attention_levels", "[]"]
SAMPLING = ["--sample_steps", "5", "--num_samples", "1000"]  # long enough for a signal to fall into it


def check_stopped(run: Path, output: str, number) -> int:
    """The step at which a run was stopped, once its output and its folder have been found right."""
    step = int(re.search(rf"stopped at step ([\d,]+) of 100,000 \({number.name}\)", output)[1].replace(",", ""))
    assert newest(run).name == f"step-{step}"
    assert problem_of(newest(run)) is None
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    assert (run / "report.html").exists()
    return step


def has_metrics(run: Path) -> bool:
    return (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0


@pytest.mark.parametrize(("number", "more"), [(signal.SIGINT, []), (signal.SIGTERM, SAMPLING)], ids=str)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, monkeypatch, capfd, real_report, real_grids, number, more):
    monkeypatch.chdir(ROOT)
    ended = threading.Event()

    def signal_once_it_trains():
        wait_for(lambda: has_metrics(tmp_path) or ended.is_set())
        if not ended.is_set():
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=signal_once_it_trains)
    sender.start()
    try:
        assert train.main([*ENDLESS, *more, "--output_dir", str(tmp_path)]) == 0
    finally:
        ended.set()
        sender.join()
    output = capfd.readouterr()
    step = check_stopped(tmp_path, output.out + output.err, number)
    if more:  # the step's line was written, its pictures were not
        assert (step, list((tmp_path / "samples").iterdir())) == (5, [])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_to_a_process_ends_it_well(tmp_path, number):
    process = train_command(*ENDLESS, "--output_dir", str(tmp_path))
    wait_for(lambda: has_metrics(tmp_path), process)
    process.send_signal(number)
    check_stopped(tmp_path, finish(process), number)


def imports_torch(process) -> bool:
    """Whether the process has loaded libraries of torch, of which ``import torch`` loads many more than the first."""
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.slow
def test_a_signal_while_torch_is_imported_leaves_nothing(tmp_path):
    process = train_command(*SMOKE, "--output_dir", str(tmp_path / "run"))
    wait_for(lambda: imports_torch(process), process)
    process.send_signal(signal.SIGTERM)
    assert "stopped before the first step (SIGTERM)" in finish(process)
    assert not (tmp_path / "run").exists()


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("ddpm_hf.training.Trainer", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main([*SMOKE, "--output_dir", str(tmp_path / "run")]) == 0
    assert "stopped before the first step (SIGTERM)" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["one rank", "launcher"])
def test_all_ranks_stop_together(tmp_path, victim):
    """SIGTERM to a single rank stops both; so does the death of their launcher, which nobody forwards."""
    arguments = [*TWO_RANKS, "--max_train_steps", "100000", "--output_dir", str(tmp_path)]
    process = train_command(*arguments, launcher=TORCHRUN, ACCELERATE_USE_CPU="1")
    wait_for((tmp_path / "checkpoints" / "step-4").exists, process)
    launcher = psutil.Process(process.pid)
    ranks = [child for child in launcher.children(recursive=True) if "train.py" in " ".join(child.cmdline())]
    assert len(ranks) == 2
    if victim == "one rank":
        ranks[1].send_signal(signal.SIGTERM)
    else:
        launcher.kill()
    _, alive = psutil.wait_procs(ranks, timeout=300)
    assert not alive
    output, _ = process.communicate(timeout=300)
    assert (process.returncode == 0) == (victim == "one rank"), output
    assert "stopped at step" in output
    checkpoint, complaints = newest_whole(tmp_path)
    assert complaints == []
    assert f"the state is saved in {checkpoint}" in output


# the main process fails in a way that nobody foresaw, at its first line of metrics
UNFORESEEN = """
import sys
from ddpm_hf.run import RunFolder
def append(self, record):
    raise RuntimeError("nobody foresaw this")
RunFolder.append = append
import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_no_rank_waits_for_a_main_process_that_failed(tmp_path):
    """The main process shows the traceback, the other ends by itself: the launcher waits for it."""
    script = tmp_path / "unforeseen.py"
    script.write_text(UNFORESEEN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(script), *TWO_RANKS, "--output_dir", str(tmp_path / "run")]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert "RuntimeError: nobody foresaw this" in outputs[0]
    assert [process.returncode for process in ranks] == [1, 2], outputs[1]
    assert "Traceback" not in outputs[1]


# ---- a disk that is full


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_last_checkpoint_intact(tmp_path):
    """No file may grow beyond a limit that the weights pass, but the optimizer's state does not."""
    whole = [*SMOKE, "--max_train_steps", "4", "--checkpointing_steps", "2", "--output_dir", str(tmp_path)]
    finish(train_command(*whole, "--max_train_steps", "2"))
    sizes = {path.name: path.stat().st_size for path in newest(tmp_path).iterdir()}
    limit = (sizes["unet.safetensors"] + sizes["optimizer.safetensors"]) // 2
    result = subprocess.run(
        [sys.executable, "train.py", *whole, "--resume", "force"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "step-4 could not be written" in line
    assert "the newest whole checkpoint is step-2" in line
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    assert problem_of(newest(tmp_path)) is None
    assert "resuming at step 2" in finish(train_command(*whole, "--resume", "force"))


# ---- the command line


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    process = train_command(*SMOKE, "--output_dir", str(tmp_path / "run"), "--learning_rat", "1")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output == "error: unknown setting '--learning_rat'; did you mean 'learning_rate'?\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nowhere/to/be/found"], "error: data set 'nowhere/to/be/found' does not exist"),
        (
            ["--train_batch_size", "9", "--gradient_accumulation_steps", "2"],
            "error: train_batch_size=9 must be a multiple",
        ),
    ],
)
def test_a_mistake_that_the_trainer_finds_is_one_line_too(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    assert train.main([*SMOKE, "--output_dir", str(tmp_path / "run"), *arguments]) == 2
    output = capsys.readouterr()
    (line,) = (output.out + output.err).strip().splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "run").exists()


def test_help_lists_every_setting():
    output = finish(train_command("--help"), 60)
    assert "--ema_max_decay" in output
    assert "largest decay of the weight average" in " ".join(output.split())


def test_a_dry_run_prints_the_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert train.main([*SMOKE, "--output_dir", str(tmp_path / "run"), "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "time to finish" in output
    assert "903 images of 1x32x32 of train in 10 classes (" in output
    assert not (tmp_path / "run").exists()


# a run in a process that sees only what its first argument lists; PATHS are of all that is installed
HIDING = """
import importlib.machinery, json, sys
hidden = set(json.loads(sys.argv[1]))
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)
sys.meta_path[:] = [Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
import train
sys.exit(train.main(sys.argv[2:]))
"""


def script_header() -> list[str]:
    """The dependencies that train.py declares (PEP 723)."""
    text = (ROOT / "train.py").read_text()
    block = re.search(r"^# /// script\n(.*?)^# ///$", text, re.M | re.S)[1]
    header = "\n".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines())
    return re.findall(r'^\s+"(.+)",$', header, re.M)


def modules_not_of(requirements: list[str]) -> set[str]:
    """Installed top-level modules that ``requirements`` and all that these need do not bring."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    brought, left = set(), [Requirement(line) for line in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in brought and extras == {""}:
            continue
        brought.add(name)
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                left.append(needed)
    owners = packages_distributions()
    return {module for module, names in owners.items() if not brought & {canonicalize_name(name) for name in names}}


@pytest.mark.slow
def test_the_script_header_is_what_the_trainer_needs(tmp_path):
    """PEP 723: lines of requirements.txt, and a run with everything in it sees nothing else that is installed."""
    lines = script_header()
    assert set(lines) <= set((ROOT / "requirements.txt").read_text().splitlines())
    hidden = modules_not_of(lines)
    assert {"gradio", "pytest", "trackio"} <= hidden
    arguments = [*SMOKE, "--max_train_steps", "4", "--score_features", moments_file(tmp_path / "features.pt")]
    arguments += ["--score_images", "12", "--report_to", "auto", "--output_dir", str(tmp_path / "run")]
    arguments += ["--block_out_channels", "[8,16]", "--attention_levels", "[]", "--train_batch_size", "8"]
    arguments += ["--validation_images", "20"]
    command = [sys.executable, "-c", HIDING, json.dumps(sorted(hidden)), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "could not be written" not in result.stdout
    (line,) = metrics(tmp_path / "run")
    assert {"validation_loss", "frechet_distance"} <= set(line)
    assert {"report.html", "pipeline", "loss.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
