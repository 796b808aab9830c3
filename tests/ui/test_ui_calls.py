"""What the page's script asks in between the runs: answers, and mistakes that are answers, too."""

import asyncio
import base64
import inspect
import io
import json

import pytest
from app_server import NAMES
from PIL import Image

from ddpm_hf.ui.calls import page_functions
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.jobs import MAX_WAITING_PER_SESSION
from ddpm_hf.ui.runs import stream_to_stage


class Request:
    """Of a session, as Gradio hands it to a function that asks for it."""

    def __init__(self, session: str):
        self.session = session

    async def json(self) -> dict:
        return {"session_hash": self.session}


def asked(engine, name: str, values, session="somebody"):
    """The coroutine of an answer."""
    function = next(function for function in page_functions(engine) if function.__name__ == name)
    wants_request = "request" in inspect.signature(function).parameters
    return function(values, *([Request(session)] if wants_request else []))


def call(engine, name: str, values):
    return asyncio.run(asked(engine, name, values))


def png() -> str:
    buffer = io.BytesIO()
    Image.new("L", (20, 20), 200).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("noise", None, "reload the page"),
        ("noise", [1], "reload the page"),
        ("noise", {"t": 3}, "example"),
        ("noise", {"image": png()}, "t must be a whole number"),
        ("noise", {"image": png(), "t": float("nan")}, "t must be a whole number"),
        ("noise", {"image": png(), "t": 3, "model": "../../etc"}, "no such model"),
        ("noise", {"image": "data:text/html;base64,PGI+", "t": 3}, "picture"),
        ("describe_model", {"model": ["shapes"]}, "no such model"),
        ("take_away", {"settings": {}, "url": "javascript:alert(1)"}, "address"),
        ("take_away", {"settings": 3, "url": "http://localhost"}, "reload the page"),
        ("take_away", {"settings": {"steps": "many"}, "url": "http://localhost"}, "steps must be"),
        ("export_run", {"settings": {"steps": 2, "num_images": 1}, "kind": "exe"}, "png, gif, webp, mp4"),
        ("export_run", {"settings": {"steps": None}, "kind": "png"}, "steps must be"),
        ("export_run", {"settings": {"steps": 2, "num_images": 1}, "kind": "png", "image": 1}, "image must be"),
        ("restore", {"file": png()}, "holds no settings"),
        ("restore", {"file": 7}, "no picture"),
        ("restore", {"query": "?steps=-1"}, "steps must be"),
        ("restore", {"query": 5}, "link"),
    ],
)
def test_mistakes_are_answers_of_one_line(engine, name, values, words):
    answer = call(engine, name, values)
    assert set(answer) == {"error"} and "\n" not in answer["error"]
    assert words in answer["error"].lower()


def test_a_run_travels_as_link_code_and_file(engine):
    settings = {"num_images": 2, "class_name": "square", "steps": 3, "seed": 5, "sampler": "ddim"}
    answer = call(engine, "take_away", {"settings": settings, "url": "http://localhost:1/x"})
    assert set(answer["snippets"]) == {"diffusers", "gradio_client", "curl"}
    query = answer["link"].removeprefix("http://localhost:1/x")
    assert call(engine, "restore", {"query": query})["settings"] == answer["settings"]
    assert settings.items() <= answer["settings"].items()

    file = call(engine, "export_run", {"settings": settings, "kind": "png", "image": 1})
    assert file["type"] == "image/png" and file["name"].endswith("-6.png")
    restored = call(engine, "restore", {"file": f"data:image/png;base64,{file['data']}"})["settings"]
    assert restored["seed"] == 6 and restored["num_images"] == 1 and restored["class_name"] == "square"


def test_a_noised_picture(engine):
    answer = call(engine, "noise", {"image": png(), "t": 500, "seed": 1})
    assert answer["t"] == 500 and 0 < answer["alpha_bar"] < 1 and len(answer["strip"]) == 4


