"""Fixtures of the trainer's tests."""

import pytest
from accelerate.state import AcceleratorState

import ddpm_hf.training.trainer as trainer
import ddpm_hf.training.validation as validation


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """A process has one precision; the next test may want another."""
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Leave out what takes most of a tiny run's time, the plots and most of the validation; unless `real_report`."""
    monkeypatch.setattr(validation, "LEAST_PAIRS", 50)
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(trainer, "write_report", lambda *_, **__: None)


@pytest.fixture
def real_report():
    """With this, runs write their report."""
