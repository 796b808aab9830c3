"""The page's own routes: questions with one answer each, and runs as streams of events."""

import asyncio
import base64
import io
import json

import pytest
from app_server import NAMES
from PIL import Image
from starlette.testclient import TestClient

from ddpm_hf.errors import UserError
from ddpm_hf.ui import server
from ddpm_hf.ui.attendance import Attendance
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.guard import Gate
from ddpm_hf.ui.journal import Journal
from ddpm_hf.ui.limits import MAX_JOBS_OF_SESSION
from ddpm_hf.ui.runs import stream_to_stage


@pytest.fixture
def client(engine):
    """The server in this process, its guard included, without a port."""
    gate = Gate(Attendance(engine.worker.cancel_session), Journal())
    return TestClient(server.build_server(engine, "shapes & <b>co</b>", gate))


def ask(client, name: str, values) -> dict:
    answer = client.post(f"/page/{name}", json={**values, "session": "a"})
    assert answer.status_code == 200 and "error" not in answer.json(), answer.text
    return answer.json()


def events(client, what: str, values: dict) -> list[dict]:
    answer = client.post("/page/run", json={"what": what, "values": values, "session": "a"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]


JSON = {"content-type": "application/json"}


def png() -> str:
    buffer = io.BytesIO()
    Image.new("L", (20, 20), 200).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("noise", {"t": 3}, "example"),
        ("noise", {"image": png()}, "t must be a whole number"),
        ("noise", {"image": png(), "t": float("nan")}, "t must be a whole number"),
        ("noise", {"image": png(), "t": 3, "model": "../../etc"}, "no such model"),
        ("noise", {"image": "data:text/html;base64,PGI+", "t": 3}, "picture"),
        ("model", {"model": ["shapes"]}, "no such model"),
        ("take_away", {"settings": {}, "url": "javascript:alert(1)"}, "address"),
        ("take_away", {"settings": 3, "url": "http://localhost"}, "reload the page"),
        ("take_away", {"settings": {"steps": "many"}, "url": "http://localhost"}, "steps must be"),
        ("export", {"settings": {"steps": 2, "num_images": 1}, "kind": "exe"}, "png, gif, webp, mp4"),
        ("export", {"settings": {"steps": None}, "kind": "png"}, "steps must be"),
        ("export", {"settings": {"steps": 2, "num_images": 1}, "kind": "png", "image": 1}, "image must be"),
        ("restore", {"file": png()}, "holds no settings"),
        ("restore", {"file": 7}, "no picture"),
        ("restore", {"query": "?steps=-1"}, "steps must be"),
        ("restore", {"query": 5}, "link"),
    ],
)
def test_mistakes_are_told_in_one_line(client, name, values, words):
    answer = client.post(f"/page/{name}", content=json.dumps({**values, "session": "a"}), headers=JSON)
    line = answer.json()["error"]
    assert answer.status_code == 200 and set(answer.json()) == {"error"} and "\n" not in line and line[0].isupper()
    assert words in line.lower()


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("noise", [1], "JSON object"),
        ("noise", {"t": 3}, "session"),
        ("noise", {"t": 3, "session": "a b"}, "session"),
        ("run", {"what": "generate", "values": [], "session": "a"}, "reload the page"),
        ("run", {"what": ["generate"], "values": {}, "session": "a"}, "reload the page"),
        ("run", {"what": "nothing", "values": {}, "session": "a"}, "reload the page"),
    ],
)
def test_what_the_page_does_not_send_is_refused(client, path, body, words):
    answer = client.post(f"/page/{path}", json=body)
    assert answer.status_code == 400 and words in answer.json()["detail"]


def test_a_mistake_in_a_run_is_an_event(client):
    (event,) = events(client, "generate", {"steps": 0})
    assert event == {"error": "Steps must be a whole number from 1 to 1000, not 0."}


def test_a_run_tells_what_changes(client, engine):
    first, *rest = events(client, "generate", {"num_images": 2, "steps": 4, "seed": 3})
    assert first["seeds"] == [3, 4] and first["settings"]["steps"] == 4 and first["total"] == 4
    assert not any("settings" in event or "seeds" in event for event in rest)
    frames = [index for event in rest for index in event.get("frames", {})]
    assert sorted(set(frames), key=int) == ["0", "1", "2", "3", "4"] and rest[-1]["state"] == "done"


def test_a_run_that_fails_tells_no_more_than_that(client, monkeypatch, caplog):
    async def broken(*_):
        raise RuntimeError("secret in /home")
        yield

    monkeypatch.setitem(server.STREAMS, "generate", broken)
    (event,) = events(client, "generate", {})
    assert "failed on this run" in event["error"] and "secret" in caplog.text


def test_the_page_names_its_model_as_text(client):
    page = client.get("/").text
    assert "shapes &amp; &lt;b&gt;co&lt;/b&gt;" in page and "<b>co</b>" not in page
    assert client.get("/", headers={"accept-encoding": "identity"}).text == page
    about = page.split('id="about">')[1].split("</script>")[0]
    assert json.loads(about)["description"]["classes"][2]["name"] == "<b>star</b>" and "<b>" not in about


