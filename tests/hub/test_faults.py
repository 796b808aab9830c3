"""Every fault of tests/hub/README.md, on both storages: one commit that is whole, or one line and nothing published."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from faults import ANY, ARRIVES, BUSY, CASES, CUT, NAMES, OF, WAIT, table
from helpers import tiny_pipeline
from huggingface_hub.utils import _http

from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline
from ddpm_hf.hub.retries import USUAL, RetryLimits
from ddpm_hf.hub.upload import Upload, answer_to, send

CARD = "---\nlicense: mit\n---\n# m\n"
PATIENT = {"attempts": 4, "patience": 20.0, "first_wait": 0.02, "longest_wait": 0.05}


@pytest.fixture
def upload(tmp_path) -> Upload:
    """Weights of 1.4 MB that no server has seen, and texts."""
    contents = {
        "README.md": CARD.encode(),
        "model_index.json": b'{"_class_name": "DDPMPipeline", "_diffusers_version": "0", "unet": [], "scheduler": []}',
        "unet/diffusion_pytorch_model.safetensors": os.urandom(1_400_000),
    }
    files = {}
    for name, content in contents.items():
        files[name] = str(tmp_path / name.replace("/", "-"))
        Path(files[name]).write_bytes(content)
    return Upload("alice/m", files, tag="v1", limits=RetryLimits(**PATIENT))


@pytest.fixture(autouse=True)
def client(monkeypatch):
    """The client as it was afterwards, and with short pauses where it has some of its own."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))
    yield
    _http.set_client_factory(_http.default_client_factory)


def commits(hub) -> int:
    """Commits besides the repository's own first one."""
    repo = hub.repos.get(("model", "alice/m"))
    return len(repo.commits) - 1 if repo else 0


def assert_whole(hub, upload: Upload):
    repo = hub.repos["model", "alice/m"]
    files = repo.resolve("main").files
    assert set(files) == {*upload.files, ".gitattributes"}
    for name, path in upload.files.items():
        file, content = files[name], Path(path).read_bytes()
        if file.sha256 is None:
            assert file.data == content
        else:
            assert hub.has_lfs(file.sha256)
            assert Path(hub.lfs_path(file.sha256)).read_bytes() == content
    assert repo.tags == {"v1": repo.branches["main"]}


def pushed(hub, upload: Upload) -> dict:
    """The answer of a push; the Xet client has its time-outs from its environment, so from a process of its own."""
    if hub.storage == "lfs" or upload.limits.silence == USUAL.silence:
        return answer_to(upload)
    try:
        return send(upload, quiet=True)
    except UserError as error:
        said, made, left = str(error).removeprefix("pushing to alice/m failed: ").partition(" The repository")
        return {"error": said, "left": (made + left).strip()}


def left_behind(hub, end: str) -> str:
    """What the user reads of it besides: the commit without its tag, or the repository that was made."""
    if commits(hub):
        commit = hub.repos["model", "alice/m"].branches["main"][:8]
        return f"The files are there, as commit {commit}; the tag v1 is not set yet."
    if ("model", "alice/m") not in hub.repos:
        return ""
    if end in (BUSY, WAIT, CUT):
        return "The repository was made for it."
    return "The repository, which was made for it, is empty."


def runs():
    for case in CASES:
        for request in case.requests:
            for storage in OF:
                if request in (*OF[storage], ANY):
                    name = f"{case.name}-{NAMES[request]}-{storage}".replace(" ", "_")
                    waits = case.silence != USUAL.silence
                    again = storage == "xet" and request in OF["lfs"]  # a request that both storages make
                    yield pytest.param(storage, case, request, id=name, marks=[pytest.mark.slow] * (waits or again))


@pytest.mark.parametrize(("hub", "case", "request_"), list(runs()), indirect=["hub"])
def test_a_push_meets_a_fault(hub, upload, case, request_, monkeypatch):
    if case.part_size:
        monkeypatch.setattr(hub, "multipart_threshold", case.part_size)
        monkeypatch.setattr(hub, "part_size", case.part_size)
    limits = RetryLimits(**{**PATIENT, "silence": case.silence})
    if case.settings.get("delay", 0) > case.silence and case.ends != ARRIVES:
        limits = replace(limits, patience=3.0)
    fault = hub.fault(*request_, **case.settings)
    answer = pushed(hub, replace(upload, limits=limits))
    assert fault.hits
    if case.ends == ARRIVES:
        assert "error" not in answer
    else:
        assert re.fullmatch(re.escape(case.ends).replace("…", ".+"), answer["error"])
        assert case.contains in answer["error"]
        half_done = request_ == ("POST", "/tag/")  # the commit is whole by then
        assert commits(hub) == half_done
        assert answer["left"] == left_behind(hub, case.ends)
        hub.faults.clear()
        answer = answer_to(upload)  # the same command goes on
        assert answer.get("error") is None
    assert commits(hub) == 1
    assert_whole(hub, upload)
    assert answer["commit"] == hub.repos["model", "alice/m"].branches["main"]
    assert answer_to(upload)["changed"] is False
    assert commits(hub) == 1


def test_an_interrupted_push_publishes_nothing_and_leaves_no_process(hub, tmp_path, root):
    """Ctrl-C while the Hub is silent: one line, status 130; the same command finishes it."""
    folder = export_pipeline(tmp_path / "model", tiny_pipeline())
    fault = hub.fault("POST", "/commit/main", delay=20.0)
    command = [sys.executable, "-m", "ddpm_hf", "push", str(folder), "--repo-id", "alice/m"]
    process = subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while not fault.hits:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (130, "")
    assert errors.splitlines()[-1] == "interrupted; the same command does it again."
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=300)
    assert not alive
    assert commits(hub) == 0
    assert subprocess.run(command, cwd=root, capture_output=True, timeout=300).returncode == 0
    assert commits(hub) == 1


def test_the_table_in_the_readme_is_this_one(root):
    assert table() in (root / "tests" / "hub" / "README.md").read_text()
