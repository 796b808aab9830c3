"""The app as a real process, over real HTTP, with the front end's own checks left out."""

import base64
import io
import json
import math
import socket
import subprocess
import sys
import time

import pytest
from app_server import NAMES, ROOT, AppServer, export_tiny, run_app
from gradio_client import Client
from gradio_client.exceptions import AppError
from helpers import wait_until
from PIL import Image

import app
from benchmarks.abuse import Target
from ddpm_hf.ui.links import snippet
from ddpm_hf.ui.runs import Engine

LONG = {"num_images": 16, "sampler": "ddpm", "steps": 1000, "guidance_scale": 1.0}
PAGE_VALUES = {"num_images": 4, "class_name": "any", "sampler": "dpm", "steps": 5, "guidance_scale": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def client(server):
    client = Client(server.url, verbose=False)
    yield client
    client.close()


# ---- programs


def test_generate_with_gradio_client(client):
    answer = client.predict(num_images=3, steps=5, seed=41, api_name="/generate")
    assert answer["done"] is True and answer["step"] == answer["total"] == 5
    assert [image["seed"] for image in answer["images"]] == [41, 42, 43]
    assert [image["name"] for image in answer["images"]] == [NAMES[seed % 3] for seed in (41, 42, 43)]
    for image in answer["images"]:
        picture = Image.open(io.BytesIO(base64.b64decode(image["png"])))
        assert (picture.format, picture.size, picture.mode) == ("PNG", (14, 14), "L")
    again = client.predict(num_images=1, class_name=NAMES[42 % 3], steps=5, seed=42, api_name="/generate")
    assert again["images"][0] == answer["images"][1]


def test_generate_reports_progress(client):
    job = client.submit(**{**LONG, "num_images": 4, "steps": 150}, api_name="/generate")
    job.result(timeout=300)
    reports = [report for report in job.outputs() if not report["done"]]
    assert reports and all(report["total"] == 150 for report in reports)
    assert [report["step"] for report in reports] == sorted(report["step"] for report in reports)


def test_generate_with_curl(server):
    """The two calls that the API page shows."""
    body = json.dumps({"data": [2, "square", 1, "ddim", 4, 7, [0, 400]]})
    start = [
        "curl",
        "-s",
        "-X",
        "POST",
        f"{server.url}/gradio_api/call/generate",
        "-H",
        "Content-Type: application/json",
    ]
    event = json.loads(subprocess.run([*start, "-d", body], capture_output=True, check=True, timeout=300).stdout)
    url = f"{server.url}/gradio_api/call/generate/{event['event_id']}"
    lines = subprocess.run(["curl", "-sN", url], capture_output=True, check=True, text=True, timeout=300).stdout.split(
        "\n"
    )
    data = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))
    assert [(image["seed"], image["name"]) for image in data[0]["images"]] == [(7, "square"), (8, "square")]


def test_the_code_on_the_page_works_as_it_is(server, shapes, tmp_path):
    """The snippets for gradio_client and curl, run verbatim, write and print the images of the settings."""
    settings = {
        "num_images": 2,
        "class_name": NAMES[2],
        "guidance_scale": 1.5,
        "sampler": "ddim",
        "steps": 4,
        "seed": 7,
    }
    engine = Engine(shapes)
    code = {kind: snippet(engine, settings, kind, server.url + "/") for kind in ("gradio_client", "curl")}
    run = {"capture_output": True, "check": True, "timeout": 120, "cwd": tmp_path, "text": True}
    subprocess.run([sys.executable, "-c", code["gradio_client"]], **run)
    lines = subprocess.run(["bash", "-c", code["curl"]], **run).stdout.split("\n")
    answer = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))[0]
    assert [image["seed"] for image in answer["images"]] == [7, 8]
    for image in answer["images"]:
        assert base64.b64decode(image["png"]) == (tmp_path / f"{image['seed']}.png").read_bytes()


