"""The queue, the cache, and the thread that computes: fair, shared where that is free, and free again at once."""

import asyncio
import copy
import time

import numpy as np
import pytest
import torch
from test_ui_runs import collected, drain, run_threads, wait_for_end

from ddpm_hf.devices import leave_cores
from ddpm_hf.errors import UserError
from ddpm_hf.ui import jobs
from ddpm_hf.ui.cache import Cache
from ddpm_hf.ui.exports import export
from ddpm_hf.ui.jobs import Job
from ddpm_hf.ui.queue import FairQueue, Turns
from ddpm_hf.ui.runs import Engine, stream_to_stage
from ddpm_hf.ui.tasks import Generation

LONG = {"num_images": 4, "steps": 1000, "sampler": "ddpm"}
SECONDS = 60  # of patience, on a machine that does other things


def job_of(engine, session="", address="", background=False, **values) -> Job:
    model = engine.models.first
    return Job(Generation(model.name, model.limits.check(**values)), model, session, address, background=background)


def pixels_of(job: Job) -> np.ndarray:
    assert job.ended.wait(SECONDS) and job.state == "done", (job.state, job.error)
    return job.result().pixels


@pytest.fixture
def busy(engine):
    """An engine whose model is taken: what is submitted waits until ``engine.lock`` is released."""
    engine.lock.acquire()
    first = job_of(engine, "first", num_images=1, steps=1, seed=999)
    engine.worker.submit(first)
    while first.state == "waiting":
        time.sleep(0.005)
    yield engine
    if engine.lock.locked():
        engine.lock.release()


# ---- cores


def test_the_thread_that_computes_has_the_cores_and_no_other_has(shapes, monkeypatch):
    """libgomp lets threads sleep between two pieces of work once there are more in teams than cores."""
    before, seen = torch.get_num_threads(), {}
    torch.set_num_threads(2)
    try:
        engine = Engine(shapes, cores=leave_cores())
        inside = type(shapes)._predict

        def looked(self, *arguments):
            seen["computing"] = torch.get_num_threads()
            return inside(self, *arguments)

        monkeypatch.setattr(type(shapes), "_predict", looked)
        job = job_of(engine, num_images=1, steps=1)
        engine.worker.submit(job)
        pixels_of(job)
        seen["here"] = torch.get_num_threads()
        engine.close()
    finally:
        torch.set_num_threads(before)
    assert seen == {"computing": 2, "here": 1}


# ---- the queue by itself


def test_each_session_has_a_turn_before_any_has_its_second():
    queue = FairQueue()
    for job in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.add(job, job[0])
    order = ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert list(queue) == order and len(queue) == 6
    assert [queue.take() for _ in range(7)] == [*order, None]
    assert len(queue) == 0


def test_one_who_comes_back_goes_behind_those_who_wait():
    queue = FairQueue()
    queue.add("a1", "a")
    queue.add("a2", "a")
    queue.add("b1", "b")
    assert queue.take() == "a1"
    queue.add("c1", "c")
    assert list(queue) == ["b1", "a2", "c1"]
    assert queue.remove("a2") and not queue.remove("a2")
    assert list(queue) == ["b1", "c1"]


def test_addresses_take_turns_before_their_sessions_do():
    queue = FairQueue()
    for job in ("a1", "a2", "b1"):
        queue.add(job, job[0], "school")
    queue.add("c1", "c", "home")
    order = ["a1", "c1", "b1", "a2"]
    assert list(queue) == order and [queue.take() for _ in range(5)] == [*order, None]


def test_turns_go_round_and_one_who_leaves_takes_none():
    turns, order = Turns(), []

    async def visitor(name):
        await turns.take(name[0])
        order.append(name)
        turns.give()

    async def all_of_them():
        await turns.take("first")
        visitors = {name: asyncio.ensure_future(visitor(name)) for name in ("a1", "a2", "a3", "b1")}
        await asyncio.sleep(0)
        visitors["a1"].cancel()
        await asyncio.sleep(0)
        turns.give()
        visitors["a2"].cancel()  # whose turn has just come
        await asyncio.wait(visitors.values())
        await visitor("c1")

    asyncio.run(all_of_them())
    assert order in (["b1", "a3", "c1"], ["a3", "b1", "c1"])


# ---- the cache by itself


