"""Runs that are pushed to the Hub double while they train."""

import os
import re
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from tiny_runs import SMOKE, TINY, TORCHRUN, assert_same_weights, metrics, tiny_run, tiny_trainer, train_command

from ddpm_hf.__main__ import main
from ddpm_hf.checkpoints import checkpoints_of
from ddpm_hf.config import build_config
from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline
from ddpm_hf.run import Facts
from ddpm_hf.stopping import StopSignal
from ddpm_hf.training import pushing

HUB = {"push_to_hub": True, "hub_model_id": "alice/run"}
OF_RUN = {"config.yaml", "metrics.jsonl", "README.md", ".gitattributes", "model_index.json"}
OF_RUN |= {"unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"}


def files(hub, revision: str = "main") -> dict:
    return hub.repos["model", "alice/run"].resolve(revision).files


def titles(hub) -> list[str]:
    """Of the commits, oldest first, without the repository's own."""
    repo = hub.repos["model", "alice/run"]
    commit, found = repo.resolve("main"), []
    while commit:
        found.append(commit.title)
        commit = repo.commits.get(commit.parent)
    return found[-2::-1]


def same_weights(hub, name, revision="main") -> bool:
    file = files(hub, revision)["unet/diffusion_pytorch_model.safetensors"]
    return Path(hub.lfs_path(file.sha256)).read_bytes() == name.read_bytes()


def one_after_the_other(poll):
    """``poll``, waiting for the push before: a tiny run is faster than any Hub."""

    def wait(self):
        while self._running is not None and not self._running.sending.is_done():
            time.sleep(0.01)
        poll(self)

    return wait


def test_a_run_is_pushed_when_it_is_done(hub, tmp_path, capsys):
    folder = tmp_path / "run"
    tiny_run(folder, **HUB, hub_license="mit")
    assert titles(hub) == ["Upload model of step 12"]
    published = set(files(hub))
    samples = {"samples/step-0000006.png", "samples/step-0000012.png"}
    assert {name for name in published if not re.search(r"ddpm_hf_\w+_[0-9a-f]{12}\.py$", name)} == OF_RUN | samples
    assert same_weights(hub, folder / "pipeline/unet/diffusion_pytorch_model.safetensors")
    card = files(hub)["README.md"].data.decode()
    assert "license: mit" in card and "12 steps, 96 images seen" in card
    assert str(tmp_path) not in card + files(hub)["config.yaml"].data.decode()
    assert f"pushed step 12 to {hub.endpoint}/alice/run" in capsys.readouterr().out
    assert not (folder / ".push").exists()
    assert load_pipeline("alice/run").num_classes == 10