def test_noise_with_gradio_client(client):
    buffer = io.BytesIO()
    Image.new("L", (14, 14), 200).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    answer = client.predict(t=499, image=url, seed=3, api_name="/noise")
    assert answer["t"] == 499 and answer["x_t"] == answer["strip"][1] and 0 < answer["alpha_bar"] < 0.1
    for bad in ({"image": "x"}, {"example": 1}, {"image": url, "seed": -1}):
        with pytest.raises(AppError) as caught:
            client.predict(t=0, **bad, api_name="/noise")
        check_refusal(str(caught.value))


def test_compare_with_gradio_client(client):
    """Its progress; the answer, which takes all the steps, is in test_ui_comparison.py, from the same generator."""
    lanes = [{"sampler": "dpm", "steps": 4}, {"sampler": "ddim", "steps": 6}]
    job = client.submit(lanes=lanes, num_images=1, seed=5, api_name="/compare")
    started = time.monotonic()
    while not any(report["step"] > 4 + 6 for report in job.outputs()) and time.monotonic() - started < 120:
        time.sleep(0.05)
    reports = job.outputs()
    job.cancel()
    assert reports[-1]["step"] > 10 and all(report["total"] == 4 + 6 + 1000 for report in reports)
    with pytest.raises(AppError, match="2 to 4 samplers"):
        client.predict(lanes=[], api_name="/compare")