def test_the_description_follows_the_model(engine, plain_engine):
    shapes, colors = describe(engine), describe(plain_engine)
    assert [one["name"] for one in shapes["classes"]] == NAMES and colors["classes"] == []
    assert dict(shapes["card"]["settings"])["Images"] == "14 x 14, gray"
    assert dict(colors["card"]["settings"])["Images"] == "16 x 16, RGB"
    assert shapes["prediction_type"] == "epsilon"
    assert len(shapes["schedule"]["alpha_bar"]) == shapes["limits"]["max_steps"] == 1000
    json.dumps(shapes, allow_nan=False)


def test_scores_and_losses_come_from_the_models_folder(engine, tmp_path):
    engine.models.first.source = str(tmp_path)
    assert describe(engine)["card"]["scores"] == describe(engine)["card"]["losses"] == []
    scores = {"fid": 8.123, "kid": 0.5, "recall": None}
    protocol = {"num_images": 10_000, "features": "inception", "num_features": 2048, "sampler": "ddim", "steps": 50}
    report = {"scores": scores, "floor": {"fid": 1.5}, "protocol": protocol}
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    rows = [{"images_seen": 10, "loss": 0.5}, {"images_seen": 15}, {"images_seen": 20, "loss": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    card = describe(engine)["card"]
    assert card["scores"] == [["FID", "8.12", "1.50"], ["KID x 1000", "500.0", ""]]
    assert card["judged"] == (
        "10,000 generated images; in the space of 2,048 features of the network inception, not comparable with scores "
        "in another; made with DDIM, 50 steps."
    )
    assert card["losses"] == [[10, 0.5], [20, 0.25]]
    for damage in ("{", "[]", '{"scores": 3}', '{"scores": {"fid": "x"}}'):
        (tmp_path / "evaluation.json").write_text(damage)
        (tmp_path / "metrics.jsonl").write_text(damage)
        assert describe(engine)["card"]["scores"] == describe(engine)["card"]["losses"] == []


def test_files_wait_in_the_queue_of_all_runs(engine, computed):
    """One who asks for many waits for another's run, and may not ask for more than a session's share."""
    order = []

    async def file(seed):
        settings = {"num_images": 1, "steps": 2, "sampler": "ddim", "seed": seed}
        answer = await asked(engine, "export_run", {"settings": settings, "kind": "png"}, "greedy")
        order.append(("greedy", answer.get("error") or "made"))

    async def run():
        async for value in stream_to_stage(engine, {"num_images": 1, "steps": 2, "seed": 9}, "other"):
            state = value["state"]
        order.append(("other", state))

    async def waiting(count):
        while len(engine.worker._queue) != count:
            await asyncio.sleep(0.005)

    async def all_at_once():
        with engine.lock:
            files = [asyncio.ensure_future(file(0))]
            while not engine.worker._running:  # only now, or the thread could find too many waiting
                await asyncio.sleep(0.005)
            files += [asyncio.ensure_future(file(seed)) for seed in range(1, MAX_WAITING_PER_SESSION + 1)]
            await waiting(MAX_WAITING_PER_SESSION)
            await file(99)
            visitor = asyncio.ensure_future(run())
            await waiting(MAX_WAITING_PER_SESSION + 1)
            files[-1].cancel()  # its tab is closed: it gives its place up
            await asyncio.wait([files[-1]])
            assert len(engine.worker._queue) == MAX_WAITING_PER_SESSION
        await asyncio.gather(visitor, *files, return_exceptions=True)

    asyncio.run(asyncio.wait_for(all_at_once(), 60))
    (_, refusal), *rest = order
    assert "of your requests are waiting already" in refusal
    assert {outcome for _, outcome in rest} == {"made", "done"}
    assert computed == [0, 1, 9, 2]
    assert len(rest) == MAX_WAITING_PER_SESSION + 1