def test_every_checkpoint_is_pushed_and_tagged(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(pushing.Pushes, "poll", one_after_the_other(pushing.Pushes.poll))
    folder = tmp_path / "run"
    tiny_run(folder, **HUB, hub_strategy="every_save", hub_tag_steps=True, checkpoints_total_limit=9)
    assert titles(hub) == [f"Upload model of step {step}" for step in (4, 8, 12)]
    assert set(hub.repos["model", "alice/run"].tags) == {"step-4", "step-8", "step-12"}
    for step in (4, 8):
        weights = folder / f"checkpoints/step-{step}/pipeline/unet/diffusion_pytorch_model.safetensors"
        assert same_weights(hub, weights, f"step-{step}")
    assert [name for name in files(hub, "step-8") if "samples" in name] == ["samples/step-0000006.png"]


def test_the_best_checkpoint_is_pushed(hub, tmp_path):
    folder = tmp_path / "run"
    # a learning rate that makes it worse after the first checkpoints
    trainer = tiny_run(folder, **HUB, hub_strategy="best", validation_steps=4, learning_rate=0.05, lr_warmup_steps=0)
    best = trainer.run.best_step()
    assert best in (4, 8, 12)
    assert titles(hub)[-1] == f"Upload model of step {best}"
    weights = folder / f"checkpoints/step-{best}/pipeline/unet/diffusion_pytorch_model.safetensors"
    assert same_weights(hub, weights)


def test_a_failed_push_is_told_and_finished_by_the_command(hub, tmp_path, finished_run, capsys):
    hub.fault("POST", "/commit/main", times=10_000, status=403, message="Private storage limit reached")
    folder = tmp_path / "run"
    tiny_run(folder, **HUB, hub_strategy="every_save", hub_private_repo=True)
    out = capsys.readouterr().out
    command = f"`python -m ddpm_hf push {folder} --repo-id alice/run --private`"
    (line,) = {line for line in out.splitlines() if line.startswith("warning: step 12:")}
    assert "pushing to alice/run failed: the Hub refuses this (403: Private storage limit reached)" in line
    assert line.endswith(f"The run goes on; when that is fixed, {command} pushes it.")
    assert titles(hub) == []
    finished_run(tmp_path / "unpushed")
    assert_same_weights(folder, tmp_path / "unpushed")

    hub.faults.clear()
    assert main(["push", str(folder), "--repo-id", "alice/run"]) == 0
    assert titles(hub) == ["Upload model of step 12"]
    assert hub.repos["model", "alice/run"].private  # by the run's settings
    assert main(["push", str(folder)]) == 0  # to the run's repository
    assert len(titles(hub)) == 1


def test_a_failed_push_of_a_checkpoint_is_finished_with_its_tag(hub, tmp_path, capsys, monkeypatch):
    """As long as the checkpoint is kept; of one that is gone, the line says that the newest is pushed."""
    monkeypatch.setattr(pushing.Pushes, "poll", one_after_the_other(pushing.Pushes.poll))
    hub.fault("POST", "/commit/main", times=2, status=403, message="no")
    folder = tmp_path / "run"
    settings = {"hub_strategy": "every_save", "hub_tag_steps": True, "checkpoints_total_limit": 2}
    tiny_run(folder, **HUB, **settings)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: step ")]
    assert [line.split(":")[1] for line in lines] == [" step 4", " step 8"] and titles(hub) == [
        "Upload model of step 12"
    ]
    for step, line in zip((4, 8), lines):
        command = f"`python -m ddpm_hf push {folder} --repo-id alice/run --checkpoint {step} --tag step-{step}"
        command = f"{command} --tag-only`"
        assert line.endswith(f"when that is fixed, {command} pushes it, as long as its checkpoint is kept.")
    assert main(shlex.split(command.strip("`"))[3:]) == 0
    assert hub.repos["model", "alice/run"].tags.keys() == {"step-8", "step-12"}
    assert same_weights(hub, folder / "checkpoints/step-8/pipeline/unet/diffusion_pytorch_model.safetensors", "step-8")
    assert titles(hub) == ["Upload model of step 12"]  # what is newer stays on top
    assert same_weights(hub, folder / "pipeline/unet/diffusion_pytorch_model.safetensors")
    assert set(hub.repos["model", "alice/run"].branches) == {"main"}

    shutil.rmtree(folder / "checkpoints/step-8")
    pushes = pushing.Pushes(build_config({**TINY, **HUB, **settings, "output_dir": str(folder)}), print)
    pushes.push(8, Facts(), checkpoint=True)
    newest = f"`python -m ddpm_hf push {folder} --repo-id alice/run` pushes the newest, for that checkpoint is gone."
    assert capsys.readouterr().out.endswith(f"{newest}\n")
    (folder / "pipeline/model_index.json").unlink()
    pushes.push(12, Facts(), checkpoint=False)
    end = f"`python -m ddpm_hf push {folder} --repo-id alice/run --tag step-12` pushes it."
    assert capsys.readouterr().out.endswith(f"{end}\n")


def test_a_failed_push_of_a_checkpoint_without_a_tag_is_finished_by_the_newest(hub, tmp_path, capsys, monkeypatch):
    """It would cover what the run has pushed since, and nobody would find it below."""
    monkeypatch.setattr(pushing.Pushes, "poll", one_after_the_other(pushing.Pushes.poll))
    hub.fault("POST", "/commit/main", times=1, status=403, message="no")
    folder = tmp_path / "run"
    tiny_run(folder, **HUB, hub_strategy="every_save", checkpoints_total_limit=9)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: step 4:")]
    command = f"`python -m ddpm_hf push {folder} --repo-id alice/run`"
    assert line.endswith(f"when that is fixed, {command} pushes the newest.")
    assert main(shlex.split(command.strip("`"))[3:]) == 0
    assert titles(hub) == ["Upload model of step 8", "Upload model of step 12"]


def test_a_failed_last_push_of_the_best_is_finished_on_top(hub, tmp_path, capsys):
    hub.fault("POST", "/commit/main", times=10_000, status=403, message="no")
    folder = tmp_path / "run"
    options = {"hub_strategy": "best", "hub_tag_steps": True, "validation_steps": 4, "checkpoints_total_limit": 9}
    best = tiny_run(folder, **HUB, **options).run.best_step()
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: step ")][-1]
    command = f"`python -m ddpm_hf push {folder} --repo-id alice/run --checkpoint {best} --tag step-{best}`"
    assert f"when that is fixed, {command} pushes it" in line
    hub.faults.clear()
    assert main(shlex.split(command.strip("`"))[3:]) == 0
    assert titles(hub) == [f"Upload model of step {best}"]


def test_a_run_that_was_killed_can_be_pushed_with_its_facts(hub, tmp_path, monkeypatch):
    """Those of its last checkpoint: data sets, device, time, and where its settings come from."""
    folder = tmp_path / "run"
    trainer = tiny_trainer(folder, max_train_steps=40, dataset_license="mit")
    trainer.settings_from = "configs/x.yaml; else the defaults"
    trainer._started -= 600  # it took a while
    train_step = trainer.train_step

    def die():
        train_step()
        if trainer.state.step == 6:
            raise KeyboardInterrupt

    trainer.train_step = die
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert main(["push", str(folder), "--repo-id", "alice/run"]) == 0
    card = files(hub)["README.md"].data.decode()
    assert "## Environmental cost" in card and re.search(r"^0\.2 hours of training on \w", card, re.M)
    assert "The settings are from configs/x.yaml; else the defaults." in card
    assert "- fashion_mnist_tiny.parquet, licence mit" in card


def test_no_step_waits_for_a_hub_that_does_not_answer(hub, tmp_path, monkeypatch):
    """All steps are done, and the pipeline is exported, before the Hub answers the first request."""
    monkeypatch.setattr(pushing, "FIRST_ANSWER", 0.2)
    released, done_before = threading.Event(), []
    hub.fault("*", "", times=1, delay=3600)
    sleep = time.sleep
    monkeypatch.setattr("hubdouble.time.sleep", lambda s: released.wait(120) if s == 3600 else sleep(s))
    finish = pushing.Pushes.finish

    def release(self, stop):
        done_before.extend([len(metrics(tmp_path / "run")), not hub.repos, (tmp_path / "run/pipeline").is_dir()])
        released.set()
        finish(self, stop)

    monkeypatch.setattr(pushing.Pushes, "finish", release)
    tiny_run(tmp_path / "run", **HUB, hub_strategy="every_save")
    assert done_before == [4, True, True]
    assert titles(hub) == ["Upload model of step 12"]


def test_a_run_that_is_asked_to_stop_does_not_wait_for_the_hub(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pushing, "GRACE", 0.2)
    hub.fault("POST", "/commit/main", times=10_000, delay=60)
    stop = StopSignal()
    trainer = tiny_trainer(tmp_path / "run", stop, **HUB, hub_strategy="every_save")
    train_step = trainer.train_step

    def stop_at_six():
        train_step()
        if trainer.state.step == 6:
            stop.reason = "SIGTERM"

    trainer.train_step = stop_at_six
    assert trainer.train() is None
    out = capsys.readouterr().out
    command = f"`python -m ddpm_hf push {tmp_path / 'run'} --repo-id alice/run --checkpoint 4`"
    assert f"warning: step 4 was not pushed yet; {command} does it, as long as its checkpoint is kept." in out
    assert checkpoints_of(tmp_path / "run")[-1].name == "step-6"
    assert not (tmp_path / "run/.push").exists()


def test_the_end_of_a_run_does_not_wait_for_ever(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pushing, "LONGEST_END", 0.2)
    hub.fault("POST", "/commit/main", times=10_000, delay=60)
    folder = tmp_path / "run"
    begin = time.monotonic()
    tiny_run(folder, **HUB)
    assert time.monotonic() - begin < 55
    command = f"`python -m ddpm_hf push {folder} --repo-id alice/run`"
    assert f"warning: step 12 was not pushed yet; {command} does it." in capsys.readouterr().out
    assert (folder / "pipeline").is_dir() and not (folder / ".push").exists()


def test_a_private_run_is_not_pushed_to_a_public_repository(hub, tmp_path, capsys):
    from huggingface_hub import HfApi

    HfApi().create_repo("alice/run")
    with pytest.raises(UserError, match="pushing to alice/run failed: it exists and is public, nothing was uploaded"):
        tiny_run(tmp_path / "run", **HUB, hub_private_repo=True)
    assert titles(hub) == []
    tiny_run(tmp_path / "run", **HUB, max_train_steps=1)  # in the same folder


@pytest.mark.parametrize("name", ["model_index.json", "config.yaml", "samples/step-0000001.png"])
def test_a_repository_of_somebodys_is_noticed_before_the_first_step(hub, tmp_path, name):
    from huggingface_hub import CommitOperationAdd, HfApi

    HfApi().create_repo("alice/run")
    HfApi().create_commit("alice/run", [CommitOperationAdd(name, b'{"_class_name": "Mine"}')], commit_message="mine")
    with pytest.raises(UserError, match=f"holds {name} of another program, nothing was uploaded"):
        tiny_run(tmp_path / "run", **HUB)
    assert titles(hub) == ["mine"] and not list((tmp_path / "run").glob("[!.]*"))


def test_other_files_of_somebodys_stay_where_a_run_is_pushed_to(hub, tmp_path):
    from huggingface_hub import CommitOperationAdd, HfApi

    HfApi().create_repo("alice/run")
    notes = [CommitOperationAdd(name, b"mine") for name in ("notes.txt", "report.html", "unet/notes.txt")]
    HfApi().create_commit("alice/run", notes, commit_message="mine")
    tiny_run(tmp_path / "run", **HUB, max_train_steps=1)
    assert all(files(hub)[operation.path_in_repo].data == b"mine" for operation in notes)
    assert "model_index.json" in files(hub)


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        ({"hub_model_id": "not an id"}, {}, "hub_model_id: 'not an id' is not a Hub id"),
        ({}, {"HF_TOKEN": ""}, "push_to_hub needs a token with the role write; log in"),
        ({"hub_strategy": "best", "validation_split": "auto", "max_images": 1}, {}, "no images to validate on"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_first_step(tmp_path, monkeypatch, settings, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        tiny_run(tmp_path / "run", **{**HUB, **settings, "train_batch_size": 1})
    assert not (tmp_path / "run").exists()


def test_settings_of_the_hub_go_together():
    for settings, message in (
        ({"push_to_hub": True}, "push_to_hub needs hub_model_id"),
        ({**HUB, "hub_strategy": "best", "validation_split": None}, "it needs a validation_split"),
    ):
        with pytest.raises(UserError, match=message):
            build_config({**TINY, **settings})


@pytest.mark.slow
def test_two_ranks_push_once(hub, tmp_path):
    """Through the launcher, to a slow Hub; the second rank neither pushes nor waits."""
    hub.fault("*", "", times=10_000, delay=0.1)
    arguments = [*SMOKE, "--max_train_steps", "20", "--push_to_hub", "--hub_model_id", "acme/run"]
    process = train_command(
        *arguments,
        *("--hub_private_repo", "--hub_strategy", "every_save", "--output_dir", str(tmp_path / "run")),
        launcher=TORCHRUN,
        ACCELERATE_USE_CPU="1",
        HF_HUB_OFFLINE="0",
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    repo = hub.repos["model", "acme/run"]
    assert repo.private
    assert repo.resolve("main").title == "Upload model of step 20"
    assert output.count("pushed step 20 to") == 1
    created = [entry for entry in hub.log if entry["p"] == "/api/repos/create"]
    assert len(created) == 1


@pytest.mark.slow
def test_a_killed_run_leaves_no_upload_behind(hub, tmp_path):
    """SIGKILL while the Hub does not answer: the upload's process ends too, and nothing is published."""
    import psutil

    hub.fault("POST", "/commit/main", times=10_000, delay=600)
    arguments = [*SMOKE, "--max_train_steps", "100000", "--push_to_hub", "--hub_model_id", "alice/run"]
    arguments += ["--hub_strategy", "every_save", "--output_dir", str(tmp_path / "run")]
    process = train_command(*arguments, HF_HUB_OFFLINE="0")
    deadline = time.monotonic() + 200
    while not [entry for entry in hub.log if "/commit/main" in entry["p"]]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    uploads = psutil.Process(process.pid).children(recursive=True)
    assert any("ddpm_hf.hub.upload" in " ".join(child.cmdline()) for child in uploads)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    _, alive = psutil.wait_procs(uploads, timeout=300)
    assert not alive
    assert titles(hub) == []
