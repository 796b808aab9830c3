"""Samplers side by side: each lane is what it is alone, in step, and measured against all the steps."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageChops
from test_ui_frames import decoded
from test_ui_runs import drain, wait_for_end

from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_allowed
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import generate, with_sampler
from ddpm_hf.ui.comparison import Comparison, Reference, compare_for_program, rms_distance, stream_comparison
from ddpm_hf.ui.runs import Engine

LANES = [{"sampler": "dpm", "steps": 4}, {"sampler": "heun", "steps": 5}, {"sampler": "ddpm", "steps": 12}]
REQUEST = {"num_images": 3, "seed": 6, "guidance_scale": 2.0, "lanes": LANES}


@pytest.fixture
def short(engine, monkeypatch):
    """The reference in twenty steps: a thousand are for those who have the time."""
    monkeypatch.setattr("ddpm_hf.ui.models.Model.timesteps", 20)
    return engine


def alone(engine, lane) -> np.ndarray:
    pipeline = with_sampler(engine.pipeline, lane["sampler"])
    return generate(pipeline, 3, steps=lane["steps"], seed=6, guidance_scale=2.0).arrays()["images"]


def frames_of(values: list[dict]) -> list[dict]:
    """All frames of each lane."""
    lanes = [{} for _ in values[-1]["lanes"]]
    for value in values:
        for seen, lane in zip(lanes, value["lanes"], strict=True):
            seen |= lane["frames"]
    return lanes


def test_lanes_are_what_each_sampler_makes_alone_and_are_measured(short):
    values = drain(stream_comparison(short, REQUEST))
    last = values[-1]
    note = last["reference"].pop("note")
    assert last["state"] == "done" and last["reference"] == {"step": 20, "total": 20, "images": 2}
    assert "all 20 steps, over the first 2 images" in note and "other images" in note
    exact = alone(short, {"sampler": "ddim", "steps": 20})
    for lane, frames, chosen in zip(last["lanes"], frames_of(values), LANES, strict=True):
        images = alone(short, chosen)
        sheet = decoded(frames[str(lane["total"])]["src"])
        shown = [np.asarray(sheet.crop((x, y, x + 14, y + 14))) for x, y in ((0, 0), (14, 0), (0, 14))]
        assert np.array_equal(shown, images)
        if chosen["sampler"] == "ddpm":
            assert lane["fresh_noise"] and lane["distance"] is None
        else:
            distance = np.sqrt((((images[:2] - 1.0 * exact[:2]) / 255) ** 2).mean())
            assert not lane["fresh_noise"] and lane["distance"] == pytest.approx(distance, abs=1e-4)
        total = 9 if chosen["sampler"] == "heun" else chosen["steps"]
        assert (lane["sampler"], lane["total"], lane["calls"]) == (chosen["sampler"], total, 2 * total)
        assert lane["seconds"] > 0
    assert last["settings"] == {
        "model": "fashion_mnist_small",
        "num_images": 3,
        "class_name": "any",
        "guidance_scale": 2.0,
        "guidance_interval": [0, 1000],
        "seed": 6,
        "lanes": LANES,
    }


def test_guidance_in_an_interval_is_counted_and_made_as_alone(short):
    interval = [200, 600]
    last = drain(stream_comparison(short, {**REQUEST, "guidance_interval": interval}))[-1]
    for lane, chosen in zip(last["lanes"], LANES, strict=True):
        pipeline = with_sampler(short.pipeline, chosen["sampler"])
        steps = list(pipeline.denoise(3, [0, 1, 2], 2.0, chosen["steps"], seed=6, guidance_interval=interval))
        guided = sum(interval[0] <= step.timestep <= interval[1] for step in steps)
        assert 0 < guided < len(steps) and lane["calls"] == len(steps) + guided


def test_all_lanes_start_from_the_same_noise_and_go_in_step(short, monkeypatch):
    monkeypatch.setattr("ddpm_hf.ui.runs.FLUSH_SECONDS", 0.0)
    frames = [{}, {}, {}]
    for value in drain(stream_comparison(short, REQUEST)):
        for seen, lane in zip(frames, value["lanes"]):
            seen |= lane["frames"]
        made = [max(map(int, seen), default=0) / lane["total"] for seen, lane in zip(frames, value["lanes"])]
        largest_step = max(1 / lane["total"] for lane in value["lanes"])
        assert max(made) - min(made) <= 2 * largest_step
    # x_t, that is: what the network makes of the same noise depends on the first timestep of each sampler
    starts = [decoded(seen["0"]["src"]).convert("L").crop((0, 0, 28, 14)) for seen in frames]
    assert all(ImageChops.difference(starts[0], start).getextrema()[1] < 60 for start in starts[1:])
    for seen, lane in zip(frames, value["lanes"]):
        assert sorted(map(int, seen)) == list(range(lane["total"] + 1))


def test_the_starts_of_all_lanes_are_the_same_to_the_byte(short):
    """As they come first, before the network has made anything of them."""
    model = short.models.first
    lanes = tuple(model.limits.check(num_images=3, seed=6, guidance_scale=2.0, **lane) for lane in LANES)
    starts = {}
    for item in Comparison.run(model, [Comparison(model.name, lanes)]):
        for frame in item or ():
            starts.setdefault(frame.lane, (frame.index, frame.src))
    assert len(starts) == 3 and len(set(starts.values())) == 1


def test_the_reference_is_computed_once_for_the_same_noise(short):
    drain(stream_comparison(short, REQUEST))
    other = {**REQUEST, "lanes": [{"sampler": "unipc", "steps": 3}, {"sampler": "euler", "steps": 3}]}
    values = drain(stream_comparison(short, other))
    assert not values[-1]["cached"] and values[-1]["lanes"][0]["distance"] is not None
    measuring = [value for value in values if value["state"] == "measuring"]
    assert len(measuring) == 1  # the end of the lanes, and then at once the distances
    assert drain(stream_comparison(short, REQUEST))[-1]["cached"]


def test_how_long_the_reference_takes_is_told_before_and_while_it_is_computed(short, monkeypatch):
    monkeypatch.setattr("ddpm_hf.ui.runs.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("ddpm_hf.ui.comparison.REFERENCE_NEWS", 1)
    sleep = short.pipeline.unet.register_forward_hook(lambda *_: time.sleep(0.02))
    try:
        values = drain(stream_comparison(short, REQUEST))
    finally:
        sleep.remove()
    told = {value["state"]: [] for value in values[:-1]}
    for value in values[:-1]:
        told[value["state"]].append(value["reference"]["left"])
    before = [left for left in told["running"] if left is not None]
    assert before and all(20 * 0.02 * 2 / 3 <= left < 20 for left in before)  # two of three images
    while_it_is = told["measuring"]
    assert while_it_is[0] >= 20 * 0.02 * 0.5 and while_it_is[-1] < while_it_is[0]
    assert "left" not in values[-1]["reference"]


def test_leaving_while_it_measures_frees_the_model(engine):
    async def leave():
        stream = stream_comparison(engine, REQUEST)
        async for value in stream:
            if value["reference"]["step"] > 2:
                break
        await stream.aclose()
        return value

    value = asyncio.run(leave())
    assert value["state"] == "measuring" and value["reference"]["total"] == 1000
    wait_for_end(10)


def test_programs_get_the_same(short):
    *progress, answer = drain(compare_for_program(short, REQUEST))
    assert all(report["done"] is False and report["step"] <= report["total"] == 4 + 9 + 12 + 20 for report in progress)
    stage = drain(stream_comparison(short, REQUEST))[-1]
    assert [lane["distance"] for lane in answer["lanes"]] == [lane["distance"] for lane in stage["lanes"]]
    assert answer["done"] and answer["settings"] == stage["settings"] and answer["seeds"] == [6, 7, 8]
    assert answer["note"] == stage["reference"]["note"]
    assert all(lane["grid_png"].startswith("iVBOR") and "frames" not in lane for lane in answer["lanes"])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_samplers_with_fresh_noise_are_known(engine, name):
    """From one start, another source of noise leads elsewhere, or not."""
    pipeline = with_sampler(engine.pipeline, name)
    start = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    ends = [
        pipeline(1, num_inference_steps=4, latents=start, generator=torch.Generator().manual_seed(i), output_type="pt")
        for i in range(2)
    ]
    assert torch.equal(ends[0].images, ends[1].images) is not SAMPLERS[name].fresh_noise


def test_noise_of_their_own_is_not_measured(engine, monkeypatch):
    calls = []
    forward = engine.pipeline.unet.forward
    monkeypatch.setattr(engine.pipeline.unet, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    lanes = [{"sampler": "ddpm", "steps": 3}, {"sampler": "dpm-sde", "steps": 4}]
    last = drain(stream_comparison(engine, {**REQUEST, "lanes": lanes}))[-1]
    assert last["state"] == "done" and [lane["distance"] for lane in last["lanes"]] == [None, None]
    assert last["reference"]["note"].startswith("Not measured: noise of their own") and len(calls) == 3 + 4


def test_what_takes_too_long_is_not_measured_and_the_lanes_stay(engine, monkeypatch):
    monkeypatch.setattr("ddpm_hf.ui.comparison.REFERENCE_SECONDS", 0.0)
    values = drain(stream_comparison(engine, REQUEST))
    wait_for_end(10)
    *_, before, last = values
    assert (before["state"], last["state"]) == ("measuring", "done")
    assert all(str(lane["total"]) in frames for lane, frames in zip(last["lanes"], frames_of(values)))
    assert {lane["distance"] for lane in last["lanes"]} == {None}
    assert last["reference"]["note"] == "Not measured: all 1000 steps of DDIM take more than 0 s here at present."


def test_what_fails_is_not_measured_and_the_lanes_stay(short, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret")
        yield

    monkeypatch.setattr(Reference, "run", staticmethod(broken))
    values = drain(stream_comparison(short, REQUEST))
    last = values[-1]
    assert last["state"] == "done" and last["reference"]["note"].startswith("Not measured: the model failed")
    assert frames_of(values)[0] and last["lanes"][0]["distance"] is None


def test_the_reference_is_small_in_memory(short):
    drain(stream_comparison(short, REQUEST))
    settings = short.models.first.limits.check_comparison(**REQUEST)[0]
    frames = short.cache.get(Reference.of(short.models.first, settings))
    assert sum(frame.num_bytes for frame in frames) < 2000 and len(frames) == 2


@pytest.mark.slow  # the shipped model, many steps
def test_distances_of_the_shipped_model_tell_solvers_apart(monkeypatch):
    """More steps, or a better solver, end nearer to the solution. Its 1000 steps are 200 here: as good, and sooner."""
    monkeypatch.setattr(Reference, "of", classmethod(lambda cls, model, lane: _with_steps(cls, model, lane, 200)))
    engine = Engine(load_allowed(None))
    lanes = [("dpm", 5), ("ddim", 5), ("ddim", 50), ("dpm", 20)]
    lanes = [{"sampler": sampler, "steps": steps} for sampler, steps in lanes]
    last = drain(stream_comparison(engine, {"num_images": 2, "lanes": lanes, "seed": 0}))[-1]
    engine.close()
    crude, five, fifty, second = (lane["distance"] for lane in last["lanes"])
    print({f"{lane['sampler']} {lane['steps']}": lane["distance"] for lane in last["lanes"]})
    assert fifty < 0.5 * crude and crude < five and second < 0.5 * crude


def _with_steps(cls, model, lane, steps):
    settings = replace(lane, sampler="ddim", steps=steps, num_images=min(lane.num_images, 2))
    return cls(model.name, settings)


def test_rms_distance_is_of_the_pixels_range():
    black, white = np.zeros((2, 4, 4), np.uint8), np.full((2, 4, 4), 255, np.uint8)
    assert (rms_distance(black, black), rms_distance(black, white), rms_distance(white, black)) == (0, 1, 1)


ONE = {"sampler": "dpm", "steps": 4}
BAD_LANES = [
    *(None, [], [ONE], [ONE] * 5, "dpm", {}, [ONE, ONE], [ONE, None], [ONE, {"sampler": "x"}], [ONE, {"step": 1}]),
    *([ONE, {"sampler": "ddim", "steps": bad}] for bad in (0, 1001, float("nan"), True, "4", [4])),
    [{"sampler": "ddpm", "steps": 1000}, {"sampler": "ddim", "steps": 1000}, {"sampler": "heun", "steps": 500}],
]


@pytest.mark.parametrize("lanes", BAD_LANES)
def test_refuses_bad_lanes(engine, lanes):
    with pytest.raises(UserError) as caught:
        drain(stream_comparison(engine, {"lanes": lanes, "num_images": 8}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"num_images": 9}, {"num_images": 0}, {"steps": 4}, {"seed": -1}, {"model": "x"}])
def test_refuses_bad_comparisons(engine, values):
    with pytest.raises(UserError):
        drain(stream_comparison(engine, {**REQUEST, **values}))


@pytest.mark.parametrize("values", [None, 3, [], "x", [{}]])
def test_what_is_no_request_is_refused(engine, values):
    with pytest.raises(UserError, match="must be an object"):
        drain(stream_comparison(engine, values))