def test_the_parts_of_the_page_are_served_and_nothing_else(client):
    answer = client.get("/page/main.js")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/javascript")
    for module in server.STATIC.glob("*.js"):
        for line in module.read_text().splitlines():
            if line.startswith("import "):
                assert (server.STATIC / line.split('"')[1]).is_file(), (module, line)
    for path in ("index.html", "nothing.js", "..%2fserver.py", "%2e%2e/server.py", "page.css"):
        assert client.get(f"/page/{path}").status_code == 404


def test_a_run_travels_as_link_code_and_file(client):
    settings = {"num_images": 2, "class_name": "square", "steps": 3, "seed": 5, "sampler": "ddim"}
    answer = ask(client, "take_away", {"settings": settings, "url": "http://localhost:1/x"})
    assert set(answer["snippets"]) == {"diffusers", "gradio_client", "curl"}
    query = answer["link"].removeprefix("http://localhost:1/x")
    assert ask(client, "restore", {"query": query})["settings"] == answer["settings"]
    assert settings.items() <= answer["settings"].items()

    file = ask(client, "export", {"settings": settings, "kind": "png", "image": 1})
    assert file["type"] == "image/png" and file["name"].endswith("-6.png")
    restored = ask(client, "restore", {"file": f"data:image/png;base64,{file['data']}"})["settings"]
    assert restored["seed"] == 6 and restored["num_images"] == 1 and restored["class_name"] == "square"


def test_a_noised_picture(client):
    answer = ask(client, "noise", {"image": png(), "t": 500, "seed": 1})
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
    protocol = {"num_images": 10_000, "reference_images": 900, "features": "inception", "num_features": 2048}
    protocol |= {"dataset": "shapes", "reference_split": "test", "sampler": "ddim", "steps": 50}
    report = {"scores": scores, "floor": {"fid": 1.5}, "protocol": protocol}
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    rows = [{"step": 1, "images_seen": 10, "loss": 0.5}, {"step": 2, "images_seen": 15}]
    rows += [{"step": 3, "images_seen": 20, "loss": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    card = describe(engine)["card"]
    assert card["scores"] == [["FID", "8.123", "1.500"], ["KID x 1000", "500.000", ""]]
    assert card["judged"] == (
        "10,000 generated images against 900 real ones (shapes test); in the space of 2,048 features of the network "
        "inception, not comparable with scores in another; made with DDIM, 50 steps."
    )
    assert card["losses"] == [[10, 0.5], [20, 0.25]]
    for damage in ("{", "[]", '{"scores": 3}', '{"scores": {"fid": "x"}}'):
        (tmp_path / "evaluation.json").write_text(damage)
        (tmp_path / "metrics.jsonl").write_text(damage)
        assert describe(engine)["card"]["scores"] == describe(engine)["card"]["losses"] == []


def test_a_line_without_a_loss_does_not_empty_the_curve(engine, tmp_path):
    """Steps that were skipped have a null loss, and a kill tears the last line."""
    engine.models.first.source = str(tmp_path)
    lines = [
        '{"step": 1, "images_seen": 10, "loss": 0.5}',
        '{"step": 2, "images_seen": 20, "loss": null}',
        '{"step": 3, "images_seen": 25, "loss": 1e999}',
    ]
    lines += ["[" * 100_000, '{"step": 4, "images_seen": null, "loss": 1}']
    lines += ['{"step": 5, "images_seen": 30, "loss": 0.25}', '{"images_se']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert describe(engine)["card"]["losses"] == [[10, 0.5], [30, 0.25]]


def test_files_wait_in_the_queue_of_all_runs(engine, computed):
    """One who asks for many waits for another's run, and may not ask for more than a session's share."""
    order = []

    async def file(seed):
        settings = {"num_images": 1, "steps": 2, "sampler": "ddim", "seed": seed}
        try:
            await server._export(engine, {"settings": settings, "kind": "png", "session": "greedy"}, "9.9.9.9")
            order.append(("greedy", "made"))
        except UserError as error:
            order.append(("greedy", str(error)))

    async def run():
        async for value in stream_to_stage(engine, {"num_images": 1, "steps": 2, "seed": 9}, "other", "8.8.8.8"):
            state = value["state"]
        order.append(("other", state))

    async def until(count):
        while len(engine.worker.jobs()) != count:
            await asyncio.sleep(0.005)

    async def all_at_once():
        with engine.lock:
            files = [asyncio.ensure_future(file(0))]
            while not engine.worker._active:  # only now, or the thread could find too many waiting
                await asyncio.sleep(0.005)
            files += [asyncio.ensure_future(file(seed)) for seed in range(1, MAX_JOBS_OF_SESSION)]
            await until(MAX_JOBS_OF_SESSION)
            await file(99)
            visitor = asyncio.ensure_future(run())
            await until(MAX_JOBS_OF_SESSION + 1)
            files[-1].cancel()  # its tab is closed: it gives its place up
            await asyncio.wait([files[-1]])
            assert len(engine.worker.jobs()) == MAX_JOBS_OF_SESSION
        await asyncio.gather(visitor, *files, return_exceptions=True)

    asyncio.run(asyncio.wait_for(all_at_once(), 60))
    (_, refusal), *rest = order
    assert "of your requests are waiting already" in refusal
    assert {outcome for _, outcome in rest} == {"made", "done"}
    assert (computed[:2] == [0, 1] and computed[2:] == [9, 2]) or computed == [0, 9, 1, 2]
    assert len(rest) == MAX_JOBS_OF_SESSION
