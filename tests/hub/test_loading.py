"""Loading: every way gives the same bits, online and offline, and nothing that came with a model is run unasked."""

import fnmatch
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from clean_room import bare_environment, make_environment
from diffusers import DiffusionPipeline
from helpers import ROOT, tiny_pipeline
from huggingface_hub import HfApi, snapshot_download
from keep_version import VERSIONS, draw
from safetensors.numpy import load_file

import app
from ddpm_hf.__main__ import main
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_allowed, load_pipeline, push
from ddpm_hf.hub.fetching import fetch
from ddpm_hf.hub.retries import RetryLimits
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import Sampling, with_sampling

pytestmark = pytest.mark.usefixtures("uploads_here")

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
QUICK = RetryLimits(silence=2.0, attempts=4, patience=20.0, first_wait=0.05)


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(num_class_embeds=2, id2label={"0": "circle", "1": "square"}, output_size=(7, 6))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pipeline) -> Path:
    return export_pipeline(tmp_path_factory.mktemp("export") / "model", pipeline, fp16_variant=True)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def upload(folder: Path, repo: str = "alice/shapes", **options) -> str:
    """A commit of all files of a folder, without our push; its hash."""
    api = HfApi()
    api.create_repo(repo, exist_ok=True, **options)
    return api.upload_folder(repo_id=repo, folder_path=folder).oid


def digest(pipeline) -> str:
    pipeline.set_progress_bar_config(disable=True)
    return hashlib.sha256(np.round(draw(pipeline), 6).tobytes()).hexdigest()


# ---- without ddpm_hf

WITHOUT_US = """
import hashlib, json, sys, torch
import numpy as np
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
try:
    import ddpm_hf
except ImportError:
    pass
else:
    sys.exit("ddpm_hf is there")
for source, options in json.loads(sys.argv[1]):
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, trust_remote_code=True, **options)
    except Exception as error:
        print(type(error).__name__)
        continue
    pipeline.set_progress_bar_config(disable=True)
    settings = {"class_labels": [0, 1], "guidance_scale": 2.0, "num_inference_steps": 6, "seed": 3}
    images = pipeline(2, **settings, output_type="np").images
    print(hashlib.sha256(np.round(images, 6).tobytes()).hexdigest())
"""


def load_without_us(python: Path, home: Path, sources: list, **environment: str) -> list[str]:
    """What a clean environment with diffusers alone draws, or which exception it raises, for (source, options)."""
    home.mkdir(exist_ok=True)
    command = [python, "-c", WITHOUT_US, json.dumps([[str(source), options] for source, options in sources])]
    environment = bare_environment(home, **environment)
    result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


@pytest.mark.slow
def test_every_way_without_ddpm_hf(hub, exported, pipeline, tmp_path, diffusers_python):
    first = upload(exported)
    HfApi().create_tag("alice/shapes", tag="v1", revision=first)
    changed = tiny_pipeline(num_class_embeds=2, in_channels=3, out_channels=3)
    upload(export_pipeline(tmp_path / "changed", changed))
    sharded = export_pipeline(tmp_path / "sharded", pipeline, max_shard_size="30KB", fp16_variant=True)
    assert len(list(sharded.glob("unet/*-of-*.safetensors"))) > 3
    upload(sharded, "alice/sharded")
    resaved = tmp_path / "resaved"
    DiffusionPipeline.from_pretrained(exported, trust_remote_code=True).save_pretrained(resaved)
    assert len(list(resaved.rglob("ddpm_hf_*.py"))) == 3
    push(resaved, "alice/resaved")

    expected, half = digest(load_pipeline(exported)), digest(load_pipeline(exported, variant="fp16"))
    assert len({expected, half, digest(load_pipeline("alice/shapes"))}) == 3
    for source, revision, variant, wanted in [
        (exported, None, None, expected),
        (exported, None, "fp16", half),
        (sharded, None, None, expected),
        ("alice/shapes", "v1", None, expected),
        ("alice/shapes", first, None, expected),
        ("alice/shapes", "v1", "fp16", half),
        ("alice/sharded", None, None, expected),
        ("alice/sharded", "main", "fp16", half),
        ("alice/resaved", None, None, expected),
        (resaved, None, None, expected),
    ]:
        assert digest(load_pipeline(source, revision=revision, variant=variant)) == wanted
    upcast = {"variant": "fp16", "torch_dtype": "float32"}
    sources = [
        (exported, {}),
        (sharded, {}),
        ("alice/shapes", {"revision": "v1"}),
        ("alice/shapes", {"revision": first}),
        ("alice/sharded", {}),
        ("alice/resaved", {}),
        ("alice/shapes", {}),
        (exported, upcast),
        ("alice/shapes", {"revision": "v1", **upcast}),
        ("alice/sharded", upcast),
    ]
    home = tmp_path / "home"
    others = digest(load_pipeline("alice/shapes"))
    assert load_without_us(diffusers_python, home, sources) == [expected] * 6 + [others] + [half] * 3

    # offline diffusers asks the Hub about the code, and fails; it does not where it is given the folder in the cache
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    snapshot = home / "cache" / "hub" / "models--alice--shapes" / "snapshots" / first
    hub.log.clear()
    drawn = load_without_us(diffusers_python, home, [("alice/shapes", {"revision": first}), (snapshot, {})], **offline)
    assert drawn[1] == expected and not re.fullmatch(r"[0-9a-f]{64}", drawn[0]) and hub.log == []


