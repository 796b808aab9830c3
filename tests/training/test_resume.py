"""Resuming: to the bit, from whole checkpoints only, and with the settings that the run began with."""

import builtins
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_runs import assert_same_weights, metrics, newest, tiny_run, tiny_trainer, untimed

from ddpm_hf.checkpoints import newest_whole, problem_of, rotate, write_checkpoint
from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline
from ddpm_hf.training.plan import plan

VARIANTS = [
    {},
    {"dropout": 0.1, "horizontal_flip": True},
    {"gradient_accumulation_steps": 2, "ema_max_decay": [0.9999, 0.9]},
    {"loss_type": "min_snr", "prediction_type": "v_prediction", "gradient_checkpointing": True},
    {"model": "unet2d", "class_conditional": False},
    {"optimizer": "muon", "adam_weight_decay": 0.01, "timestep_sampling": "stratified", "mixed_precision": "bf16"},
    {"optimizer": "muon", "mixed_precision": "no", "model": "unet2d", "class_conditional": False},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_resuming_is_bit_equal_whatever_the_intervals(tmp_path, finished_run, settings):
    whole, broken = (finished_run(tmp_path / name, **settings) for name in ("whole", "broken"))
    # as if the process had died after step 8, in the middle of an epoch and between two lines of metrics
    shutil.rmtree(broken / "checkpoints" / "step-12")
    shutil.rmtree(broken / "pipeline")
    (broken / "samples" / "step-0000012.png").unlink()
    tiny_run(broken, **settings, checkpointing_steps=3, num_samples=4)
    assert_same_weights(whole, broken)
    assert untimed(metrics(whole)) == untimed(metrics(broken))
    grids = [(run / "samples" / "step-0000012.png").read_bytes() for run in (whole, broken)]
    assert grids[0] == grids[1]


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"max_images": 59}, {"seed": 1}, {"train_batch_size": 4}])
def test_resuming_with_other_settings_is_refused(tmp_path, finished_run, change):
    finished_run(tmp_path, max_train_steps=4)
    name, value = next(iter(change.items()))
    with pytest.raises(UserError, match=rf"holds a run with {name}=.*, not {value}\. Use the same .*--resume force"):
        tiny_run(tmp_path, max_train_steps=4, **change)


def test_all_differences_are_shown_and_force_goes_on(tmp_path, finished_run, capsys):
    finished_run(tmp_path, max_train_steps=4)
    with pytest.raises(UserError, match=r"max_train_steps=4, not 8; learning_rate=0\.001, not 0\.0005"):
        tiny_run(tmp_path, max_train_steps=8, learning_rate=5e-4)
    trainer = tiny_run(tmp_path, max_train_steps=8, learning_rate=5e-4, resume="force")
    assert "resuming with changed settings" in capsys.readouterr().out
    assert trainer.state.step == 8
    assert metrics(tmp_path)[-1]["step"] == 8
    tiny_run(tmp_path, max_train_steps=8, learning_rate=5e-4)  # these are the run's settings now


def positions_of(trainer) -> list[int]:
    """The images seen before each batch of the run, which ends here."""
    positions, batch = [], trainer.batches.batch
    trainer.batches.batch = lambda images_seen: (positions.append(images_seen), batch(images_seen))[1]
    trainer.train()
    return positions


