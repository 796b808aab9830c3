"""Tokens: in no output, file, card or exception, also where everything is logged and everything fails."""

import io
import logging
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import ROOT, hasty
from huggingface_hub.utils import _http

from ddpm_hf.errors import UserError
from ddpm_hf.hub import push
from ddpm_hf.hub.retries import RetryLimits
from ddpm_hf.hub.upload import Upload, answer_to

TOKEN = "hf_" + "ThisIsTheTokenThatNobodyMaySee42"  # of nobody; in two parts, for those who look for secrets in here
LOUD = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "RUST_LOG": "debug", "HF_HUB_OFFLINE": "0"}
FAULTS = [
    None,
    {"method": "POST", "path": "/commit/main", "status": 403, "message": f"token {TOKEN} is not allowed"},
    {"method": "POST", "path": "/commit/main", "status": 503, "times": 10_000},
    {"method": "*", "path": "", "drop_after": 0, "times": 10_000},
    {"method": "*", "path": "/cas/v1/xorbs|/s3/", "status": 403, "times": 10_000},
    {"method": "GET", "path": "xet-write-token|tree", "truncate_after": 5, "times": 10_000},
]


@pytest.fixture
def alices_token(hub, monkeypatch):
    hub.add_user(TOKEN, "alice")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield
    del hub.users[TOKEN]
    _http.set_client_factory(_http.default_client_factory)


def everything_under(*folders) -> bytes:
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return b"\n".join(path.read_bytes() for path in files)


def a_run(folder: Path) -> Path:
    """The files of a run, as far as a push reads them."""
    from helpers import tiny_pipeline

    from ddpm_hf.hub import export_pipeline

    pipeline = tiny_pipeline()
    pipeline.unet.out_conv.bias.data.fill_(random.random())  # weights that the Hub has not seen
    export_pipeline(folder / "pipeline", pipeline)
    (folder / "config.yaml").write_text("dataset: pictures\nlearning_rate: 0.001\n")
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n')
    return folder


@pytest.mark.parametrize(
    ("hub", "fault"),
    [pytest.param("lfs", fault, marks=[pytest.mark.slow] * (fault in FAULTS[2:4])) for fault in FAULTS]
    + [pytest.param("xet", fault, marks=[pytest.mark.slow] * (fault in FAULTS[1:4])) for fault in FAULTS],
    indirect=["hub"],
)
def test_the_token_is_nowhere(hub, alices_token, tmp_path, fault):
    """What the command prints with every log on, every file that is left, and everything that reached the Hub."""
    run = a_run(tmp_path / "run")
    if fault:
        hub.fault(**fault)
    environment = {**os.environ, **LOUD, "HF_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    environment["PYTHONPATH"] = hasty(tmp_path / "hasty")
    script = (
        "import sys; from ddpm_hf.hub import publishing, retries; from ddpm_hf.__main__ import main\n"
        "retries.RetryLimits.__init__.__defaults__ = (20.0, 2, 3.0, 0.01, 0.05, 60.0)\n"
        "publishing.push.__kwdefaults__['limits'] = retries.RetryLimits()\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "push", str(run), "--repo-id", "alice/m", "--private"]
    if fault and fault.get("drop_after") == 0:
        command += ["--tag", "v1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    assert done.returncode == (2 if fault else 0), done.stderr[-2000:]
    if fault is None:
        assert b"Request" in done.stderr  # the logs are on
        repo = hub.repos["model", "alice/m"]
        assert TOKEN.encode() not in published(hub, repo)
    for where in (done.stdout, done.stderr, everything_under(tmp_path)):
        assert TOKEN.encode() not in where


def published(hub, repo) -> bytes:
    files = list(repo.resolve("main").files.values())
    assert all(file.sha256 is None or hub.has_lfs(file.sha256) for file in files)
    return b"".join(Path(hub.lfs_path(file.sha256)).read_bytes() if file.sha256 else file.data for file in files)


@pytest.mark.parametrize("name", ["config.yaml", "README.md", "pipeline/unet/config.json", "metrics.jsonl"])
def test_a_file_with_a_token_is_not_pushed(hub, alices_token, tmp_path, name):
    run = a_run(tmp_path / "run")
    with open(run / name, "a") as file:
        file.write(f"\n# {TOKEN}\n")
    with pytest.raises(UserError) as error:
        push(run, "alice/m")
    assert TOKEN not in str(error.value)
    assert not hub.repos


def test_secrets_of_a_space_are_not_told(hub, alices_token, tmp_path):
    """Not by the upload's representation, not by a log, not by an answer that repeats them."""
    secret = "the-secret-of-the-space"
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    try:
        (tmp_path / "app.py").write_text("")
        upload = Upload(
            "alice/space",
            {"app.py": str(tmp_path / "app.py")},
            repo_type="space",
            space_sdk="gradio",
            secrets={"KEY": secret},
            limits=RetryLimits(attempts=2, patience=3.0, first_wait=0.01),
        )
        hub.fault("POST", "/secrets", status=400, message=f"{secret} and {TOKEN} are too short")
        answer = answer_to(upload)
        assert "are too short" in answer["error"]
        log.truncate(0)  # the server's own words are in the log of the wire
        assert "error" not in answer_to(upload)
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    assert hub.repos["space", "alice/space"].secrets["KEY"]["value"] == secret
    for text in (repr(upload), repr(replace(upload, message="x")), answer["error"], log.getvalue()):
        assert secret not in text and TOKEN not in text
    assert asdict(upload)["secrets"]  # they go to the process that uploads, through a pipe