WITHOUT_ARGUMENTS = """
import sys
import numpy as np
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
rows = []
pipeline.unet.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
images = pipeline(batch_size=16, seed=0).images
assert "ddpm_hf" not in sys.modules
np.savez(sys.argv[2], images=np.stack([np.asarray(image) for image in images]), rows=rows)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["the shipped model", "without classes"])
def test_without_arguments_and_without_us_a_model_draws_what_the_commands_draw(name, tmp_path, diffusers_python):
    """And in as many calls: 20 of the network, of which those at timesteps 200 to 500 are guided, not 1,000."""
    model = ROOT / "pretrained" / "fashion_mnist_small"
    if name == "without classes":
        own = Sampling("dpm-sde", 7, 1.0, None)
        model = export_pipeline(tmp_path / "plain", with_sampling(tiny_pipeline(num_train_timesteps=1000), own))
    command = [diffusers_python, "-c", WITHOUT_ARGUMENTS, model, tmp_path / "made.npz"]
    environment = bare_environment(tmp_path)
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    made = np.load(tmp_path / "made.npz")
    assert made["rows"].tolist() == ([16] * 10 + [32] * 6 + [16] * 4 if name == "the shipped model" else [16] * 7)

    output = str(tmp_path / "sampled.npz")
    assert main(["sample", str(model), "--num-images", "16", "--dtype", "float32", "--output", output]) == 0
    differences = np.abs(made["images"].astype(int) - np.load(output)["images"])
    assert differences.max() <= 2 and (differences > 0).mean() < 0.01  # float32 rounds in other places


IN_HALF = """
import sys, torch
from ddpm_hf import load_pipeline
from diffusers import DiffusionPipeline
for pipeline in (
    load_pipeline(sys.argv[1], dtype=torch.bfloat16),
    DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True, torch_dtype=torch.bfloat16),
):
    print({parameter.dtype for parameter in pipeline.unet.parameters()})
    pipeline(1, num_inference_steps=2)
