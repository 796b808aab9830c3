"""The folder of a run: every reader sees the same lines, and facts are numbers, also those of version 0.1.0."""

import json
import tracemalloc

import pytest

from ddpm_hf.errors import UserError
from ddpm_hf.run import Facts, RunFolder

OLD = {  # as version 0.1.0 wrote them
    "Images": "60,000 gray",
    "Validation": "1,000 held-out images",
    "Parameters": "5,486,113",
    "Steps": "9,300 of 9,400, 64 images each",
    "Processes": "2 on cuda",
    "Device": "2 x GPU 9000",
    "Precision": "bf16",
    "Wall time": "1 day, 2:13:46",
    "Best checkpoint": "step-9300, by validation loss",
    "Hub data sets": "alice/shapes, alice/secret",
    "Settings": "configs/x.yaml",
    "Code": "d3244a2",
}
FACTS = Facts(
    images=60_000,
    mode="gray",
    validation_images=1000,
    parameters=5_486_113,
    step=9300,
    total_steps=9400,
    batch_size=64,
    processes=2,
    device_type="cuda",
    device="2 x GPU 9000",
    precision="bf16",
    wall_seconds=94_426,
    best_step=9300,
    hub_datasets=["alice/shapes", "alice/secret"],
    settings_from="configs/x.yaml",
    code="d3244a2",
)


def test_facts_of_older_runs_are_read_and_described_as_before(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "facts.json").write_text(json.dumps(OLD))
    assert run.facts() == FACTS
    assert run.facts().described() == OLD
    run.keep_facts(FACTS)
    assert run.facts() == FACTS
    assert json.loads((tmp_path / "facts.json").read_text())["hub_datasets"] == ["alice/shapes", "alice/secret"]


@pytest.mark.parametrize(
    "text",
    ["[1", "[]", "{}", '{"images": "many"}', '{"Images": null}', '{"Wall time": [1]}', '{"wall_seconds": 1e999}'],
)
def test_facts_that_are_none(tmp_path, text):
    (tmp_path / "facts.json").write_text(text)
    assert RunFolder(tmp_path).facts() in (Facts(), Facts(wall_seconds=1))


def test_metrics_have_one_reader(tmp_path):
    run = RunFolder(tmp_path)
    assert run.lines() == [] and run.last_values() == {} and run.best_step() is None and not run.has_line(1)
    run.append({"step": 5, "loss": 0.5, "validation_loss": 0.25})
    run.append({"step": 10, "loss": float("nan"), "validation_loss": 0.5, "by_timestep": [0.1, None, float("inf")]})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(
            '{"step": true, "loss": 1}\n{"step": "7"}\n[1]\n{"step": 15, "loss": 0.125, "note": "text"}\n{"step": 2'
        )
    assert [line["step"] for line in run.lines()] == [5, 10, 15]
    assert run.lines()[1]["by_timestep"] == [0.1, None, None]
    assert run.last_values() == {"step": 15, "loss": 0.125, "validation_loss": 0.5, "by_timestep": [0.1, None, None]}
    assert run.last_values(10)["loss"] == 0.5
    for step in (10, 15):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    assert run.best_step() == 10  # step 5 has no checkpoint
    assert run.has_line(10)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]
    run.forget_after(10)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before
    assert not run.has_line(11)
    run.append({"step": 8, "loss": 2.0})  # of a run that began again
    assert [line["step"] for line in run.lines()] == [5, 8]


def test_what_is_no_run_is_told_in_one_line(tmp_path):
    for text, message in (
        (None, "has no config.yaml"),
        ("a: [", "cannot be read"),
        ("a: 1", "is not of a training run"),
    ):
        if text is not None:
            (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            RunFolder(tmp_path).read_settings()
    with pytest.raises(UserError, match="is not there"):
        RunFolder(tmp_path / "none").read_settings()


def test_metrics_of_any_size_are_resumed_in_little_memory(tmp_path):
    """What is no line is dropped, what is one stays; no part of the file is ever held whole."""
    run = RunFolder(tmp_path)
    run.append({"step": 1, "loss": 0.5})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.truncate(300 * 2**20)
        file.seek(0, 2)
        file.write(b'\n{"step": 2, "loss": 0.25}\n{"step": 3, "loss": 0.125}\n')
    tracemalloc.start()
    run.forget_after(2)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()
    assert [line["step"] for line in run.lines()] == [1, 2]
