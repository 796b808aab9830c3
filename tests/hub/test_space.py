"""deploy-space: what it uploads is right, needs nothing else, and serves the model."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
import yaml
from helpers import tiny_pipeline
from huggingface_hub import HfApi, snapshot_download
from packaging.requirements import Requirement
from started_space import StartedSpace, generated, variables_of

from ddpm_hf.__main__ import main
from ddpm_hf.checkpoints import write_checkpoint
from ddpm_hf.errors import UserError
from ddpm_hf.hub import deploy_space, export_pipeline, load_pipeline
from ddpm_hf.hub.retries import RetryLimits
from ddpm_hf.hub.space import CHECKOUT, ZERO_GPU, front_matter, prepared_space, space_requirements
from ddpm_hf.hub.upload import send
from ddpm_hf.run import weights_digest

pytestmark = pytest.mark.usefixtures("uploads_here")

SPACE = ("space", "alice/shapes-space")
QUICK = RetryLimits(attempts=2, patience=5.0, first_wait=0.01)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    names = {"0": "circle", "1": "square"}
    settings = {"sample_size": 16, "block_out_channels": (16, 32), "attention_levels": (), "num_train_timesteps": 1000}
    pipeline = tiny_pipeline(num_class_embeds=2, id2label=names, output_size=(14, 14), **settings)
    return export_pipeline(tmp_path_factory.mktemp("export") / "shapes", pipeline)


def upload(folder: Path, repo: str, **options):
    """All files of a folder as a model, without our push."""
    HfApi().create_repo(repo, **options)
    HfApi().upload_folder(repo_id=repo, folder_path=folder)


def files_of(hub, key=SPACE) -> dict:
    return hub.repos[key].resolve("main").files


def text_of(hub, name: str, key=SPACE) -> str:
    return files_of(hub, key)[name].data.decode()


def deploy(*arguments: str) -> int:
    return main(["deploy-space", "--space-id", "alice/shapes-space", *arguments])


# ---- what is uploaded


def test_a_space_of_a_model_of_the_hub(hub, exported, capsys):
    upload(exported, "alice/shapes")
    assert deploy("--model", "alice/shapes") == 0
    assert capsys.readouterr().out.splitlines() == [f"deployed {hub.endpoint}/spaces/alice/shapes-space"]
    repo = hub.repos[SPACE]
    assert (repo.sdk, repo.private, repo.secrets, len(repo.commits)) == ("gradio", False, {}, 2)
    assert variables_of(hub.repos[SPACE]) == {"MODEL_ID": "alice/shapes"}
    names = set(files_of(hub)) - {".gitattributes"}
    assert {"app.py", "README.md", "requirements.txt", "ddpm_hf/unet.py", "ddpm_hf/ui/static/stage.js"} <= names
    assert not [name for name in names if "/" not in name and name not in ("app.py", "README.md", "requirements.txt")]
    assert not [name for name in names if "__pycache__" in name or name.startswith(("model/", "tests/", "pretrained/"))]
    front = front_matter(text_of(hub, "README.md"))
    assert (front["sdk"], front["app_file"], front["title"]) == ("gradio", "app.py", "shapes")
    assert (front["models"], front["preload_from_hub"]) == (["alice/shapes"], ["alice/shapes"])
    assert (front["sdk_version"], front["suggested_hardware"]) == (version("gradio"), "cpu-basic")
    assert isinstance(front["python_version"], str) and isinstance(front["sdk_version"], str)
    assert len(front["short_description"]) <= 60
    HfApi()._validate_yaml(text_of(hub, "README.md"))


def test_deploying_again_brings_up_to_date_and_no_more(hub, exported, capsys):
    upload(exported, "alice/shapes")
    deploy("--model", "alice/shapes", "--revision", "main")
    repo = hub.repos[SPACE]
    assert variables_of(hub.repos[SPACE]) == {"MODEL_ID": "alice/shapes", "MODEL_REVISION": "main"}
    hub.log.clear()
    assert deploy("--model", "alice/shapes", "--revision", "main") == 0
    assert "unchanged: " in capsys.readouterr().out
    assert len(repo.commits) == 2
    changes = [entry for entry in hub.log if entry["m"] in ("POST", "PUT", "DELETE") and entry["status"] == 200]
    assert not [entry for entry in changes if "/variables" in entry["p"] or "/commit/" in entry["p"]]  # restarts it

    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="ddpm_hf/gone.py", repo_id=SPACE[1], repo_type="space")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=SPACE[1], repo_type="space")
    HfApi().upload_file(path_or_fileobj=b"edited", path_in_repo="app.py", repo_id=SPACE[1], repo_type="space")
    commits = len(repo.commits)
    assert deploy("--model", "alice/shapes") == 0
    assert len(repo.commits) == commits + 1
    assert "ddpm_hf/gone.py" not in files_of(hub) and "notes.txt" in files_of(hub)
    assert text_of(hub, "app.py") == (CHECKOUT / "app.py").read_text()
    assert variables_of(hub.repos[SPACE]) == {"MODEL_ID": "alice/shapes"}


def test_a_space_that_is_refused_stays_as_it_was(hub, exported, monkeypatch, capsys):
    """Files, variables and secrets; a later failure is reported, and the same command finishes the job."""
    monkeypatch.setitem(prepared_space.__wrapped__.__kwdefaults__, "limits", QUICK)
    upload(exported, "alice/shapes")
    upload(exported, "alice/other")
    assert deploy("--model", "alice/shapes") == 0
    repo = hub.repos[SPACE]
    before = (repo.branches["main"], variables_of(repo), dict(repo.secrets))
    new = ("--model", "alice/other", "--revision", "main", "--secret", "HF_TOKEN")
    hub.fault("POST", "/commit/main", times=9, status=403, message="no")
    assert deploy(*new) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (repo.branches["main"], variables_of(repo), dict(repo.secrets)) == before

    hub.faults.clear()
    hub.fault("POST", "/variables", times=9, status=403, message="no")
    assert deploy(*new) == 2
    commit = repo.branches["main"]
    assert commit != before[0] and variables_of(repo) == before[1]
    line = capsys.readouterr().err
    assert f"The files are there, as commit {commit[:8]}; not all of its variables and secrets are set yet." in line
    hub.faults.clear()
    capsys.readouterr()
    assert deploy(*new) == 0
    assert capsys.readouterr().out.startswith("deployed ")  # the variables are new
    assert repo.branches["main"] == commit
    assert variables_of(repo) == {"MODEL_ID": "alice/other", "MODEL_REVISION": "main"} and set(repo.secrets) == {
        "HF_TOKEN"
    }


def test_a_new_space_has_its_variables_before_its_files(hub, exported, monkeypatch, capsys):
    """Its first start needs them; and where the commit is refused, the next attempt goes the same way."""
    monkeypatch.setitem(prepared_space.__wrapped__.__kwdefaults__, "limits", QUICK)
    upload(exported, "alice/shapes")
    hub.fault("POST", "/commit/main", status=403, message="no")
    assert deploy("--model", "alice/shapes") == 2
    assert "The repository, which was made for it, is empty." in capsys.readouterr().err
    assert set(files_of(hub)) == {".gitattributes", "README.md"}
    hub.log.clear()
    assert deploy("--model", "alice/shapes") == 0
    assert variables_of(hub.repos[SPACE]) == {"MODEL_ID": "alice/shapes"}
    hub.repos.pop(SPACE)
    hub.log.clear()
    assert deploy("--model", "alice/shapes") == 0
    changes = [entry["p"] for entry in hub.log if entry["m"] == "POST" and re.search("/variables|/commit/", entry["p"])]
    assert [path.rsplit("/")[-1] for path in changes] == ["variables", "main"]


def test_a_pinned_revision_is_what_is_preloaded(hub, exported, tmp_path):
    """The files of that commit which the app loads, and no others."""
    upload(exported, "alice/shapes")
    commit = hub.repos["model", "alice/shapes"].branches["main"]
    HfApi().create_tag("alice/shapes", tag="v1")
    HfApi().upload_file(path_or_fileobj=b"notes", path_in_repo="notes.txt", repo_id="alice/shapes")
    deploy("--model", "alice/shapes", "--revision", "v1")
    (entry,) = front_matter(text_of(hub, "README.md"))["preload_from_hub"]
    repo_id, names, revision = entry.split(" ")
    assert (repo_id, revision) == ("alice/shapes", commit)
    for name in names.split(","):  # as the Hub does when it builds the Space
        HfApi().hf_hub_download(repo_id, name, revision=revision, cache_dir=tmp_path)
    (folder,) = tmp_path.glob("models--*/snapshots/*")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert folder.name == commit and present == wanted
    hub.log.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        load_pipeline("alice/shapes", revision="v1")
    assert not [entry for entry in hub.log if "/resolve/" in entry["p"] and entry["m"] == "GET"]


def test_a_dry_run_shows_the_files_and_writes_nothing(hub, exported, capsys):
    upload(exported, "alice/shapes")
    hub.log.clear()
    assert deploy("--model", "alice/shapes", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert SPACE not in hub.repos
    assert not [entry for entry in hub.log if entry["m"] not in ("GET", "HEAD")]
    deploy("--model", "alice/shapes")
    for name, blob in files_of(hub).items():
        assert name == ".gitattributes" or re.search(rf"^ *{blob.size:,}  {re.escape(name)}$", shown, re.MULTILINE)
    for name in ("README.md", "requirements.txt"):
        assert text_of(hub, name).strip() in shown
    assert "variables: MODEL_ID=alice/shapes\nsecrets: none\n" in shown


def test_zero_gpu(hub, exported):
    upload(exported, "alice/shapes")
    assert deploy("--model", "alice/shapes", "--zero-gpu") == 0
    front = front_matter(text_of(hub, "README.md"))
    assert (front["suggested_hardware"], front["python_version"]) == ("zero-a10g", "3.12")
    lines = text_of(hub, "requirements.txt").splitlines()
    wanted = {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}
    assert "spaces" in wanted
    supported = [minor for minor in range(30) if wanted["torch"].contains(f"2.{minor}.0")]
    assert supported == [8, 9, 10, 11]
    assert set(wanted) - {"spaces"} == {Requirement(line).name for line in space_requirements().splitlines()}
    assert not ({"datasets", "torch-fidelity"} & set(wanted))
    with pytest.raises(UserError, match="--zero-gpu is hardware of its own; t4-small would be another"):
        deploy_space("alice/shapes-space", "alice/shapes", zero_gpu=True, hardware="t4-small")
    assert ZERO_GPU["hardware"] == "zero-a10g"


def test_secrets_only_if_asked(hub, exported, monkeypatch, capsys):
    upload(exported, "acme/hidden", private=True)
    assert deploy("--model", "acme/hidden", "--private") == 0
    assert (hub.repos[SPACE].private, hub.repos[SPACE].secrets) == (True, {})
    assert "acme/hidden is not public: the Space needs a token" in capsys.readouterr().out
    front = front_matter(text_of(hub, "README.md"))
    assert front["models"] == ["acme/hidden"] and "preload_from_hub" not in front
    reader = "hf_" + "secret" * 4  # of nobody
    monkeypatch.setenv("READER", reader)
    assert deploy("--model", "acme/hidden", "--secret", "HF_TOKEN", "--secret", "READER") == 0
    output = capsys.readouterr()
    assert {name: entry["value"] for name, entry in hub.repos[SPACE].secrets.items()} == {
        "HF_TOKEN": "hf_write",
        "READER": reader,
    }
    assert "is not public" not in output.out
    for text in (output.out, output.err, json.dumps(variables_of(hub.repos[SPACE]))):
        assert "hf_secret" not in text
    assert not [name for name, blob in files_of(hub).items() if blob.data and b"hf_secret" in blob.data]
    for name, message in ((f"{reader}-x", "takes the name of"), ("NOT_SET", "NOT_SET.*is not set")):
        assert deploy("--model", "acme/hidden", "--secret", name) == 2
        assert re.search(message, error := capsys.readouterr().err)
        assert "hf_secret" not in error


def test_data_sets_of_the_model_are_named(hub, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "README.md").write_text("---\ndatasets:\n- acme/drawings\nlicense: mit\n---\n# mine\n")
    upload(folder, "alice/shapes")
    deploy("--model", "alice/shapes", "--title", "Shapes: a test #1")
    front = front_matter(text_of(hub, "README.md"))
    assert (front["datasets"], front["title"]) == (["acme/drawings"], "Shapes: a test #1")


def test_models_that_cannot_be_shown(hub, exported, tmp_path, capsys):
    upload(exported, "alice/shapes")
    foreign = shutil.copytree(exported, tmp_path / "foreign")
    index = json.loads((foreign / "model_index.json").read_text())
    (foreign / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "EvilUNet"]}))
    upload(foreign, "alice/foreign")
    other = shutil.copytree(exported, tmp_path / "other")
    network = json.loads((other / "unet" / "config.json").read_text())
    for name, value in (("wide", [8, 32]), ("huge", [8, 10**9])):
        (other / "unet" / "config.json").write_text(json.dumps({**network, "block_out_channels": value}))
        upload(other, f"alice/{name}")
    (other / "unet" / "config.json").write_text('"someone/else"')
    upload(other, "alice/pointer")
    for name, kept in (("empty", "unet/*"), ("pickled", "*.json")):
        HfApi().create_repo(f"alice/{name}")
        HfApi().upload_folder(repo_id=f"alice/{name}", folder_path=exported, allow_patterns=kept)
    for arguments, message in [
        (["--model", "alice/none"], "model alice/none is neither a folder here nor a repository you can see"),
        (["--model", "alice/shapes", "--revision", "v9"], "model alice/shapes has no revision 'v9'"),
        (["--model", "alice/foreign"], "model alice/foreign has a unet of class EvilUNet; known are"),
        (["--model", str(foreign)], "foreign has a unet of class EvilUNet; known are"),
        (["--model", "alice/empty"], "model alice/empty has no model_index.json: it is not an exported pipeline"),
        (["--model", "alice/pickled"], "model alice/pickled has no safetensors weights"),
        (["--model", "alice/wide"], "model alice/wide cannot be loaded: its weights do not fit its config.json"),
        (
            ["--model", "alice/huge"],
            "model alice/huge cannot be loaded: unet/config.json: setting 'block_out_channels'",
        ),
        (["--model", "alice/pointer"], "model alice/pointer: config.json must hold an object, not a str"),
        (["--model", "not an id"], "'not an id' is neither a folder here nor a Hub id"),
        (["--model", "./nowhere"], "nowhere is not a folder"),
        (["--revision", "v1"], "--revision is for a model of the Hub"),
        (["--model", "alice/shapes", "--space-id", "no id!"], "'no id!' is not a Hub id"),
    ]:
        assert deploy(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert {key[0] for key in hub.repos} == {"model"}


def test_another_app_is_not_overwritten(hub, exported, capsys):
    upload(exported, "alice/shapes")
    api = HfApi()
    api.create_repo(SPACE[1], repo_type="space", space_sdk="docker")
    api.upload_file(path_or_fileobj=b"years of work", path_in_repo="app.py", repo_id=SPACE[1], repo_type="space")
    assert deploy("--model", "alice/shapes") == 2
    assert "it exists and holds something else, nothing was uploaded; choose another" in capsys.readouterr().err
    assert text_of(hub, "app.py") == "years of work" and variables_of(hub.repos[SPACE]) == {}


# ---- what was uploaded, run as a Space runs it


@pytest.mark.slow
def test_the_uploaded_files_are_a_whole_space(hub, exported, tmp_path, space_python):
    """On the packages of its requirements.txt alone, without the checkout."""
    upload(exported, "alice/shapes")
    deploy_space("alice/shapes-space", "alice/shapes")
    space = StartedSpace(hub.repos[SPACE], space_python, tmp_path / "space")
    try:
        page = httpx.get(space.url, timeout=300)
        assert page.status_code == 200 and "alice/shapes" in page.text
        images = generated(space.url, num_images=2, class_name="square", steps=3, seed=5)
        assert [(image.mode, image.size) for image in images] == [("L", (14, 14))] * 2
    finally:
        space.stop()
    assert "Traceback" not in "".join(space.lines)


@pytest.mark.slow
def test_a_space_of_the_embedded_model(hub, tmp_path, space_python):
    """It goes into the Space, with the pictures that the page shows of its classes."""
    deploy_space("alice/shapes-space")
    assert variables_of(hub.repos[SPACE]) == {}
    hub.log.clear()
    space = StartedSpace(hub.repos[SPACE], space_python, tmp_path / "space")
    try:
        assert len(generated(space.url, num_images=1, steps=2)) == 1
    finally:
        space.stop()
    assert not [entry for entry in hub.log if entry["p"].startswith("/api/models")]
    assert "Traceback" not in "".join(space.lines)


def test_a_model_that_is_not_on_the_hub_goes_into_the_space(hub, exported, tmp_path):
    """As the newest whole checkpoint of a run, too; without optimizer state, code or this machine's folders."""
    run = tmp_path / "run"
    write_checkpoint(run / "checkpoints" / "step-3", lambda folder: shutil.copytree(exported, folder / "pipeline"))
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n')
    digest = weights_digest(run / "checkpoints" / "step-3" / "pipeline" / "unet")
    protocol = {"num_images": 9, "reference_images": 9, "features": "x", "weights_sha256": digest}
    protocol["dataset"] = "/home/me/data"
    (run / "evaluation.json").write_text(json.dumps({"scores": {"fid": 1.0}, "protocol": protocol}))
    (run / "checkpoints" / "optimizer.bin").write_text("state")
    deploy_space("alice/shapes-space", run)
    assert variables_of(hub.repos[SPACE]) == {"MODEL_ID": "model"}
    folder = Path(snapshot_download(SPACE[1], repo_type="space", local_dir=tmp_path / "space")) / "model"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("scheduler/scheduler_config.json", "metrics.jsonl", "evaluation.json"),
    }
    assert "/home/me" not in (folder / "evaluation.json").read_text()
    assert load_pipeline(folder).num_classes == 2
    deploy_space("alice/shapes-space")  # the embedded model instead
    assert variables_of(hub.repos[SPACE]) == {}
    names = files_of(hub)
    assert "pretrained/fashion_mnist_small/model_index.json" in names
    assert not [name for name in names if name.startswith("model/")]


