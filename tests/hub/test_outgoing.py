"""What goes up, and what must not: links, disguised files, tokens, files of other names, hostile answers."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT, tiny_pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm_hf.__main__ import main
from ddpm_hf.errors import UserError
from ddpm_hf.hub import deploy_space, export_pipeline, loading, push, space
from ddpm_hf.hub.card import given_in
from ddpm_hf.hub.outgoing import BLOCK
from ddpm_hf.hub.retries import NOT_A_HUB, RetryLimits
from ddpm_hf.hub.run_files import run_files_of
from ddpm_hf.hub.space import prepared_space
from ddpm_hf.hub.upload import Sending, Upload, send

pytestmark = pytest.mark.usefixtures("uploads_here")

TOKEN = "hf_" + "x" * 34  # of nobody
WEIGHTS = "pipeline/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export_pipeline(tmp_path_factory.mktemp("export") / "model", tiny_pipeline())


@pytest.fixture
def run(exported, tmp_path) -> Path:
    """A run as far as a push reads it."""
    folder = tmp_path / "run"
    shutil.copytree(exported, folder / "pipeline")
    (folder / "config.yaml").write_text("dataset: pictures\nlearning_rate: 0.001\n")
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n')
    (folder / "facts.json").write_text('{"device": "a machine"}')
    (folder / "samples").mkdir()
    for name in ("samples/step-0000003.png", "loss.png"):
        Image.new("L", (8, 8)).save(folder / name)
    return folder


def published(hub, repo: str = "alice/m") -> set[str]:
    names = set(hub.repos["model", repo].resolve("main").files)
    return {name for name in names if not name.endswith(".py")} - {".gitattributes"}


# ---- links and disguises


LINKED = ["samples/step-0000003.png", "loss.png", "config.yaml", "metrics.jsonl", "facts.json", "LICENSE", "README.md"]
LINKED += ["pipeline/model_index.json", "pipeline/unet/config.json", WEIGHTS, "samples", "pipeline/unet"]


@pytest.mark.parametrize("name", LINKED)
def test_a_link_out_of_the_run_is_not_followed(hub, run, tmp_path, name):
    outside, link = tmp_path / "outside", run / name
    if link.exists():
        link.rename(outside)
    else:
        outside.write_text("secret")
    link.symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link to a file outside of .*; put a copy in its place") as error:
        push(run, "alice/m")
    assert link.name in str(error.value) and not hub.repos


def test_links_within_the_run_and_to_the_whole_run_are_followed(hub, run, tmp_path):
    (run / "legal").mkdir()
    (run / "legal" / "terms.txt").write_text("MIT")
    (run / "LICENSE").symlink_to("legal/terms.txt")
    (tmp_path / "elsewhere").symlink_to(run)
    push(tmp_path / "elsewhere", "alice/m")
    assert "LICENSE" in published(hub)


@pytest.mark.parametrize("name", ["samples/step-0000003.png", "loss.png", WEIGHTS])
def test_a_file_that_is_not_what_its_name_says_is_refused(run, name):
    (run / name).write_text("the secret")
    with pytest.raises(UserError, match=f"{Path(name).name} is not a (PNG|safetensors) file"):
        run_files_of(run)


def test_an_index_of_weights_that_is_not_json_is_refused(run):
    (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("the secret")
    with pytest.raises(UserError, match=r"index\.json is not a JSON file"):
        run_files_of(run)


def test_weights_with_something_after_them_are_refused(run):
    with open(run / WEIGHTS, "ab") as file:
        file.write(b"the secret")
    with pytest.raises(UserError, match="is not a safetensors file, or not a whole one"):
        run_files_of(run)


# ---- tokens


def add_text(path: Path, text: str):
    with open(path, "ab") as file:
        file.write(text.encode())


def add_metadata(path: Path, text: str):
    save_file(load_file(path), path, metadata={"format": "pt", "note": text})


def fill_and_add(path: Path, text: str):
    """So that two blocks share the token, far behind the first 16 MB."""
    line = b'{"step": 3, "loss": 0.5}\n'
    filling = line * (17 * BLOCK // len(line))
    filling += b" " * (18 * BLOCK - len(filling) - 10)
    path.write_bytes(filling + text.encode() + b"\n")


@pytest.mark.parametrize(
    ("name", "add"),
    [
        ("config.yaml", lambda path, token: add_text(path, f"key_{token}: 1\n")),
        ("config.yaml", lambda path, token: add_text(path, f"key: {token}_old\n")),
        ("loss.png", add_text),
        (WEIGHTS, add_metadata),
        ("metrics.jsonl", fill_and_add),
        ("facts.json", lambda path, token: path.write_text(json.dumps({"device": token}))),
    ],
    ids=["prefix", "suffix", "png", "weights", "large", "card"],
)
@pytest.mark.parametrize("token", [TOKEN, "password-of-a-mirror"], ids=["any", "in use"])
def test_a_token_is_found_in_any_file(hub, run, monkeypatch, name, add, token):
    if token != TOKEN:
        hub.add_user(token, "alice")
        monkeypatch.setenv("HF_TOKEN", token)
    add(run / name, token)
    with pytest.raises(UserError, match="what looks like a token") as error:
        push(run, "alice/m", quiet=True)
    hub.users.pop("password-of-a-mirror", None)
    assert token not in str(error.value) and not hub.repos
    assert name == "facts.json" or Path(name).name in str(error.value)


# ---- names


def test_only_what_an_export_or_a_run_writes_goes_up(hub, run, exported):
    before = {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "config.yaml"}
    before |= {"scheduler/scheduler_config.json", "metrics.jsonl", "loss.png", "samples/step-0000003.png", "README.md"}
    others = [".env", ".hidden.json", "private.json", "notes.py", "LICENSE-KEYS.txt", "diffusion_pytorch_model.bin"]
    others += ["unet/private.json", "unet/.hidden.json", "unet/model.safetensors", "unet/notes.py", "scheduler/x.json"]
    others += [f"unet/ddpm_hf_unet_{'0' * 12}.py", "samples/step-last.png", "samples/me.png", "evaluation-me.png"]
    for name in others:
        for folder in (run, run / "pipeline"):
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text("{}")
    push(run, "alice/m")
    assert published(hub) == before
    sources = {name for name in hub.repos["model", "alice/m"].resolve("main").files if name.endswith(".py")}
    assert sources == {path.relative_to(exported).as_posix() for path in exported.rglob("*.py")}
    push(run / "pipeline", "alice/p")
    assert published(hub, "alice/p") == before - {
        "config.yaml",
        "metrics.jsonl",
        "loss.png",
        "samples/step-0000003.png",
    }


# ---- checked before anything is created


@pytest.mark.parametrize(
    "tag", ["v 1", "a..b", "-v1", ".v1", "v1/", "v1.lock", "v~1", "a//b", "@", "v\n1", "x@{1}", ""]
)
def test_a_tag_that_git_does_not_take_is_refused_at_once(hub, run, tag):
    with pytest.raises(UserError, match="cannot be the name of a tag"):
        push(run, "alice/m", tag=tag)
    assert not hub.repos


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("---\nlicense: mit\n---\n# m\n".encode("utf-16"), "README.md is not text in UTF-8"),
        (b"---\nlicense: [\n---\n", "README.md: the YAML between"),
        (b"---\nlicense: [\n---\n# m\n", "README.md: the YAML between"),
        (b"---\n- a\n---\n# m\n", "README.md: the YAML between"),
        (b"---\n1: a\n---\n# m\n", "README.md: the YAML between"),
        (b"---\nlicense:\n  a: b\n---\n# m\n", "the Hub does not accept the YAML at the start of README.md.*license"),
    ],
)
def test_a_readme_that_the_hub_does_not_take_is_refused_at_once(hub, run, readme, message):
    (run / "README.md").write_bytes(readme)
    with pytest.raises(UserError, match=message) as error:
        push(run, "alice/m")
    assert "\n" not in str(error.value) and not hub.repos


@pytest.mark.parametrize("metadata", ["license: [", "1: mit", "- license"])
def test_broken_metadata_of_the_readme_in_a_repository_gives_no_licence(metadata):
    assert given_in(f"---\n{metadata}\n---\n# m\n") == {}


def test_a_readme_of_somebodys_own_goes_up(hub, run):
    for number, text in enumerate(("mine", "---\n---\n# m\n", "---\nlicense: mit\n---\n# ü\n", "---\nno end")):
        (run / "README.md").write_text(text, encoding="utf-8")
        push(run, f"alice/m{number}")
        assert hub.repos["model", f"alice/m{number}"].resolve("main").files["README.md"].data.decode() == text


# ---- a Space


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A copy of what a Space is made of."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "ddpm_hf", folder / "ddpm_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    monkeypatch.setattr(space, "CHECKOUT", folder)
    monkeypatch.setattr(loading, "EMBEDDED_MODEL", folder / "pretrained" / loading.EMBEDDED_MODEL.name)
    return folder


def space_files(model: Path) -> tuple[set[str], list[str]]:
    with prepared_space("alice/s", model) as (upload, said):
        return set(upload.files), said


OTHERS = ["ddpm_hf/notes.html", "ddpm_hf/.local.py", "ddpm_hf/.ipynb_checkpoints/a.py", "ddpm_hf/ui/static/me.png"]
OTHERS += ["ddpm_hf/ui/static/.ipynb_checkpoints/a.js", "ddpm_hf/ui/static/old/a.js", "ddpm_hf/x.js", "app2.py"]


def test_a_space_is_given_the_package_and_nothing_else(checkout, exported):
    before, _ = space_files(exported)
    assert {"ddpm_hf/__init__.py", "ddpm_hf/ui/static/stage.js", "app.py", "model/model_index.json"} <= before
    for name in OTHERS:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("mine")
    assert space_files(exported) == (before, [])


def test_a_space_is_given_what_git_tracks(checkout, exported):
    before, _ = space_files(exported)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, timeout=300)
    for name in ("ddpm_hf/local_settings.py", "ddpm_hf/ui/static/me.js"):
        (checkout / name).write_text("mine")
    after, (line,) = space_files(exported)
    assert after == before
    assert line == "left out, because git does not track them: ddpm_hf/local_settings.py, ddpm_hf/ui/static/me.js"


@pytest.mark.parametrize("name", ["app.py", "ddpm_hf/local_settings.py", "ddpm_hf/ui/static/stage.js"])
def test_a_space_with_a_token_in_its_files_is_refused(hub, checkout, exported, name):
    add_text(checkout / name, f"\nkey_{TOKEN}\n")
    with pytest.raises(UserError, match=f"{name} holds what looks like a token") as error:
        deploy_space("alice/s", exported)
    assert TOKEN not in str(error.value) and not hub.repos


def test_a_space_with_its_own_secret_in_its_files_is_refused(hub, checkout, exported, monkeypatch):
    monkeypatch.setenv("PASSWORD", "correct horse")
    add_text(checkout / "app.py", "\n# correct horse\n")
    with pytest.raises(UserError, match=r"app\.py holds what looks like a token or secret") as error:
        deploy_space("alice/s", exported, secrets=["PASSWORD"])
    assert "horse" not in str(error.value) and not hub.repos


@pytest.mark.parametrize(
    "name", ["app.py", "ddpm_hf/unet.py", "ddpm_hf/more.py", "ddpm_hf/ui/static/x.js", "README.md"]
)
def test_a_link_out_of_the_checkout_is_not_followed(hub, checkout, exported, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text((checkout / name).read_text() if (checkout / name).exists() else "secret = 1")
    (checkout / name).unlink(missing_ok=True)
    (checkout / name).symlink_to(outside)
    with pytest.raises(UserError, match="is a link to a file outside of"):
        deploy_space("alice/s", exported)
    assert not hub.repos


@pytest.mark.parametrize("kind", ["link to nothing", "folder"])
def test_a_space_of_what_is_no_file_is_not_created(hub, checkout, exported, kind):
    path = checkout / "ddpm_hf" / "ui" / "static" / "x.js"
    path.symlink_to("nowhere") if kind != "folder" else path.mkdir()
    with pytest.raises(UserError, match=r"ddpm_hf/ui/static/x\.js is not a file, or a link to nothing"):
        deploy_space("alice/s", exported)
    assert not hub.repos


@pytest.mark.parametrize("given", [TOKEN, "hf_" + "Y" * 10, "AKIA" + "1234" * 4, "s3cret"])
def test_a_secret_that_is_given_for_a_name_is_not_printed(hub, exported, given, capfd):
    assert main(["deploy-space", "--space-id", "alice/s", "--model", str(exported), "--secret", given]) == 2
    output = "".join(capfd.readouterr())
    assert given not in output and output.count("\n") == 1
    assert "--secret number 1: the environment variable of that name is not set" in output


@pytest.mark.parametrize("arguments", [["--token", TOKEN], ["--repo-id", f"{TOKEN}/m!"], ["--tag", f"v {TOKEN}"]])
def test_a_token_on_the_command_line_is_not_printed(run, arguments, capfd):
    assert main(["push", str(run), "--repo-id", "alice/m", *arguments]) == 2
    assert TOKEN not in "".join(capfd.readouterr())


# ---- hostile answers


class Portal:
    """A server that answers every request in one way, on a port of its own."""

    def __init__(self, start: bytes, more: bytes = b"", pause: float = 0.0):
        self._start, self._more, self._pause = start, more, pause
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket):
        with connection:
            try:
                while not connection.recv(1 << 16).rstrip(b" ").endswith(b"\r\n\r\n"):
                    pass
                connection.sendall(self._start)
                while self._more:
                    connection.sendall(self._more)
                    time.sleep(self._pause)
            except OSError:
                return

    def close(self):
        self._socket.close()


def answer(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


LATE = "the Hub cannot be reached or does not answer"
ANSWERS = {
    "drips": (answer(b"", length=10**6), b" ", 0.2, LATE),
    "drips headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.2, LATE),
    "100 Continue for ever": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.2, LATE),
    "never ends": (answer(b"", length=10**11), b" " * 10**6, 0.0, f"{NOT_A_HUB} It is larger than 64 MB."),
    "compressed": (answer(b"x", "Content-Encoding: gzip"), b"", 0.0, f"{NOT_A_HUB} It is compressed"),
    "a page": (answer(b"<html>Please log in</html>"), b"", 0.0, NOT_A_HUB),
    "a list": (answer(b"[]"), b"", 0.0, NOT_A_HUB),
    "an empty object": (answer(b"{}"), b"", 0.0, NOT_A_HUB),
    "an object without a commit": (answer(b'{"id": "alice/m", "siblings": []}'), b"", 0.0, NOT_A_HUB),
    "text in its place": (answer(b'{"id": "alice/m", "sha": "\\u001b[2J", "siblings": 3}'), b"", 0.0, NOT_A_HUB),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_no_hub_gives_is_one_line_in_time(monkeypatch, name):
    start, more, pause, message = ANSWERS[name]
    portal = Portal(start, more, pause)
    monkeypatch.setenv("HF_ENDPOINT", portal.endpoint)
    monkeypatch.setattr("ddpm_hf.hub.upload.Sending", Sending)  # a process, which reads the address
    answer = 1.0 if message == LATE else 60.0
    limits = RetryLimits(silence=30.0, answer=answer, attempts=2, patience=1.0, first_wait=0.01)
    begin = time.monotonic()
    with pytest.raises(UserError) as error:
        send(Upload("alice/m", limits=limits), quiet=True)
    portal.close()
    assert time.monotonic() - begin < 60
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
@pytest.mark.parametrize("path", ["/cas/v1/xorbs", "/cas/v1/shards"])
def test_a_store_that_drips_its_answer_is_one_line_in_time(hub, tmp_path, monkeypatch, path):
    """The Xet client's requests are its own: the commit as a whole has a deadline."""
    monkeypatch.setattr("ddpm_hf.hub.upload.Sending", Sending)  # a process, which can be ended
    (tmp_path / "weights").write_bytes(os.urandom(20_000))
    hub.fault("POST", path, times=10_000, raw=answer(b"", length=10**6), more=b" ", pause=0.2)
    limits = RetryLimits(silence=30.0, answer=3.0, attempts=2, patience=1.0, first_wait=0.01)
    begin = time.monotonic()
    files = {"unet/diffusion_pytorch_model.safetensors": str(tmp_path / "weights")}
    with pytest.raises(UserError, match=f"{LATE}.*no whole answer") as error:
        send(Upload("alice/m", files, limits=limits), quiet=True)
    assert time.monotonic() - begin < 60 and "\n" not in str(error.value)
    assert len(hub.repos["model", "alice/m"].commits) == 1