def test_the_cache_drops_what_was_not_used_and_keeps_within_its_bytes():
    cache = Cache(100)
    for key in "abcd":
        cache.put(key, key.upper(), 25)
    assert cache.get("a") == "A" and cache.used == 100
    cache.put("e", "E", 20)
    assert [cache.get(key) for key in "abcde"] == ["A", None, "C", "D", "E"] and cache.used == 95
    cache.put("huge", "H", 26)
    assert cache.get("huge") is None and cache.used == 95
    cache.put("a", "again", 5)
    assert cache.get("a") == "again" and cache.used == 75


def test_an_equal_request_is_answered_from_the_cache(engine):
    request = {"num_images": 2, "steps": 5, "seed": 3}
    first, second = (drain(stream_to_stage(engine, request)) for _ in range(2))
    assert (first[-1]["cached"], second[-1]["cached"]) == (False, True)
    frames = [
        {index: frame for value in values for index, frame in value["frames"].items()} for values in (first, second)
    ]
    assert second[-1]["state"] == "done" and frames[0] == frames[1] and len(frames[0]) == 6
    assert second[-1]["run"] != first[-1]["run"] and second[-1]["images"] == first[-1]["images"]
    assert drain(stream_to_stage(engine, {**request, "seed": 4}))[-1]["cached"] is False


def test_a_stopped_run_is_not_kept(engine):
    async def leave():
        stream = stream_to_stage(engine, LONG)
        async for value in stream:
            if value["frames"]:
                break
        await stream.aclose()

    asyncio.run(leave())
    wait_for_end(SECONDS)
    assert engine.cache.used == 0


def test_long_runs_come_from_the_cache_in_bearable_pieces(engine, monkeypatch):
    monkeypatch.setattr("ddpm_hf.ui.runs.FLUSH_BYTES", 3000)
    request = {"num_images": 4, "steps": 12}
    drain(stream_to_stage(engine, request))
    values = drain(stream_to_stage(engine, request))
    frames = [index for value in values for index in value["frames"]]
    assert len(values) > 2 and values[-1]["cached"] and frames == [str(i) for i in range(13)]
    assert [value["state"] for value in values] == ["running"] * (len(values) - 1) + ["done"]


# ---- waiting


def test_turns_go_round_and_the_queue_is_told_in_words(busy, computed):
    told = {}

    async def visitor(name, seed):
        stream = stream_to_stage(busy, {"num_images": 1, "steps": 2, "seed": seed}, session=name)
        first = await anext(stream)
        told[seed] = first["state"], first["queue"]
        rest = [value async for value in stream]
        assert rest[-1]["state"] == "done" and rest[-1]["queue"] == ""

    async def one_after_the_other():
        visitors = []
        for name, seed in [("a", 1), ("a", 2), ("b", 3)]:
            visitors.append(asyncio.ensure_future(visitor(name, seed)))
            while seed not in told:
                await asyncio.sleep(0.005)
        busy.lock.release()
        await asyncio.gather(*visitors)

    asyncio.run(asyncio.wait_for(one_after_the_other(), SECONDS))
    assert computed[-3:] == [1, 3, 2]  # after the one that had the model
    assert told == {
        1: ("waiting", "one run ahead of yours"),
        2: ("waiting", "2 runs ahead of yours"),
        3: ("waiting", "2 runs ahead of yours"),  # as it was when it came, before it overtook another
    }