def test_a_space_of_a_private_run_is_private(hub, exported, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(exported, run / "pipeline")
    (run / "config.yaml").write_text("hub_private_repo: true\n")
    for number, folder in enumerate((run, run / "pipeline")):
        deploy_space(f"alice/space{number}", folder)
        assert hub.repos["space", f"alice/space{number}"].private
    assert deploy("--model", str(run), "--no-private") == 0
    assert not hub.repos[SPACE].private
    deploy_space("alice/embedded")
    assert not hub.repos["space", "alice/embedded"].private


def test_a_space_of_a_run_that_goes_on(hub, exported, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(exported, run / "pipeline")
    (run / "metrics.jsonl").write_text('{"step": 3}\n')
    with prepared_space("alice/shapes-space", run) as (prepared, _):
        (run / "metrics.jsonl").write_text("later")
        shutil.rmtree(run / "pipeline")
        send(prepared, quiet=True)
    assert text_of(hub, "model/metrics.jsonl") == '{"step": 3}\n'
    assert "model/unet/diffusion_pytorch_model.safetensors" in files_of(hub)


def test_the_command_in_a_readme_does_not_take_the_model_away(hub, exported):
    """Without a folder, it would put the embedded model in its place."""
    upload(exported, "alice/shapes")
    for model, named in ((exported, "--model FOLDER"), ("alice/shapes", "--model alice/shapes"), (None, None)):
        deploy_space("alice/shapes-space", model)
        command = re.search(r"`(python -m ddpm_hf deploy-space .*?)`", text_of(hub, "README.md"))[1]
        end = f" {named}" if named else ""
        assert command == f"python -m ddpm_hf deploy-space --space-id alice/shapes-space{end}"


def test_the_space_environment_is_clean(space_python, tmp_path):
    for name, found in (("gradio", True), ("ddpm_hf", False), ("datasets", False), ("pytest", False)):
        result = subprocess.run([space_python, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, timeout=300)
        assert (result.returncode == 0) == found, result.stderr
    assert sys.executable != str(space_python)


def test_the_card_of_the_repository_itself_is_that_of_a_space():
    """Spaces are made from it; and the checkout can be pushed as one."""
    front = yaml.safe_load((CHECKOUT / "README.md").read_text().split("---\n")[1])
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file"} <= set(front)
