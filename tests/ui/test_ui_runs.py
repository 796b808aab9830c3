"""Runs: every frame is delivered, seeds mean what they mean elsewhere, and closing ends the work."""

import asyncio
import base64
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageChops
from test_ui_frames import decoded, frames_of

from ddpm_hf.errors import UserError
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import Sampling, generate, with_sampler, with_sampling
from ddpm_hf.ui import runs, tasks
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.runs import Engine, generate_for_program, stream_to_stage
from ddpm_hf.ui.tasks import Generation

REQUEST = {"num_images": 4, "steps": 6, "seed": 11, "sampler": "dpm", "guidance_scale": 1.0}


async def collected(stream) -> list:
    return [value async for value in stream]


def drain(stream) -> list:
    return asyncio.run(collected(stream))


def run_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "model"]


def wait_for_end(deadline=120.0):
    start = time.monotonic()
    while run_threads() and time.monotonic() - start < deadline:
        time.sleep(0.01)
    assert not run_threads()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("which", ["engine", "plain_engine"])
def test_every_frame_arrives_and_the_last_is_exact(which, sampler, request):
    engine = request.getfixturevalue(which)
    values = drain(stream_to_stage(engine, {**REQUEST, "sampler": sampler}))
    frames = frames_of(values)
    last = values[-1]
    assert (last["state"], last["steps"]) == ("done", 6)
    assert sorted(map(int, frames)) == list(range(last["total"] + 1))
    expected = generate(with_sampler(engine.pipeline, sampler), 4, steps=6, seed=11).images
    width, height = last["tile"]
    sheet = decoded(frames[str(last["total"])]["src"])
    for i, image in enumerate(expected):
        x, y = i % 2 * width, i // 2 * height
        assert np.array_equal(np.asarray(sheet.crop((x, y, x + width, y + height))), np.asarray(image))


def test_values_describe_the_run(engine):
    values = drain(stream_to_stage(engine, REQUEST))
    assert len({value["run"] for value in values}) == 1
    assert values[-1]["seeds"] == [11, 12, 13, 14]
    assert values[-1]["names"] == [["circle", "square", "<b>star</b>"][seed % 3] for seed in values[-1]["seeds"]]
    times = [frame["t"] for _, frame in sorted(frames_of(values).items(), key=lambda item: int(item[0]))]
    scheduler = with_sampler(engine.pipeline, "dpm").scheduler
    scheduler.set_timesteps(6)
    assert times == [*scheduler.timesteps, None]


def test_the_start_has_its_prediction_once_there_is_one(engine, monkeypatch):
    """At once the noise, above nothing; after the first call the same noise, above what the network makes of it."""
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)

    async def slowly() -> list:
        seen = []
        with engine.lock:
            stream = stream_to_stage(engine, REQUEST)
            await anext(stream)
        async for value in stream:
            seen += [value["frames"]["0"]] if "0" in value["frames"] else []
        return seen

    starts = asyncio.run(slowly())
    stream = Generation.run(engine.models.first, [asyncio.run(engine.generation(REQUEST))[1]])
    (early,), (whole,) = next(stream), next(stream)
    assert starts[-1]["src"] == whole.src != early.src and starts[-1]["t"] == early.t == whole.t
    upper, lower = (
        [decoded(frame.src).crop(box) for frame in (early, whole)] for box in [(0, 0, 28, 28), (0, 28, 28, 56)]
    )
    assert max(high for _, high in ImageChops.difference(*(image.convert("RGB") for image in upper)).getextrema()) < 60
    assert (
        len(set(np.asarray(lower[0].convert("L")).ravel())) < 10 < len(set(np.asarray(lower[1].convert("L")).ravel()))
    )
    again = drain(stream_to_stage(engine, REQUEST))[-1]
    assert again["cached"] and again["frames"]["0"] == starts[-1]  # only the whole one is kept


@pytest.fixture
def carrying(shapes):
    """A model with sampling of its own: 6 steps of the deterministic solver, guided up to t = 600."""
    engine = Engine(with_sampling(shapes, Sampling("dpm", 6, 3.0, (0, 600))))
    yield engine
    engine.close()


def test_page_and_programs_take_the_models_own_sampling(carrying):
    own = {"steps": 6, "sampler": "dpm", "guidance_scale": 3.0, "guidance_interval": (0, 600)}
    defaults = describe(carrying)["defaults"]
    assert {name: defaults[name] for name in own} == own
    rows = []
    hook = carrying.pipeline.unet.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    value = drain(stream_to_stage(carrying, {"num_images": 4, "seed": 11}))[-1]
    hook.remove()
    assert rows == [4, 4, 4, 8, 8, 8]
    assert {name: value["settings"][name] for name in own} == {**own, "guidance_interval": [0, 600]}
    *_, answer = drain(generate_for_program(carrying, {"num_images": 4, "seed": 11}))
    assert answer["settings"] == value["settings"]
    # the same pictures as of the pipeline without arguments
    images = carrying.pipeline(4, seed=11).images
    made = [Image.open(io.BytesIO(base64.b64decode(image["png"]))) for image in answer["images"]]
    differences = [np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(made, images, strict=True)]
    assert max(differences) <= 1