def test_the_queue_is_bounded_and_so_is_a_session(busy, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_JOBS_OF_SESSION", 2)
    monkeypatch.setattr(jobs, "MAX_JOBS_OF_ADDRESS", 4)
    monkeypatch.setattr(jobs, "MAX_JOBS", 6)  # the one that keeps the model busy is one of them
    for i in range(2):
        busy.worker.submit(job_of(busy, "greedy", "9.9.9.9", seed=i))
    with pytest.raises(UserError, match="2 of your requests are waiting"):
        busy.worker.submit(job_of(busy, "greedy", "8.8.8.8", seed=5))
    for i in range(2):
        busy.worker.submit(job_of(busy, f"pupil {i}", "9.9.9.9", seed=i))
    with pytest.raises(UserError, match="4 requests from your address"):
        busy.worker.submit(job_of(busy, "one more", "9.9.9.9"))
    busy.worker.submit(job_of(busy, "elsewhere", "8.8.8.8"))
    with pytest.raises(UserError, match="try again in a minute"):
        busy.worker.submit(job_of(busy, "late"))


def test_leaving_the_queue_needs_no_turn(busy):
    job = job_of(busy, "a")
    busy.worker.submit(job)
    busy.worker.cancel(job)
    assert job.ended.is_set() and job.state == "stopped" and busy.lock.locked()


def test_equal_requests_that_wait_are_computed_once(busy, monkeypatch):
    calls = []
    forward = busy.pipeline.unet.forward
    monkeypatch.setattr(busy.pipeline.unet, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    same = [job_of(busy, name, num_images=2, steps=4, seed=5) for name in "abc"]
    for job in same:
        busy.worker.submit(job)
    busy.lock.release()
    results = [pixels_of(job) for job in same]
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert len(calls) == 1 + 4  # the one that kept the model busy, and one run


def test_a_short_run_is_not_behind_a_long_one(engine):
    """Runs take turns at every call of the network."""
    long = job_of(engine, "a", **LONG)
    engine.worker.submit(long)
    while long.done < 3:
        time.sleep(0.005)
    short = job_of(engine, "b", num_images=1, steps=5)
    engine.worker.submit(short)
    pixels_of(short)
    assert long.state == "running" and long.done < 200
    engine.worker.cancel(long)
    assert long.ended.wait(SECONDS)


def test_turns_do_not_change_the_pictures(engine):
    requests = [
        {"num_images": n, "steps": 3 + n, "seed": n, "sampler": s} for n, s in ((1, "dpm"), (2, "ddpm"), (3, "heun"))
    ]
    together = [job_of(engine, str(i), **request) for i, request in enumerate(requests)]
    with engine.lock:
        for job in together:
            engine.worker.submit(job)
    pictures = [pixels_of(job) for job in together]
    other = Engine(engine.pipeline)
    for request, expected in zip(requests, pictures):
        alone = job_of(other, **request)
        other.worker.submit(alone)
        assert np.array_equal(pixels_of(alone), expected)
    other.close()


def test_only_so_many_runs_are_begun(engine):
    engine.worker.max_active = 2
    many = [job_of(engine, str(seed), num_images=1, steps=4, seed=seed) for seed in range(5)]
    with engine.lock:
        for job in many:
            engine.worker.submit(job)
        while many[0].state == "waiting":
            time.sleep(0.005)
        assert [job.state for job in many].count("running") <= 2
    for job in many:
        pixels_of(job)


# ---- sharing calls


def half_precision(pipeline):
    other = copy.deepcopy(pipeline)
    other.unet.to(torch.bfloat16)
    return other


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["dpm", "ddpm", "heun"])
def test_small_requests_share_calls_and_their_images_do_not_change(shapes, sampler, guidance, monkeypatch):
    engine = Engine(half_precision(shapes))
    sizes = []
    forward = engine.pipeline.unet.forward
    monkeypatch.setattr(engine.pipeline.unet, "forward", lambda x, *a, **k: sizes.append(len(x)) or forward(x, *a, **k))
    some = {"sampler": sampler, "steps": 4, "guidance_scale": guidance}
    requests = [
        {"num_images": 3, "seed": 0, **some},
        {"num_images": 4, "seed": 50, "class_name": "square", **some},
        {"num_images": 1, "seed": 7, **some},
    ]
    alone = []
    for request in requests:
        sizes.clear()
        job = job_of(engine, **request)
        engine.worker.submit(job)
        alone.append(pixels_of(job))
    calls, engine.cache = list(sizes), Cache()
    engine.worker._cache = engine.cache
    sizes.clear()
    together = [job_of(engine, f"visitor {i}", **request) for i, request in enumerate(requests)]
    with engine.lock:
        engine.worker.submit(job_of(engine, "first", num_images=1, steps=1, seed=999))
        for job in together:
            engine.worker.submit(job)
    for job, expected in zip(together, alone):
        assert np.array_equal(pixels_of(job), expected)
    assert len(sizes) <= len(calls) + 2 and set(sizes) == {16}
    engine.close()


def test_in_float32_on_a_cpu_each_request_has_its_own_calls(engine):
    assert engine.models.first.sharing_helps is False


def test_many_images_are_made_in_parts_and_are_the_same(engine):
    """A call of 64 images would hold the model for longer than a visitor may be kept waiting for Stop."""
    values = {"steps": 3, "guidance_scale": 2.0, "sampler": "dpm"}
    job = job_of(engine, num_images=40, seed=0, **values)
    engine.worker.submit(job)
    parts = pixels_of(job)
    few = job_of(engine, num_images=3, seed=30, **values)
    engine.worker.submit(few)
    assert np.array_equal(parts[30:33], pixels_of(few))


# ---- the background


def test_work_in_the_background_gives_way(engine):
    slow = job_of(engine, background=True, **LONG)
    engine.worker.submit(slow)
    while slow.done < 3:
        time.sleep(0.005)
    quick = job_of(engine, num_images=1, steps=2)
    engine.worker.submit(quick)
    pixels_of(quick)
    assert slow.state == "running" and slow.done < 1000
    engine.worker.cancel(slow)
    assert slow.ended.wait(SECONDS) and slow.state == "stopped"


# ---- leaving at any moment


@pytest.mark.parametrize("values_read", [0, 1, 2, 4])
def test_closing_after_any_value_frees_the_model(engine, values_read):
    async def leave():
        stream = stream_to_stage(engine, LONG)
        for _ in range(values_read):
            await anext(stream)
        await stream.aclose()

    calls = []
    hook = engine.pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    asyncio.run(leave())
    quick = job_of(engine, num_images=1, steps=1)
    engine.worker.submit(quick)
    pixels_of(quick)
    hook.remove()
    assert len(calls) < 1000
    wait_for_end(SECONDS)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 40])
