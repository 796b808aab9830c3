"""``export-web``: the page that runs a model in the browser makes Python's pictures."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from app_server import export_tiny
from helpers import tiny_pipeline

from ddpm_hf.__main__ import main
from ddpm_hf.commands.export_web import PAGE, RUNTIME, page_settings
from ddpm_hf.hub import export_pipeline, load_pipeline
from ddpm_hf.sampling import Sampling, with_sampling
from ddpm_hf.scheduler import MyDDPMScheduler


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/favicon.ico":  # which browsers ask for where a page names none
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()


@pytest.fixture
def served():
    """``served(folder)`` is the address of a web server of that folder."""
    running = []

    def serve(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in running:
        server.shutdown()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 700, "height": 900})
    page.problems = []
    page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    yield page
    page.close()
    assert page.problems == []


def half(sample, timestep, class_labels):
    """A network that anyone can compute: 0.4 x + 0.001 t, and a tenth more for class 1."""
    more = 0.1 * (class_labels == 1).float()[:, None, None, None]
    return SimpleNamespace(sample=0.4 * sample + 0.001 * timestep.float() + more)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm", "dpm-sde"])
def test_the_samplers_are_diffusers(page, served, monkeypatch, sampler, kind):
    """From the same noise, with a network of one line and fresh noise of 0.3 in every pixel."""
    process = MyDDPMScheduler(1000, prediction_type=kind)
    pipeline = tiny_pipeline(num_class_embeds=2, num_train_timesteps=1000, scheduler=process)
    pipeline = with_sampling(pipeline, Sampling(sampler, 8, 2.0, (200, 600)))
    settings = page_settings(pipeline, "m")
    monkeypatch.setattr(pipeline.unet, "forward", half)
    for module in ("diffusers.schedulers.scheduling_dpmsolver_multistep", "ddpm_hf.scheduler"):
        monkeypatch.setattr(f"{module}.randn_tensor", lambda shape, **_: torch.full(shape, 0.3))
    x, labels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), [0, 1]
    expected = [step.sample for step in pipeline.denoise(2, labels, latents=x)]
    page.goto(served(PAGE) + "/style.css")
    found = page.evaluate(
        """async ([settings, choice, x]) => {
          const { denoise } = await import("/sampler.js");
          const network = async (x, t, labels) =>
            x.map((v, i) => 0.4 * v + 0.001 * t + (labels[Math.floor(i / 64)] === 1 ? 0.1 : 0));
          const noise = (length) => new Float32Array(length).fill(0.3);
          const found = [];
          for await (const step of denoise(settings, choice, Float32Array.from(x), network, noise)) {
            found.push(Array.from(step.x));
          }
          return found;
        }""",
        [settings, _choice(settings, labels), x.flatten().tolist()],
    )
    assert len(found) == len(expected) == 8
    for mine, theirs in zip(found, expected):
        assert np.allclose(mine, theirs.flatten().numpy(), atol=2e-3), sampler


def _choice(settings: dict, labels: list[int] | None) -> dict:
    keys = {"sampler": "sampler", "steps": "steps", "guidance": "guidance_scale", "interval": "guidance_interval"}
    return {name: settings[key] for name, key in keys.items()} | {"labels": labels}


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """The files of onnxruntime-web, by npm."""
    if shutil.which("npm") is None:
        pytest.skip("no npm")
    folder = tmp_path_factory.mktemp("runtime")
    subprocess.run(["npm", "pack", "--silent", "onnxruntime-web"], cwd=folder, check=True, capture_output=True)
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, "gztar")
    return str(folder / "package" / "dist")


@pytest.mark.slow
@pytest.mark.parametrize(("conditional", "sampler"), [(True, "ddim"), (False, "dpm")])
def test_the_page_makes_pythons_pictures(page, served, runtime, tmp_path, conditional, sampler):
    export_tiny(tmp_path / "m", conditional=conditional)
    pipeline = load_pipeline(tmp_path / "m")
    pipeline = with_sampling(
        pipeline, Sampling(sampler, 4, 2.0 if conditional else 1.0, (2, 9) if conditional else None)
    )
    export_pipeline(tmp_path / "m", pipeline)
    assert main(["export-web", str(tmp_path / "m"), str(tmp_path / "page"), "--runtime", runtime]) == 0
    page.goto(served(tmp_path / "page"))
    page.get_by_text("16 pictures in").wait_for()
    settings = json.loads((tmp_path / "page" / "model.json").read_text())
    labels = [0, 1, 1] if conditional else None
    size = settings["sample_size"]
    x = torch.randn(3, settings["channels"], size, size, generator=torch.Generator().manual_seed(1))
    *_, last = pipeline.denoise(3, labels, latents=x)
    found = page.evaluate("([x, choice]) => sampleFrom(x, choice)", [x.flatten().tolist(), _choice(settings, labels)])
    found = torch.tensor(found).reshape(x.shape)
    as_bytes = [((image.clamp(-1, 1) + 1) * 127.5).round() for image in (found, last.sample)]
    assert (as_bytes[0] - as_bytes[1]).abs().max() <= 2
    assert page.evaluate("[...document.querySelectorAll('#pictures')].map((c) => c.width)")[0] > 1
    before = page.evaluate("document.getElementById('pictures').toDataURL()")
    page.get_by_role("button", name="New pictures").click()
    page.wait_for_function("(before) => document.getElementById('pictures').toDataURL() !== before", arg=before)
    page.get_by_text("16 pictures in").wait_for()
    if conditional:
        page.locator("#classes label").last.click()
        page.get_by_text("16 pictures in").wait_for()
    page.locator("#wander").evaluate(
        "(input) => { input.value = 0.5; input.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    page.get_by_text("16 pictures in").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def no_runtime(tmp_path):
    """A folder with the names of onnxruntime-web's files."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in RUNTIME:
        (folder / name).write_text("/* ONNX Runtime Web v9.9.9 */")
    return str(folder)