def test_generate_is_documented(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/generate", "/vary", "/noise", "/compare"]
    parameters = {p["parameter_name"]: p for p in endpoints["/generate"]["parameters"]}
    assert list(parameters) == [
        *("num_images", "class_name", "guidance_scale", "sampler", "steps", "seed", "guidance_interval")
    ]
    own = {name: parameters[name]["parameter_default"] for name in ("guidance_scale", "guidance_interval", "sampler")}
    assert own == {"guidance_scale": 2.0, "guidance_interval": [0, 400], "sampler": "dpm-sde"}
    assert parameters["steps"]["type"] == {"type": "integer"} and parameters["steps"]["parameter_default"] == 20
    assert "classifier-free guidance" in endpoints["/generate"]["description"]
    answers = {name: endpoint["returns"][0]["type"]["properties"] for name, endpoint in endpoints.items()}
    assert answers["/generate"]["images"]["items"]["properties"]["png"] == {"type": "string"}
    assert answers["/compare"]["lanes"]["items"]["properties"]["calls"] == {"type": "integer"}
    assert answers["/noise"]["strip"] == {"type": "array", "items": {"type": "string"}}
    assert [p["parameter_name"] for p in endpoints["/noise"]["parameters"]] == ["t", "example", "image", "seed"]
    assert [p["parameter_name"] for p in endpoints["/compare"]["parameters"]][:2] == ["lanes", "num_images"]


# ---- what must be refused

BAD = [
    *[("steps", value) for value in (math.nan, math.inf, None, True, 2.5, "5", [5], {}, 0, -1, 1001, 10**30)],
    *[("num_images", value) for value in (math.nan, None, False, 1.5, "4", [4], 0, 65)],
    *[("seed", value) for value in (math.nan, None, True, 0.5, "0", [0], -1, 2**32)],
    *[("guidance_scale", value) for value in (math.nan, -math.inf, None, True, "1", [1], 21)],
    *[("guidance_interval", value) for value in (None, True, 5, "0,400", [5], [5, 1], [0, 1001], [0, None], {})],
    *[("sampler", value) for value in (None, True, 1, "magic", ["dpm"], "../../etc/passwd")],
    *[("class_name", value) for value in (None, True, 1.0, "hat", ["circle"], {"a": 1}, "<script>alert(1)</script>")],
]


def check_refusal(message: str | None):
    assert message and "\n" not in message and len(message) < 300
    assert "Traceback" not in message and ".py" not in message and "<script" not in message


def test_page_refuses_each_bad_value_over_http(server):
    target = Target(server.url)
    for name, value in BAD:
        seen = target.press("generate", {**PAGE_VALUES, name: value})
        assert seen.how == "error", (name, value)
        check_refusal(seen.text)
    assert "Traceback" not in "".join(server.log)


def test_api_refuses_each_bad_value_over_http(server, client):
    for name, value in BAD:
        if isinstance(value, float) and not math.isfinite(value):
            continue  # the client's JSON has no such numbers; the page's test sends them
        with pytest.raises(AppError) as caught:
            client.predict(**{name: value}, api_name="/generate")
        check_refusal(str(caught.value))
    with pytest.raises(AppError, match="too much work"):
        client.predict(num_images=64, steps=1000, api_name="/generate")
    assert "Traceback" not in "".join(server.log)


def test_page_works_after_all_that(server):
    assert Target(server.url).press("generate", PAGE_VALUES).how == "done"


# ---- visitors who leave


def test_a_dropped_connection_frees_the_model(server, client):
    with Target(server.url).page_run("generate", {**PAGE_VALUES, **LONG}) as events:
        event = next(events)["run"]
        next(one for one in events if one.get("frames"))
    client.predict(num_images=1, steps=1, api_name="/generate")

    def outcomes() -> list[str]:
        jobs = [json.loads(line) for line in server.log if '"event": "job"' in line]
        return [job["outcome"] for job in jobs if job["request"] == event]

    wait_until(outcomes)
    assert outcomes() == ["left"]


def test_runs_leave_no_files(server, client):
    client.predict(num_images=2, steps=2, api_name="/generate")
    assert Target(server.url).press("generate", PAGE_VALUES).how == "done"
    assert [path for path in server.scratch.rglob("*") if path.is_file()] == []


# ---- starting and ending


def failed_start(*arguments: str, **environment: str) -> str:
    process = run_app(*arguments, **environment)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 2, errors
    assert errors.count("\n") == 1 and errors.startswith("error: ") and "Traceback" not in errors
    return errors


@pytest.mark.slow
def test_missing_model_is_one_line():
    assert "is not there" in failed_start("--model", "./no-such-model")


@pytest.mark.parametrize("arguments", [[], ["--model", "./no-such-model"]], ids=["environment", "missing"])
def test_a_model_that_is_none_is_one_line(tmp_path, monkeypatch, capsys, arguments):
    """Of the environment, and of the command line, which comes first."""
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("ddpm_hf.devices.leave_cores", lambda: 1)  # this process keeps its threads
    assert app.main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and errors.startswith("error: ")
    assert ("is not there" if arguments else "unet") in errors


@pytest.mark.slow
def test_port_in_use_is_one_line(server, tmp_path):
    model = export_tiny(tmp_path / "plain", conditional=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in failed_start("--model", str(model), "--port", str(port))


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "x"], ["--prot", "1"]])
def test_bad_arguments_are_one_line(arguments):
    failed_start(*arguments)


@pytest.mark.slow
def test_unconditional_model_on_a_space_and_sigterm(tmp_path):
    """A Space is reached from outside; SIGTERM ends it with status 0, also in the middle of a run."""
    server = AppServer(
        export_tiny(tmp_path / "plain", conditional=False), tmp_path / "scratch", SPACE_ID="someone/space"
    )
    try:
        with Target(server.url).page_run("generate", {**LONG, "seed": 0}) as events:
            next(event for event in events if event.get("frames"))
            assert server.stop() == 0
            assert [event.get("state") for event in events][-1] == "stopped"
    finally:
        server.process.kill()
    log = "".join(server.log)
    assert "Traceback" not in log and "leaving all the same" not in log
    assert [json.loads(line)["outcome"] for line in server.log if '"event": "job"' in line] == ["stopped"]


def test_importing_the_app_does_nothing():
    code = "import app, sys; print([name for name in ('torch', 'gradio', 'diffusers') if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]" and result.stderr == ""
