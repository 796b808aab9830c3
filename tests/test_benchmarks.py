"""The benchmark of training runs at its smallest setting, so that it cannot rot."""

import pytest
from accelerate.state import AcceleratorState
from helpers import ROOT

from benchmarks import train_throughput

TINY = ["block_out_channels=[8, 16]", "feed_forward_dim=16", "attention_levels=[1]", "num_train_timesteps=20"]


@pytest.fixture(autouse=True)
def repository_images(monkeypatch):
    monkeypatch.setattr(train_throughput, "FASHION_MNIST", ROOT / "no such folder")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("side", train_throughput.SIDES)
def test_every_side_makes_a_step_of_the_seeds_network(side):
    arguments, _ = train_throughput.parse(["--batch", "1", "--warmup", "0", "--steps", "1"])
    result = train_throughput.run_side(side, arguments)
    assert result["seconds"] > 0


@pytest.mark.slow
def test_tables(capsys):
    common = ["--batch", "1", "--rounds", "1", "--warmup", "0", "--steps", "1", "--scales", "30", "40"]
    train_throughput.main([*common, "--sides", "ours", "--ours", *TINY])
    printed = capsys.readouterr().out
    assert "loops: seed's network" in printed and "\nours " in printed
    assert "images/s x" in printed and "checkpoint, every 500" in printed