def _files(hub) -> dict:
    return hub.repos["space", "alice/live"].resolve("main").files


def _text(hub, name: str) -> str:
    return _files(hub)[name].data.decode()


def test_a_static_space_is_made_once_and_brought_up_to_date(hub, tmp_path, no_runtime, capsys):
    export_pipeline(tmp_path / "m", tiny_pipeline())
    command = ["deploy-space", "--static", "--space-id", "alice/live", "--model", str(tmp_path / "m")]
    command += ["--runtime", no_runtime]
    assert main([*command, "--dry-run"]) == 0
    assert "model.onnx" in capsys.readouterr().out and not hub.repos
    assert main(command) == 0
    files = _files(hub)
    assert {"index.html", "app.js", "sampler.js", "model.json", "model.onnx", f"runtime/{RUNTIME[0]}"} <= set(files)
    card = _text(hub, "README.md")
    assert "sdk: static" in card and "cross-origin-embedder-policy: require-corp" in card
    capsys.readouterr()
    assert main(command) == 0
    assert "unchanged" in capsys.readouterr().out
    assert main([*command, "--title", "Other"]) == 0
    assert "# Other" in _text(hub, "README.md")


def test_options_of_a_space_with_a_machine_are_refused(tmp_path, capsys):
    assert main(["deploy-space", "--static", "--space-id", "alice/live", "--zero-gpu"]) == 2
    assert "--zero-gpu is of a Space that computes" in capsys.readouterr().err
    assert main(["deploy-space", "--space-id", "alice/live", "--runtime", "x"]) == 2
    assert "--runtime is of --static" in capsys.readouterr().err


def test_what_is_missing_is_one_line(tmp_path, capsys, monkeypatch):
    export_pipeline(tmp_path / "m", tiny_pipeline())
    words = ["export-web", str(tmp_path / "m"), str(tmp_path / "page")]
    (tmp_path / "empty").mkdir()
    assert main([*words, "--runtime", str(tmp_path / "empty")]) == 2
    assert f"has no {RUNTIME[0]}; it should be the folder dist of onnxruntime-web" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert main(words) == 2
    assert "fetches onnxruntime-web with npm, which is not installed" in capsys.readouterr().err
    assert main(["export-web", str(tmp_path / "nothing"), str(tmp_path / "page")]) == 2
    assert "is not there" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path, capsys):
    export_pipeline(tmp_path / "m", tiny_pipeline())
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("mine")
    assert main(["export-web", str(tmp_path / "m"), str(tmp_path / "page")]) == 2
    assert "is not a page of this command" in capsys.readouterr().err
    assert (tmp_path / "page" / "index.html").read_text() == "mine"