def test_one_class_for_all(engine):
    values = drain(stream_to_stage(engine, {**REQUEST, "class_name": "square"}))
    assert values[-1]["names"] == ["square"] * 4


def test_program_gets_the_same_pictures(engine):
    *progress, answer = drain(generate_for_program(engine, REQUEST))
    assert all(report["done"] is False for report in progress)
    assert answer["done"] and answer["settings"]["steps"] == 6
    expected = generate(with_sampler(engine.pipeline, "dpm"), 4, steps=6, seed=11)
    for image, label, part in zip(expected.images, expected.labels, answer["images"]):
        found = Image.open(io.BytesIO(base64.b64decode(part["png"])))
        assert np.array_equal(np.asarray(found), np.asarray(image)) and part["label"] == label
    assert [part["seed"] for part in answer["images"]] == [11, 12, 13, 14]


def test_runs_do_not_share_a_scheduler(engine):
    """Two at once, of different lengths and samplers, are what each is alone."""

    async def both():
        requests = [{**REQUEST, "sampler": "dpm"}, {**REQUEST, "sampler": "euler", "steps": 9}]
        return await asyncio.gather(*[collected(generate_for_program(engine, values)) for values in requests])

    for answers, (sampler, steps) in zip(asyncio.run(both()), [("dpm", 6), ("euler", 9)]):
        alone = drain(generate_for_program(engine, {**REQUEST, "sampler": sampler, "steps": steps}))
        assert answers[-1]["images"] == alone[-1]["images"]


def test_a_bad_request_raises_before_any_work(engine):
    with pytest.raises(UserError) as caught:
        drain(stream_to_stage(engine, {"steps": float("nan")}))
    assert str(caught.value) == "steps must be a whole number from 1 to 1000, not NaN."
    assert not run_threads()


@pytest.mark.parametrize("stream", [stream_to_stage, generate_for_program])
def test_closing_stops_within_a_step(engine, stream):
    async def leave():
        values = stream(engine, {"num_images": 4, "steps": 1000, "sampler": "ddpm"})
        await anext(values)
        await values.aclose()

    asyncio.run(leave())
    wait_for_end(2)


@pytest.mark.parametrize("stream", [stream_to_stage, generate_for_program])
def test_cancelling_before_the_first_value_stops(engine, stream):
    async def cancel():
        task = asyncio.ensure_future(collected(stream(engine, {"num_images": 4, "steps": 1000, "sampler": "ddpm"})))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    wait_for_end(2)


def test_closing_the_engine_ends_all_runs(engine):
    engine = Engine(engine.pipeline)

    async def close_in_the_middle() -> list:
        stream = stream_to_stage(engine, {"num_images": 4, "steps": 1000, "sampler": "ddpm"})
        await anext(stream)
        engine.close()
        assert not run_threads()
        return await collected(stream)

    assert asyncio.run(close_in_the_middle())[-1]["state"] == "stopped"


def test_a_run_that_takes_too_long_says_so(engine):
    slow = Engine(engine.pipeline)
    slow.worker.max_seconds = 0.05
    values = []

    async def collect():
        async for value in stream_to_stage(slow, {"num_images": 16, "steps": 1000, "sampler": "ddpm"}):
            values.append(value)

    with pytest.raises(UserError, match="fewer images or steps"):
        asyncio.run(collect())
    assert values[-1]["state"] == "failed"
    wait_for_end()


def test_a_failing_model_reveals_nothing(engine, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("secret in /home/somebody")

    monkeypatch.setattr(tasks, "encode_frame", broken)
    with pytest.raises(UserError) as caught:
        drain(stream_to_stage(engine, REQUEST))
    assert "secret" not in str(caught.value) and "/" not in str(caught.value)
    assert "secret" in caplog.text


def test_a_run_without_news_says_that_it_is_there(engine, monkeypatch):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.01)

    async def values_while_the_model_is_busy() -> list:
        stream = stream_to_stage(engine, REQUEST)
        with engine.lock:
            values = [await anext(stream) for _ in range(6)]
        return values + [value async for value in stream]

    values = asyncio.run(values_while_the_model_is_busy())
    assert values[5]["state"] == "running" and values[5]["frames"] == {}
    assert values[-1]["state"] == "done"


def test_each_frame_comes_once(engine):
    """But for the start, which comes with its x_0 once there is one."""
    values = drain(stream_to_stage(engine, REQUEST))
    indices = [int(index) for value in values for index in value["frames"]]
    assert indices == sorted(indices) and set(indices) == set(range(values[-1]["total"] + 1))
    assert len(indices) <= values[-1]["total"] + 2
