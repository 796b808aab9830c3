"""Random changes of valid settings, models and checkpoints: every outcome is success or one line."""

import json
import os
import time

import pytest
from hostile.cases import INDEX, SCHEDULER, UNET
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ddpm_hf.checkpoints import read_state
from ddpm_hf.config import TrainConfig, build_config
from ddpm_hf.errors import UserError, printable
from ddpm_hf.hub import export_pipeline, load_pipeline
from ddpm_hf.hub.card import given_in
from ddpm_hf.hub.run_files import run_files_of
from ddpm_hf.reading import parse_json, parse_yaml

ROUND = 100  # examples
SECONDS = float(os.environ.get("SWEEP_SECONDS", "30"))  # for each kind of change: on a slow machine there are fewer
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2, 8, 16, 4096, 10**5, 10**9, 10**30, 10**400])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=20)
    | st.sampled_from(["", "\x1b[2J", "../..", "linear", "epsilon", "x" * 10_000])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8
)
QUICK = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),
}
CARD = """---
license: apache-2.0
base_model: [alice/squares]
library_name: diffusers
tags: [ddpm, unconditional-image-generation]
datasets:
- name: "Ä"
---
# Squares
"""
STATE = {
    "progress": {"step": 2, "skipped_steps": 0, "loss_sum": 0.5, "usual_error": None},
    "num_processes": 1,
    "fingerprint": "a",
    "ema_max_decays": ["0.9999"],
    "streams": None,
}


def test_build_config_bounds_every_number():
    """Each number of the schema has an upper bound, so that none can be forgotten."""
    for name, field in TrainConfig.model_fields.items():
        if field.annotation in (int, float, int | None, float | None):
            assert any(hasattr(rule, "le") or hasattr(rule, "lt") for rule in field.metadata), name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from helpers import tiny_pipeline

    return export_pipeline(tmp_path_factory.mktemp("sweep") / "model", tiny_pipeline(num_class_embeds=2))


def one_line(attempt):
    """Run ``attempt``; a UserError of one printable line is as good as success."""
    try:
        return attempt()
    except UserError as error:
        assert str(error) == printable(error) != ""
        return None


def sweep(name: str, examples: int, model, folder):
    """``examples`` random changes of what ``name`` says, a round at a time as long as ``SECONDS`` last."""
    ends = time.monotonic() + SECONDS
    for start in range(0, examples, ROUND):

        @seed(start)
        @settings(max_examples=min(ROUND, examples), **QUICK)
        @given(st.data())
        def changed(data):
            CHANGES[name](data, model, folder)

        if time.monotonic() < ends:
            changed()


def _config(data, model, folder):
    name = data.draw(st.sampled_from(sorted(TrainConfig.model_fields)))
    more = data.draw(st.dictionaries(st.sampled_from(sorted(TrainConfig.model_fields)), VALUES, max_size=3))
    one_line(lambda: build_config({"dataset": "d", name: data.draw(VALUES), **more}))


def _model(data, model, folder):
    file = data.draw(st.sampled_from([INDEX, UNET, SCHEDULER]))
    before = (model / file).read_text()
    values = json.loads(before)
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(VALUES)
    try:
        (model / file).write_text(json.dumps(values))
        one_line(lambda: load_pipeline(model))
        one_line(lambda: run_files_of(model))
    finally:
        (model / file).write_text(before)


def _weights(data, model, folder):
    """Bytes of the header or behind it, or the length of the file."""
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    before = file.read_bytes()
    place = data.draw(st.integers(0, min(len(before), 3000) - 1))
    new = data.draw(st.binary(max_size=9))
    end = data.draw(st.sampled_from([None, place, len(before) - 1]))
    try:
        file.write_bytes((before[:place] + new + before[place + len(new) :])[:end])
        one_line(lambda: load_pipeline(model))
    finally:
        file.write_bytes(before)


def _state(data, model, folder):
    values = json.loads(json.dumps(STATE))
    part = values if data.draw(st.booleans()) else values["progress"]
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(VALUES)
    (folder / "state.json").write_text(json.dumps(values))
    one_line(lambda: read_state(folder))


def _cards(data, model, folder):
    """A piece of a valid card, or none, in the place of another."""
    start, length = data.draw(st.integers(0, len(CARD))), data.draw(st.integers(0, 20))
    piece = data.draw(st.text(max_size=9) | st.sampled_from(["---\n", "&a [*a]", "[" * 60, "!!python/name:os.system"]))
    found = given_in(CARD[:start] + piece + CARD[start + length :])
    assert all(value is None or isinstance(value, str | list) for value in found.values())


def _texts(data, model, folder):
    """JSON and YAML: a ValueError is what their readers raise."""
    text = data.draw(st.text(max_size=60) | st.text("{}[]:,-&*<!?|>'\" \na1#%@`", max_size=60))
    for parse in (parse_json, parse_yaml):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)


CHANGES = {
    "config": _config,
    "model": _model,
    "weights": _weights,
    "state": _state,
    "cards": _cards,
    "texts": _texts,
}


@pytest.mark.parametrize("name", CHANGES)
def test_random_changes(name, model, tmp_path):
    sweep(name, 60, model, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 100)
@pytest.mark.parametrize("name", CHANGES)
def test_10_000_random_changes(name, model, tmp_path):
    sweep(name, 2000, model, tmp_path)