"""


@pytest.mark.slow
def test_half_precision_without_accelerate(exported, tmp_path):
    """diffusers has another way of loading then."""
    python = make_environment(
        tmp_path / "env", "diffusers", "torch", "safetensors", "tenacity", "pyyaml", "pydantic", "psutil"
    )
    environment = bare_environment(tmp_path, PYTHONPATH=str(ROOT))
    command = [python, "-c", IN_HALF, exported]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split("\n")[:2] == ["{torch.bfloat16}"] * 2 and "accelerate" in result.stderr


# ---- exported again


def test_what_was_loaded_with_remote_code_exports_and_pushes_whole(exported, tmp_path):
    remote = DiffusionPipeline.from_pretrained(exported, trust_remote_code=True)
    assert type(remote).__module__.startswith("diffusers_modules")
    again = export_pipeline(tmp_path / "again", remote)
    assert digest(load_pipeline(again)) == digest(load_pipeline(exported))
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        assert json.loads((again / name).read_text()) == json.loads((exported / name).read_text())
    assert "diffusers_modules" not in "".join(
        path.read_text() for path in again.rglob("*.*") if path.suffix != ".safetensors"
    )


def test_what_diffusers_itself_pushed_loads(hub, pipeline):
    pipeline.push_to_hub("alice/theirs", private=True)
    assert digest(load_pipeline("alice/theirs")) == digest(pipeline)


def test_a_push_leaves_no_weights_of_another_model_as_a_variant(hub, exported, pipeline, tmp_path):
    push(exported, "alice/shapes")
    assert load_pipeline("alice/shapes", variant="fp16").num_classes == 2
    push(export_pipeline(tmp_path / "sharded", pipeline, max_shard_size="30KB", fp16_variant=True), "alice/shapes")
    push(export_pipeline(tmp_path / "plain", pipeline), "alice/shapes")
    names = hub.repos["model", "alice/shapes"].resolve("main").files
    assert [name for name in names if name.startswith("unet/diffusion")] == [WEIGHTS]


# ---- older versions


@pytest.mark.parametrize("version", sorted(path.name for path in VERSIONS.iterdir()))
def test_models_of_this_and_older_versions_load(version):
    """With the installed classes, and with those they brought."""
    folder = VERSIONS / version
    expected = load_file(folder / "drawn.safetensors")["images"]
    assert expected.std() > 0.1
    for loaded in (load_pipeline(folder), DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)):
        loaded.set_progress_bar_config(disable=True)
        loaded.unet.float()
        assert np.abs(draw(loaded) - expected).max() < 1e-3
        assert loaded.config.id2label == {"0": "circle", "1": "square"}


def test_there_is_a_model_of_this_version():
    import ddpm_hf

    assert (VERSIONS / ddpm_hf.__version__).is_dir(), "run python tests/hub/keep_version.py"


# ---- offline


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_offline_from_the_cache(hub, exported, offline, tmp_path):
    commit = upload(exported)
    expected = digest(load_pipeline("alice/shapes"))
    offline()
    hub.log.clear()
    for revision in (None, "main", commit):
        assert digest(load_pipeline("alice/shapes", revision=revision)) == expected
    for options, message in [
        (
            {"model": "alice/shapes", "variant": "fp16"},
            "model alice/shapes is not, or not wholly, in the cache, and HF_HUB_",
        ),
        (
            {"model": "alice/shapes", "revision": "v2"},
            "model alice/shapes of revision v2 is not, or not wholly, in the",
        ),
        ({"model": "alice/other"}, "HF_HUB_OFFLINE is set; load it once online"),
    ]:
        with pytest.raises(UserError, match=message):
            load_pipeline(**options)
    assert hub.log == []


@pytest.mark.parametrize(
    ("size", "missing"),
    [("10GB", WEIGHTS), ("10GB", "scheduler/*"), ("30KB", "*-00001-of-*"), ("30KB", "*/config.json")],
)
def test_a_commit_that_is_half_in_the_cache_is_fetched(hub, pipeline, offline, tmp_path, size, missing):
    """Single files of it were asked for, by somebody else or before a kill."""
    model = export_pipeline(tmp_path / "model", pipeline, max_shard_size=size)
    commit = upload(model)
    for name in (path.relative_to(model).as_posix() for path in model.rglob("*.*")):
        if not fnmatch.fnmatchcase(name, missing):
            HfApi().hf_hub_download("alice/shapes", name, revision=commit)
    assert digest(load_pipeline("alice/shapes", revision=commit)) == digest(load_pipeline(model))
    offline()
    hub.log.clear()
    assert fetch("alice/shapes", revision=commit).name == commit and hub.log == []


def test_what_diffusers_cannot_do_offline_is_said(hub, exported, monkeypatch):
    """By its id, where the pipeline has code. What the line advises works; so does load_pipeline, on the same cache."""
    upload(exported)
    expected = digest(load_pipeline(exported))
    for advised in (False, True):
        MyDDPMPipeline.from_pretrained("alice/shapes", trust_remote_code=True)
        if advised:
            snapshot_download("alice/shapes")
        with monkeypatch.context() as offline:
            offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            with pytest.raises(ConnectionError, match=r"snapshot_download\('alice/shapes'\)\) works offline"):
                MyDDPMPipeline.from_pretrained("alice/shapes", trust_remote_code=True)
            assert digest(load_pipeline("alice/shapes")) == expected
            if advised:
                folder = snapshot_download("alice/shapes")
                assert digest(MyDDPMPipeline.from_pretrained(folder, trust_remote_code=True)) == expected


def test_a_hub_that_is_down_leaves_the_cache(hub, exported, monkeypatch):
    upload(exported)
    expected = digest(load_pipeline("alice/shapes"))
    hub.fault("*", "/", times=1000, status=503)
    monkeypatch.setattr("ddpm_hf.hub.fetching.LIMITS", QUICK)
    assert load_pipeline("alice/shapes").num_classes == 2
    assert digest(load_pipeline("alice/shapes")) == expected
    with pytest.raises(UserError, match=r"model alice/none: the Hub is busy \(503.*\) and was so for 4 tries"):
        fetch("alice/none", limits=QUICK)


# ---- faults


@pytest.mark.parametrize(
    "fault",
    [
        {"method": "GET", "path": "/api/models/alice/shapes", "status": 503, "times": 2},
        {"method": "GET", "path": "/api/models/.*/tree/", "status": 500, "times": 1},
        {"method": "GET", "path": "/resolve/.*config.json", "status": 429, "times": 2, "headers": {"Retry-After": "0"}},
        {"method": "HEAD", "path": "/resolve/.*safetensors", "status": 502, "times": 1},
        {"method": "GET", "path": "/cdn/", "status": 503, "times": 2},
        {"method": "GET", "path": "/cdn/", "lose_response": True, "times": 1},
        {"method": "GET", "path": "/api/models/alice/shapes", "delay": 3.0, "times": 1},
        *(
            {"method": "GET", "path": "/cdn/", "truncate_after": n, "times": 1, "fin": n % 2}
            for n in (0, 1, 5000, 60_001)
        ),
    ],
    ids=lambda fault: "-".join(f"{value}" for name, value in fault.items() if name not in ("method", "times")),
)
def test_faults_on_the_way_are_outlived(hub, exported, fault):
    commit = upload(exported)
    fault = hub.fault(**fault)
    folder = fetch("alice/shapes", limits=QUICK)
    assert fault.hits and folder.name == commit
    assert (folder / WEIGHTS).read_bytes() == (exported / WEIGHTS).read_bytes()


def test_a_connection_that_ends_goes_on_where_it_stopped(hub, exported, monkeypatch):
    upload(exported)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at once
    hub.fault("GET", "/cdn/", times=1, truncate_after=50_000, fin=True)
    folder = fetch("alice/shapes", limits=RetryLimits(attempts=1))
    assert [entry["range"] for entry in hub.log if entry["p"].startswith("/cdn/")] == [None, "bytes=50000-"]
    assert (folder / WEIGHTS).read_bytes() == (exported / WEIGHTS).read_bytes()


def test_files_that_are_whole_are_not_fetched_again(hub, exported, tmp_path, pipeline):
    """Not in another call either, as after a kill."""
    sharded = export_pipeline(tmp_path / "sharded", pipeline, max_shard_size="30KB")
    upload(sharded)
    hub.fault("GET", "/cdn/", times=100, skip=2, truncate_after=100)
    with pytest.raises(UserError, match="model alice/shapes: the Hub cannot be reached or does not answer"):
        fetch("alice/shapes", limits=RetryLimits(silence=2.0, attempts=1))
    hub.faults.clear()
    hub.log.clear()
    folder = fetch("alice/shapes", limits=QUICK)
    names = [path.name for path in sharded.glob("unet/*.safetensors")]
    assert len([entry for entry in hub.log if entry["p"].startswith("/cdn/")]) == len(names) - 2
    assert all((folder / "unet" / name).read_bytes() == (sharded / "unet" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda hub: hub.fault("*", "/", times=99, delay=3.0), {}, "the Hub cannot be reached or does not answer"),
        (lambda hub: hub.fault("GET", "/cdn/", times=99, status=403), {}, r"the Hub refuses this \(403"),
        (lambda hub: hub.fault("*", "/", 99, status=429, headers={"Retry-After": "900"}), {}, "asks to wait 900 s"),
        (lambda hub: None, {"token": "hf_nobody"}, r"the Hub does not accept the token \(401"),
        (lambda hub: None, {"revision": "v9"}, "model alice/shapes has no revision 'v9'"),
        (lambda hub: None, {"token": "hf_read"}, "neither a folder here nor a repository you can see on the Hub"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub, exported, prepare, options, message):
    upload(exported, private=True)
    prepare(hub)
    with pytest.raises(UserError, match=message) as error:
        fetch("alice/shapes", limits=RetryLimits(silence=0.5, attempts=2, patience=5.0, first_wait=0.05), **options)
    assert "\n" not in str(error.value) and "hf_" not in str(error.value)
    hub.faults.clear()
    assert fetch("alice/shapes", limits=QUICK).is_dir()


def test_a_gated_model_names_the_page_to_visit(hub, exported, monkeypatch):
    upload(exported)
    hub.repos["model", "alice/shapes"].gated = True
    with pytest.raises(
        UserError, match=f"model alice/shapes is gated: ask for access on {hub.endpoint}/alice/shapes, and"
    ):
        load_pipeline("alice/shapes", token="hf_read")
    assert load_pipeline("alice/shapes").num_classes == 2


# ---- foreign code

FOREIGN_UNET = """
import pathlib, torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

