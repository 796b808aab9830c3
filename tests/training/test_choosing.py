"""Which weights of a run are shipped, and with which sampling: what was measured decides."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import moments_file
from tiny_runs import DATA, tiny_run

from ddpm_hf.__main__ import main as command
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.features import load_features
from ddpm_hf.hub import load_pipeline
from ddpm_hf.sampling import own_sampling
from scripts import choose_sampling, ship_model


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of few steps with two averages, and few things to choose from."""
    monkeypatch.setattr(choose_sampling, "GUIDANCE", ((1.0, 0, 1), (3.0, 0, 0.5)))
    monkeypatch.setattr(choose_sampling, "STEPS", (4, 1000))
    monkeypatch.setattr(choose_sampling, "REFERENCE_IMAGES", 200)
    tiny_run(tmp_path / "run", num_train_timesteps=6, max_train_steps=4, ema_max_decay=[0.5, 0.9])
    return tmp_path / "run"


def test_the_best_is_exported_and_recorded(run, tmp_path, monkeypatch, capsys):
    few = load_features(moments_file(tmp_path / "features.pt"), (1, 28, 28))  # three, for which ten images are enough
    monkeypatch.setattr(choose_sampling, "load_features", lambda *_: few)
    best, measured = choose_sampling.choose(run, DATA, None, 10)
    assert [result.candidate.weights for result in measured[:3]] == ["raw", "0.5", "0.9"]
    tried = {(r.candidate.sampling.guidance_scale, r.candidate.sampling.guidance_interval) for r in measured}
    assert tried == {(2.0, (0, 2)), (1.0, (0, 6)), (3.0, (0, 3))}
    assert {result.candidate.sampling.steps for result in measured} == {6, 4}
    chosen = next(result for result in measured if result.candidate == best)
    assert chosen.fid <= 1.02**3 * min(result.fid for result in measured)
    assert capsys.readouterr().out.count("network calls, FID") == len(measured)
    calls = {(r.candidate.sampling.steps, r.candidate.sampling.guidance_scale): r.calls for r in measured}
    assert calls[6, 1.0] == 6 and calls[6, 2.0] == 6 + 3 and calls[6, 3.0] == 6 + 4

    model = tmp_path / "model"
    assert command(["export", str(run), *map(str, ship_model.export_options(best)), "--output", str(model)]) == 0
    assert own_sampling(load_pipeline(model)) == best.sampling
    assert best.weights in json.loads((model / "model_index.json").read_text())["_weights"]
    monkeypatch.setattr(ship_model, "MODEL", model)
    ship_model.keep_measurements(best, measured, 10)
    record = json.loads((model / "sampling.json").read_text())
    assert len(record["measured"]) == len(measured) and record["chosen"]["fid"] == chosen.fid
    assert str(chosen) in capsys.readouterr().out


class Stub:
    """Stands in for images and for a feature extractor: what a number of steps makes has that number as features."""

    name = "stub"

    def __init__(self, images=None):
        self.images = images

    def __call__(self, images):
        return SimpleNamespace(features=images if isinstance(images, int) else torch.zeros(130, 2))


def test_of_what_is_as_good_the_one_with_fewest_calls_is_taken(run, monkeypatch):
    distances = {6: 1.0, 5: 1.01, 4: 1.019, 2: 1.5}

    def generated(pipeline, num_images, *, steps, **options):
        pipeline.scheduler.set_timesteps(steps)
        return Stub(steps)

    monkeypatch.setattr(choose_sampling, "GUIDANCE", ())
    monkeypatch.setattr(choose_sampling, "STEPS", tuple(distances))
    monkeypatch.setattr(choose_sampling, "generated_images", generated)
    monkeypatch.setattr(choose_sampling, "load_features", lambda *_: Stub())
    monkeypatch.setattr(choose_sampling, "frechet_distance", lambda made, _: distances[made])
    best, _ = choose_sampling.choose(run, DATA, "0.5", 130)
    assert (best.weights, best.sampling.steps) == ("0.5", 4)


def test_what_cannot_be_chosen_from_is_one_line(run, tmp_path):
    with pytest.raises(UserError, match=r"is not the output_dir of a run: it has no config\.yaml"):
        choose_sampling.choose(tmp_path, DATA, None, 130)
    with pytest.raises(UserError, match=r"has no weights '0\.7'"):
        choose_sampling.choose(run, DATA, "0.7", 130)
    with pytest.raises(UserError, match="too few"):
        choose_sampling.choose(run, DATA, None, 20)