def test_cancelling_after_any_turn_of_the_loop_frees_the_model(engine, turns):
    async def cancel():
        task = asyncio.ensure_future(collected(stream_to_stage(engine, LONG)))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    wait_for_end(SECONDS)


def test_thirty_visitors_at_once_some_of_whom_leave(engine):
    async def stay(seed):
        values = await collected(stream_to_stage(engine, {"num_images": 1, "steps": 3, "seed": seed}, str(seed)))
        return values[-1]["state"]

    async def leave(seed):
        task = asyncio.ensure_future(collected(stream_to_stage(engine, {**LONG, "seed": seed}, str(seed))))
        await asyncio.sleep(0.02 * seed)
        task.cancel()
        return await asyncio.gather(task, return_exceptions=True)

    async def all_of_them():
        return await asyncio.gather(*[leave(i) if i % 3 else stay(i) for i in range(30)])

    states = asyncio.run(all_of_them())
    assert [states[i] for i in range(0, 30, 3)] == ["done"] * 10
    wait_for_end(SECONDS)
    assert engine.worker.jobs() == []


def test_a_closed_engine_takes_no_more(engine):
    engine.close()
    with pytest.raises(UserError, match="about to restart"):
        engine.worker.submit(job_of(engine))
    assert not run_threads()


# ---- bounds


def test_runs_too_large_for_the_cache_leave_what_downloads_need(shapes, monkeypatch):
    engine = Engine(shapes, cache_bytes=260_000)
    request = {"num_images": 4, "steps": 70, "sampler": "ddpm"}
    value = drain(stream_to_stage(engine, request))[-1]
    assert value["state"] == "done" and 0 < engine.cache.used <= engine.cache.max_bytes
    monkeypatch.setattr(engine.pipeline.unet, "forward", None)  # nothing is computed again
    assert len(asyncio.run(export(engine, request, "gif"))) > 1000
    engine.close()


def test_large_images_leave_fewer_frames_for_an_animation(engine, monkeypatch):
    monkeypatch.setattr("ddpm_hf.ui.tasks.MAX_FILM_BYTES", 5 * 2 * 14 * 14)
    job = job_of(engine, num_images=2, steps=20)
    engine.worker.submit(job)
    pixels_of(job)
    assert [frame.pixels is not None for frame in job.take_frames()].count(True) == 5


def test_waiting_has_an_end(busy, monkeypatch):
    monkeypatch.setattr("ddpm_hf.ui.runs.MAX_WAIT_SECONDS", 0.2)
    with pytest.raises(UserError, match="try again later"):
        drain(stream_to_stage(busy, {"num_images": 1}))
    assert len(busy.worker._queue) == 0