def as_of_0_1(checkpoint: Path):
    """Take from a checkpoint what 0.1.0 did not write: the numbers of images."""
    shutil.copytree(checkpoint, checkpoint.with_name("copy"))
    state = json.loads((checkpoint / "state.json").read_text())
    images = state["progress"].pop("logged_images")
    state["progress"] |= {"logged_steps": images // 4}
    del state["progress"]["images_seen"]

    def write(partial: Path):
        shutil.copytree(checkpoint.with_name("copy"), partial, dirs_exist_ok=True)
        (partial / "manifest.json").unlink()
        (partial / "state.json").write_text(json.dumps(state))

    write_checkpoint(checkpoint, write)


@pytest.mark.parametrize("old", [False, True], ids=["", "0.1.0"])
def test_with_another_batch_size_the_images_seen_count(tmp_path, old):
    """2 epochs of batches of 4, then on to 4 epochs with batches of 8: as many images as in 4 epochs, each its turn."""
    settings = {"max_images": 42, "max_train_steps": None, "logging_steps": 5, "sample_steps": 1000}
    first = tiny_trainer(tmp_path, **settings, num_epochs=2, train_batch_size=4)
    assert len(first.data) == 40
    assert positions_of(first) == list(range(0, 80, 4))
    if old:
        as_of_0_1(newest(tmp_path))
    settings |= {"num_epochs": 4, "train_batch_size": 8, "resume": "force"}
    assert dict(plan(tiny_trainer(tmp_path, **settings)))["steps"].startswith("30 of 8 images, 4 epochs, 20 done")
    trainer = tiny_trainer(tmp_path, **settings)
    assert positions_of(trainer) == list(range(80, 160, 8))
    assert trainer.state.step == trainer.total_steps == 30
    lines = metrics(tmp_path)
    assert {line["step"]: line["images_seen"] for line in lines if line["step"] % 5 == 0} == {
        **{step: 4 * step for step in range(5, 21, 5)},
        25: 120,
        30: 160,
    }
    assert lines[-1]["epoch"] == 4
    tiny_run(tmp_path, **settings)  # it is finished
    assert metrics(tmp_path) == lines


def test_a_checkpoint_of_0_1_resumes_to_the_bit(tmp_path):
    settings = {"max_train_steps": None, "num_epochs": 1, "train_batch_size": 4}
    tiny_run(tmp_path / "whole", **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(newest(tmp_path / "broken"))
    as_of_0_1(newest(tmp_path / "broken"))
    tiny_run(tmp_path / "broken", **settings)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert untimed(metrics(tmp_path / "whole")) == untimed(metrics(tmp_path / "broken"))


def test_force_cannot_make_another_network_of_it(tmp_path, finished_run):
    finished_run(tmp_path, max_train_steps=4)
    with pytest.raises(UserError, match="step-4 does not fit this run") as error:
        tiny_run(tmp_path, max_train_steps=4, block_out_channels=[16, 16], resume="force")
    assert "\n" not in str(error.value)
    assert "its network differs in " in str(error.value)
    assert re.search(r"\S+weight is 8x\S+ there and 16x\S+ here", str(error.value))


def test_a_run_resumes_where_this_version_finds_labels_that_it_had_not(tmp_path):
    """Of 0.1.0, which read no metadata.csv: labels that are not trained with change nothing."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / "images" / f"{i}.png")
    settings = {"dataset": str(tmp_path / "images"), "sample_size": 8, "max_images": None, "class_conditional": False}
    tiny_run(tmp_path / "run", **settings, max_train_steps=4, checkpointing_steps=2)
    shutil.rmtree(newest(tmp_path / "run"))
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "images" / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    trainer = tiny_run(tmp_path / "run", **settings, max_train_steps=4, checkpointing_steps=2)
    assert (trainer.state.step, trainer.data.label_names) == (4, ["a", "b"])
    with pytest.raises(UserError, match="class_conditional=False, not True"):
        tiny_run(tmp_path / "run", **{**settings, "class_conditional": True}, max_train_steps=4)


def test_a_data_set_that_changed_is_noticed(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(20):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / "images" / f"{i}.png")
    settings = {"dataset": str(tmp_path / "images"), "class_conditional": False, "max_train_steps": 4}
    settings |= {"sample_size": 8, "max_images": None}
    tiny_run(tmp_path / "run", **settings)
    Image.new("L", (8, 8), 255).save(tmp_path / "images" / "3.png")
    with pytest.raises(UserError, match="the data set has changed since; --resume force"):
        tiny_run(tmp_path / "run", **settings)
    tiny_run(tmp_path / "run", **settings, resume="force")


def test_two_runs_in_one_folder_are_refused(tmp_path, finished_run):
    from filelock import FileLock

    finished_run(tmp_path, max_train_steps=4)
    before = (tmp_path / "metrics.jsonl").read_text()
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match=r"another run is training in .*; wait for it"):
        tiny_run(tmp_path, max_train_steps=4)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    tiny_run(tmp_path, max_train_steps=4)


# ---- damage

DAMAGES = [
    (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
    (lambda folder: (folder / "unet.safetensors").write_bytes(b"x" * 50), "unet.safetensors has 50 bytes, not"),
    (lambda folder: flip_a_bit(folder / "optimizer.safetensors"), "optimizer.safetensors is not what was written"),
    (lambda folder: flip_a_bit(folder / "pipeline" / "model_index.json"), "model_index.json is not what was written"),
    (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read: No such file"),
    (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not a manifest"),
    (lambda folder: (folder / "manifest.json").write_text('{"a": 1}'), "a is missing"),
    (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is not a manifest"),
]


def flip_a_bit(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_the_newest_whole_checkpoint_is_used_and_the_damaged_one_named(tmp_path, finished_run, capsys, damage, message):
    for name in ("whole", "run"):
        finished_run(tmp_path / name)
    damage(tmp_path / "run" / "checkpoints" / "step-12")
    tiny_run(tmp_path / "run")
    output = capsys.readouterr().out
    assert "step-12 is damaged: " in output
    assert message in output
    assert "step-8 is the newest complete checkpoint and is used" in output
    assert "resuming at step 8" in output
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    assert problem_of(newest(tmp_path / "run")) is None


def test_a_damaged_checkpoint_does_not_outlive_the_whole_ones(tmp_path, finished_run):
    """With room for one: a run that went back from a damaged step 12 to 8 and stopped at 10 must keep 10."""
    from test_stopping import StopAt

    for name in ("whole", "run"):
        finished_run(tmp_path / name)
    flip_a_bit(tmp_path / "run" / "checkpoints" / "step-12" / "unet.safetensors")
    trainer = tiny_run(tmp_path / "run", StopAt(3), checkpoints_total_limit=1)
    assert trainer.state.step == 10
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert "step-10" in names
    assert "step-12" not in names
    tiny_run(tmp_path / "run", checkpoints_total_limit=1)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_run_whose_newest_checkpoint_is_damaged_can_be_sampled(tmp_path, finished_run):
    finished_run(tmp_path)
    shutil.rmtree(tmp_path / "pipeline")
    flip_a_bit(tmp_path / "checkpoints" / "step-12" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    expected = load_pipeline(tmp_path / "checkpoints" / "step-8" / "pipeline").unet.state_dict()
    found = load_pipeline(tmp_path).unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_without_a_whole_checkpoint_nothing_is_lost(tmp_path, finished_run):
    finished_run(tmp_path, max_train_steps=4)
    flip_a_bit(tmp_path / "checkpoints" / "step-4" / "unet.safetensors")
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"not what was written, and there is no complete checkpoint; use another"):
        tiny_run(tmp_path, max_train_steps=4)
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "damage", [lambda run: (run / "config.yaml").unlink(), lambda run: (run / "config.yaml").write_text("[1")]
)
def test_a_run_without_its_settings_is_one_line(tmp_path, finished_run, damage):
    finished_run(tmp_path, max_train_steps=4)
    damage(tmp_path)
    with pytest.raises(UserError, match=r"no readable config\.yaml"):
        tiny_run(tmp_path, max_train_steps=4)


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path, finished_run):
    finished_run(tmp_path, max_train_steps=4)
    (tmp_path / "checkpoints" / "step-backup").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{}\n{"step": 3}\n{"ste')
    tiny_run(tmp_path, max_train_steps=4)
    assert (tmp_path / "checkpoints" / "step-backup").exists()
    assert load_pipeline(tmp_path / "checkpoints" / "..").num_classes == 10


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 8, 10):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-12.partial").mkdir()
    rotate(tmp_path, 2, best_step=4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-4", "step-8"]


def test_a_run_keeps_its_best_checkpoint(tmp_path, monkeypatch):
    """With a validation loss that is lowest in the middle, that step outlives the rotation."""
    from ddpm_hf.training.validation import Validation

    losses = iter([0.5, 0.2, 0.3, 0.4, 0.6, 0.7])
    monkeypatch.setattr(Validation, "__call__", lambda *_: (next(losses), [None] * 10))
    tiny_run(tmp_path, checkpointing_steps=2, validation_steps=2, checkpoints_total_limit=1)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-4", "step-12"}


# ---- dying while a checkpoint is written


def _die_after(operations: int):
    """From now on, the process kills itself at its n-th operation on the file system; nothing waits for the disk."""
    left = operations

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    os.fsync = lambda descriptor: None
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "open"):
        setattr(os, name, counted(getattr(os, name)))


def _write(folder: Path, content: str):
    """Write a checkpoint of three files, and remove those before it."""

    def write(partial: Path):
        (partial / "deep").mkdir()
        for name in ("a", "deep/b", "c"):
            (partial / name).write_text(content)

    write_checkpoint(folder, write)
    rotate(folder.parent.parent, 1, None)


def _write_in_a_child(folder: Path, content: str, operations: int) -> int:
    """``_write`` in a process that dies at an operation; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        _die_after(operations)
        _write(folder, content)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_kill_at_any_file_operation_leaves_whole_checkpoints_only(tmp_path):
    """Step 1 is there; step 2 is written by a process that dies at its 0th, 1st, 2nd, ... operation."""
    for operations in range(200):
        run = tmp_path / str(operations)
        _write(run / "checkpoints" / "step-1", "old")
        status = _write_in_a_child(run / "checkpoints" / "step-2", "new", operations)
        newest_one, complaints = newest_whole(run)
        assert complaints == []
        assert (newest_one / "deep" / "b").read_text() == {"step-1": "old", "step-2": "new"}[newest_one.name]
        _write(run / "checkpoints" / "step-3", "newer")
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-3"]
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert 15 < operations < 199  # it died at each of them, and then no more


def test_files_are_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    """All files and folders are synced, then it is renamed, then the folder above is synced."""
    import ddpm_hf.checkpoints as checkpoints

    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    renamed = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, new: (events.append("rename"), renamed(self, new))[1])
    folder = tmp_path / "checkpoints" / "step-1"
    checkpoints.write_checkpoint(folder, lambda partial: (partial / "a").write_text("x"))
    partial = str(folder.with_name(".step-1.partial"))
    assert set(events[:3]) == {f"{partial}/a", f"{partial}/manifest.json", partial}
    assert events[3:] == ["rename", str(folder.parent)]


def test_a_manifest_knows_every_file(tmp_path, finished_run):
    finished_run(tmp_path, max_train_steps=4)
    folder = newest(tmp_path)
    listed = set(json.loads((folder / "manifest.json").read_text()))
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert listed == present - {"manifest.json"}


@pytest.mark.parametrize("reason", ["ENOSPC", "EACCES"])
def test_a_checkpoint_that_cannot_be_written_is_one_line_and_the_last_is_intact(tmp_path, monkeypatch, reason):
    import ddpm_hf.training.state as state

    written = state.save_file

    def save_file(tensors, path):
        if "step-8" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(getattr(errno, reason), os.strerror(getattr(errno, reason)))
        written(tensors, path)

    message = r"step-8 could not be written: .*; the newest .* is step-4.*resumes the run"
    with monkeypatch.context() as disk, pytest.raises(UserError, match=message):
        disk.setattr(state, "save_file", save_file)
        tiny_run(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-4"]
    assert problem_of(tmp_path / "checkpoints" / "step-4") is None
    assert goes_on(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("step-0000006", "step-0000006.png: No space left on device; the newest whole"),
        ("metrics.jsonl", "metrics.jsonl: No space left on device; there is no checkpoint"),
    ],
)
def test_a_full_disk_anywhere_is_one_line_that_says_where_to_go_on(tmp_path, monkeypatch, name, message):
    """A grid or a line of metrics that finds no space. The error of a write does not say which file it is about."""
    opened = builtins.open

    def full(file, mode="r", *arguments, **keywords):
        if name in Path(os.fspath(file)).name and mode[0] in "wa":
            return opened("/dev/full", mode, *arguments, **keywords)
        return opened(file, mode, *arguments, **keywords)

    trainer = tiny_trainer(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr(builtins, "open", full)
        fails_in_one_line(trainer, message)
    assert goes_on(tmp_path)


def test_a_full_disk_at_the_end_is_one_line_that_says_where_to_go_on(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer = tiny_trainer(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr("ddpm_hf.training.trainer.export_pipeline", full)
        fails_in_one_line(trainer, "No space left on device; .* checkpoint is step-12")
    assert goes_on(tmp_path)


def fails_in_one_line(trainer, message: str):
    with pytest.raises(UserError, match=message) as error:
        trainer.train()
    assert "\n" not in str(error.value)


def goes_on(folder: Path) -> bool:
    """Whether the same run reaches its end, once there is space."""
    AcceleratorState._reset_state(True)
    return tiny_run(folder).state.step == 12
