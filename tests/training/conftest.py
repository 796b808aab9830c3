"""Fixtures of the trainer's tests."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import tiny_run

import ddpm_hf.training.monitors as monitors
import ddpm_hf.training.trainer as trainer
import ddpm_hf.training.validation as validation
from ddpm_hf.training.pictures import sample_grid


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Leave out what takes most of a tiny run's time: plots, most of the validation, most steps of the grids.

    Unless ``real_report`` or ``real_grids`` is there.
    """
    monkeypatch.setattr(validation, "LEAST_PAIRS", 50)
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(trainer, "write_report", lambda *_, **__: None)
    if "real_grids" not in request.fixturenames:
        monkeypatch.setattr(monitors, "sample_grid", short_grid)


def short_grid(pipeline, *arguments):
    """The grid of a run, drawn in two steps."""
    pipeline.register_to_config(num_inference_steps=2)
    return sample_grid(pipeline, *arguments)


@pytest.fixture
def real_report():
    """With this, runs write their report."""


@pytest.fixture
def real_grids():
    """With this, runs draw their grids in as many steps as their models have of their own."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> dict[str, Path]:
    """The finished runs of this process, by their settings."""
    return {}


@pytest.fixture
def finished_run(trained, tmp_path_factory):
    """``finished_run(folder, **settings)`` makes a finished tiny run of ``folder``, which is trained only once."""

    def finished_run(folder: Path, **settings) -> Path:
        key = json.dumps(settings, sort_keys=True)
        if key not in trained:
            trained[key] = tmp_path_factory.mktemp("run")
            tiny_run(trained[key], **settings)
        return shutil.copytree(trained[key], folder, dirs_exist_ok=True)

    return finished_run