pathlib.Path({marker!r}).touch()


class Output(dict):
    sample = property(lambda self: self["sample"])


class ForeignUNet(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size=8, in_channels=1, num_class_embeds=None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return Output(sample=self.scale * sample) if return_dict else (self.scale * sample,)
"""
FOREIGN_PIPELINE = """
import pathlib
from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

pathlib.Path({marker!r}).touch()


class ForeignPipeline(DiffusionPipeline):
    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
"""


def foreign_model(folder: Path, marker: Path) -> Path:
    """A pipeline whose code leaves ``marker`` when it is run."""
    from diffusers import DDPMScheduler
    from safetensors.torch import save_file

    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "foreign_unet.py").write_text(FOREIGN_UNET.format(marker=str(marker)))
    (folder / "foreign_pipeline.py").write_text(FOREIGN_PIPELINE.format(marker=str(marker)))
    config = {"_class_name": "ForeignUNet", "sample_size": 8, "in_channels": 1}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    save_file({"scale": torch.ones(1)}, folder / WEIGHTS, metadata={"format": "pt"})
    DDPMScheduler(num_train_timesteps=10).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": ["foreign_pipeline", "ForeignPipeline"],
        "_diffusers_version": "0.42.1",
        "unet": ["foreign_unet", "ForeignUNet"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_foreign_code_runs_only_where_its_commit_was_named(hub, tmp_path, capsys):
    marker = tmp_path / "ran"
    hub.add_user("hf_carol", "carol")
    api = HfApi(token="hf_carol")
    api.create_repo("carol/foreign")
    commit = api.upload_folder(repo_id="carol/foreign", folder_path=foreign_model(tmp_path / "foreign", marker)).oid
    with pytest.raises(UserError, match="model carol/foreign has a unet of class ForeignUNet; known are"):
        load_pipeline("carol/foreign")

    def sample(*more: str) -> int:
        return main(["sample", "carol/foreign", "--num-images", "1", "--steps", "2", "--output", str(output), *more])

    output = tmp_path / "image.png"
    for arguments in ([], ["--trust-remote-code"], ["--trust-remote-code", "--revision", "main"]):
        assert sample(*arguments) == 2
        error = capsys.readouterr().err
        assert "brings code of its own, foreign_pipeline.py, unet/foreign_unet.py, which could do anything" in error
        assert f"read it ({hub.endpoint}/carol/foreign/tree/{commit})" in error
        assert error.rstrip().endswith(f"add --trust-remote-code --revision {commit}.")
        assert error.count("\n") == 1
        assert app.main(["--model", "carol/foreign", *arguments]) == 2
        assert capsys.readouterr().err == error
    assert not marker.exists() and not output.exists()

    # its author changes the code between the reading and the running
    other = foreign_model(tmp_path / "later", tmp_path / "later ran")
    api.upload_folder(repo_id="carol/foreign", folder_path=other)
    assert sample("--trust-remote-code", "--revision", commit) == 0
    assert output.exists() and marker.exists() and not (tmp_path / "later ran").exists()


def test_foreign_code_of_a_folder(tmp_path):
    marker = tmp_path / "ran"
    folder = foreign_model(tmp_path / "foreign", marker)
    with pytest.raises(UserError, match=r"own, foreign_pipeline.py, unet/foreign_unet.py.* --trust-remote-code\.$"):
        load_allowed(folder)
    assert not marker.exists()
    pipeline = load_allowed(folder, trust_remote_code=True)
    assert marker.exists() and len(pipeline(2, num_inference_steps=2, seed=0, output_type="np").images) == 2
    (folder / WEIGHTS).unlink()
    torch.save({"scale": Touch(tmp_path / "unpickled")}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded with its code"):
        load_allowed(folder, trust_remote_code=True)
    assert not (tmp_path / "unpickled").exists()


def test_every_file_that_may_run_is_named(tmp_path):
    """Also code that only other code imports, and what diffusers looks for without being asked."""
    folder = foreign_model(tmp_path / "foreign", tmp_path / "ran")
    (folder / "unet" / "parts").mkdir()
    others = ["None.py", "scheduler/steps.py", "unet/parts/blocks.py"]
    for name in others:
        (folder / name).write_text("")
    with pytest.raises(UserError) as error:
        load_allowed(folder)
    for name in [*others, "foreign_pipeline.py", "unet/foreign_unet.py", str(folder)]:
        assert name in str(error.value)
    for i in range(200):
        (folder / "unet" / f"more_of_it_{i}.py").write_text("")
    for trust in (False, True):
        with pytest.raises(UserError, match=r"brings 205 files of code, more than can be shown; it is not loaded\.$"):
            load_allowed(folder, trust_remote_code=trust)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("entry", [["../foreign_pipeline", "X"], [5, "X"], ["", "X"]])
def test_consent_does_not_reach_outside_the_folder(tmp_path, entry):
    folder = foreign_model(tmp_path / "foreign", tmp_path / "ran")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("_class_name", "scheduler", "other"):
        (folder / "model_index.json").write_text(json.dumps({**index, name: entry}))
        with pytest.raises(UserError, match=r"names .* as the module of|has a scheduler of class X; known"):
            load_allowed(folder, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_our_own_models_need_no_trust_and_run_no_code(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "evil")
    for source in folder.rglob("*.py"):
        source.write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    expected = load_pipeline(exported)
    expected.unet.to(memory_format=torch.channels_last)  # as load_allowed does
    for trust in (False, True):
        assert digest(load_allowed(folder, trust_remote_code=trust)) == digest(expected)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("entry", [None, [], "MyUNet", ["evil", None], ["evil", ["MyUNet"]], [{}, {}], ["../..", "X"]])
def test_an_index_that_makes_no_sense_is_one_line(exported, tmp_path, entry):
    folder = shutil.copytree(exported, tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": entry}))
    with pytest.raises(UserError, match=r"has a unet of class .*; known are") as error:
        load_allowed(folder, trust_remote_code=True)
    assert "\n" not in str(error.value)


def test_other_diffusers_models_are_not_offered_trust(exported, tmp_path):
    """Trusting would not help: there is no code with them."""
    folder = shutil.copytree(exported, tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet2DConditionModel"]}))
    for trust in (False, True):
        with pytest.raises(UserError, match=r"a unet of class UNet2DConditionModel; known are MyDDPM.*UNet2DModel"):
            load_allowed(folder, trust_remote_code=trust)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(hub, exported, tmp_path):
    """Not even beside safetensors, nor as the file of another format by its name."""
    bomb, marker = tmp_path / "bomb.bin", tmp_path / "unpickled"
    torch.save({"weight": Touch(marker)}, bomb)
    folder = shutil.copytree(exported, tmp_path / "with")
    for name in ("unet/diffusion_pytorch_model.bin", "scheduler/scheduler.pkl", "pytorch_model.bin"):
        shutil.copyfile(bomb, folder / name)
    upload(folder, "alice/with")
    assert digest(load_pipeline("alice/with")) == digest(load_pipeline(exported))
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"):
        shutil.copyfile(bomb, folder / "unet" / name)
    for weights in folder.glob("unet/*.safetensors"):
        weights.unlink()
    shutil.copyfile(bomb, folder / "unet" / "model.safetensors")
    HfApi().delete_file(WEIGHTS, "alice/with")
    HfApi().delete_file(WEIGHTS.replace(".safe", ".fp16.safe"), "alice/with")
    for source in (folder, "alice/with"):
        with pytest.raises(UserError, match="no safetensors weights; pickled weights can run code and are not loaded"):
            load_pipeline(source)
        with pytest.raises(UserError, match="no safetensors weights of the variant 'fp16'"):
            load_pipeline(source, variant="fp16")
    shutil.copyfile(bomb, folder / WEIGHTS)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(folder)
    assert not marker.exists()
