"""Export, load and push: without ddpm_hf and with it, from a folder, from the Hub double, offline; bit-equal."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from helpers import BOTH_STORAGES, hasty, tiny_pipeline
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from ddpm_hf.checkpoints import write_checkpoint
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline, push
from ddpm_hf.hub.retries import RetryLimits
from ddpm_hf.hub.run_files import run_files_of
from ddpm_hf.hub.upload import send
from ddpm_hf.pipeline import MyDDPMPipeline

pytestmark = pytest.mark.usefixtures("uploads_here")

NAMES = {"0": "shirt", "1": "shoe", "2": "bag"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    pipeline = tiny_pipeline(num_class_embeds=3, id2label=NAMES, output_size=(6, 6))
    return export_pipeline(tmp_path_factory.mktemp("export") / "model", pipeline)


def digest(pipeline) -> str:
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(3, class_labels=[0, 1, 2], num_inference_steps=5, seed=7, output_type="np").images
    return hashlib.sha256(images.tobytes()).hexdigest()


def test_a_run_that_went_on_after_its_end_is_loaded_as_it_is_now(tmp_path):
    """Its finished pipeline is of before, until it ends again; what times its files have does not matter."""

    def ends(step: int):
        export_pipeline(tmp_path / "pipeline", tiny_pipeline(num_class_embeds=step))

    def reaches(step: int):
        def write(folder):
            export_pipeline(folder / "pipeline", tiny_pipeline(num_class_embeds=step))
            (folder / "state.json").write_text("{}")

        write_checkpoint(tmp_path / "checkpoints" / f"step-{step}", write)

    def is_loaded_from(step: int):
        for oldest_first in (True, False):
            files = sorted(tmp_path.rglob("*"), key=str, reverse=oldest_first)  # checkpoints come before the pipeline
            for seconds, file in enumerate(files):
                os.utime(file, (seconds, seconds))
            assert load_pipeline(tmp_path).num_classes == step

    reaches(5)
    is_loaded_from(5)
    ends(5)
    is_loaded_from(5)
    reaches(9)
    is_loaded_from(9)
    reaches(12)
    ends(12)
    is_loaded_from(12)
    (tmp_path / "checkpoints" / "step-12" / "pipeline" / "model_index.json").unlink()  # damaged: the pipeline is not
    is_loaded_from(12)


@pytest.mark.parametrize("shards", [None, "2KB"])
def test_parameters_are_counted_once_beside_a_variant(tmp_path, shards):
    pipeline = tiny_pipeline()
    export_pipeline(tmp_path / "model", pipeline, fp16_variant=True, max_shard_size=shards)
    assert len(list((tmp_path / "model" / "unet").glob("*.safetensors"))) >= (2 if shards is None else 4)
    assert run_files_of(tmp_path / "model").parameters == pipeline.unet.num_parameters()
    for file in (tmp_path / "model" / "unet").glob("*.safetensors"):
        if "fp16" not in file.name:
            file.unlink()
    assert run_files_of(tmp_path / "model").parameters == pipeline.unet.num_parameters()


def test_pushing_the_best_checkpoint_needs_neither_torch_nor_diffusers(hub, tmp_path, root):
    for step in (5, 9):
        write_checkpoint(
            tmp_path / "run" / "checkpoints" / f"step-{step}",
            lambda folder: export_pipeline(folder / "pipeline", tiny_pipeline()),
        )
    lines = [{"step": 5, "validation_loss": 0.1}, {"step": 9, "validation_loss": 0.2}]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    script = "import sys; sys.modules['torch'] = sys.modules['diffusers'] = None; import ddpm_hf.__main__ as command; "
    script += "sys.exit(command.main(sys.argv[1:]))"
    arguments = ["push", tmp_path / "run", "--repo-id", "alice/best", "--checkpoint", "best", "--tag", "best"]
    assert "pushed to" in run_python(script, *arguments, cwd=tmp_path, PYTHONPATH=str(root))
    assert "validation loss 0.1000" in hub.repos["model", "alice/best"].resolve("main").files["README.md"].data.decode()


DIGEST_WITHOUT_US = """
import hashlib, sys
sys.modules["ddpm_hf"] = None  # importing it fails, installed or not
from diffusers import DiffusionPipeline
for source in sys.argv[1:]:
    pipeline = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(3, class_labels=[0, 1, 2], num_inference_steps=5, seed=7, output_type="np").images
    print(hashlib.sha256(images.tobytes()).hexdigest(), type(pipeline.unet).__module__.split(".")[0])
"""


def run_python(script: str, *arguments, cwd: Path, **environment) -> str:
    """Standard output of a fresh interpreter, in a folder from which nothing of ours can be imported."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    clean |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize("hub", ["xet"], indirect=True)  # tests/hub/test_loading.py has the other storage
def test_ways_of_loading_are_bit_equal_and_two_versions_are_not_confused(hub, exported, tmp_path):
    """In one process without ddpm_hf: from the Hub, from a folder, and a model whose network negates its output."""
    push(exported, "alice/shapes")
    expected = digest(load_pipeline(exported))
    assert digest(load_pipeline("alice/shapes")) == expected

    other = shutil.copytree(exported, tmp_path / "other")
    (source,) = (other / "unet").glob("*.py")
    changed = source.read_text().replace("x = self.out_conv(x)", "x = -self.out_conv(x)")
    assert changed != source.read_text()
    source.unlink()
    name = f"ddpm_hf_unet_{hashlib.sha256(changed.encode()).hexdigest()[:12]}"
    (other / "unet" / f"{name}.py").write_text(changed)
    index = json.loads((other / "model_index.json").read_text())
    index["unet"][0] = name
    (other / "model_index.json").write_text(json.dumps(index))

    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "0"}
    sources = ("alice/shapes", exported, other, exported)
    lines = run_python(DIGEST_WITHOUT_US, *sources, cwd=tmp_path, **environment).splitlines()
    assert [line.split()[1] for line in lines] == ["diffusers_modules"] * 4
    digests = [line.split()[0] for line in lines]
    assert digests[0] == digests[1] == digests[3] == expected != digests[2]


def test_names_of_component_files_are_the_hash_of_their_content(exported):
    sources = list(exported.rglob("*.py"))
    assert len(sources) == 3
    for source in sources:
        assert source.stem.endswith(hashlib.sha256(source.read_bytes()).hexdigest()[:12])
    assert not [path for path in exported.rglob("*") if path.suffix not in ("", ".py", ".json", ".safetensors", ".md")]


def test_settings_survive(exported):
    pipeline = load_pipeline(exported)
    assert pipeline.config.id2label == NAMES
    assert (pipeline.config.output_height, pipeline.config.output_width) == (6, 6)
    assert pipeline.scheduler.config.variance_type == "fixed_large"
    assert pipeline.unet.config.num_class_embeds == 3


def test_a_pipeline_with_patches_survives(tmp_path):
    pipeline = tiny_pipeline(sample_size=16, patch_size=2)
    export_pipeline(tmp_path / "model", pipeline)
    settings = {"num_inference_steps": 3, "seed": 1, "output_type": "pt"}
    expected = pipeline(2, **settings).images
    assert expected.shape == (2, 1, 16, 16)
    assert torch.equal(load_pipeline(tmp_path / "model")(2, **settings).images, expected)
    foreign = DiffusionPipeline.from_pretrained(str(tmp_path / "model"), trust_remote_code=True)
    assert torch.equal(foreign(2, **settings).images, expected)


def test_half_precision_weights_take_half_the_space(exported, tmp_path):
    half = export_pipeline(tmp_path / "half", load_pipeline(exported), dtype=torch.float16)
    sizes = [next(folder.glob("unet/*.safetensors")).stat().st_size for folder in (exported, half)]
    assert sizes[1] < 0.65 * sizes[0]
    assert load_pipeline(half).unet.dtype == torch.float32
    assert load_pipeline(half, dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    difference = [
        (a - b).abs().max()
        for a, b in zip(load_pipeline(half).unet.parameters(), load_pipeline(exported).unet.parameters())
    ]
    assert max(difference) < 1e-3


def test_a_loaded_pipeline_exports_the_same_again(exported, tmp_path):
    again = export_pipeline(tmp_path / "again", load_pipeline(exported))
    names = sorted(path.relative_to(exported) for path in exported.rglob("*"))
    assert [name for name in names if name.name != "README.md"] == sorted(
        path.relative_to(again) for path in again.rglob("*")
    )
    assert digest(load_pipeline(again)) == digest(load_pipeline(exported))


def test_an_export_that_fails_leaves_the_old_one(exported, tmp_path, monkeypatch):
    folder = export_pipeline(tmp_path / "model", load_pipeline(exported))
    pipeline = load_pipeline(exported)
    monkeypatch.setattr(type(pipeline.scheduler), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(UserError, match="pipeline model could not be written: full"):
        export_pipeline(folder, pipeline)
    assert digest(load_pipeline(folder)) == digest(load_pipeline(exported))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_export_replaces_nothing_but_an_exported_pipeline(exported, tmp_path):
    pipeline = load_pipeline(exported)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(UserError, match=f"{name} exists and is not an exported pipeline"):
            export_pipeline(tmp_path / name, pipeline)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    export_pipeline(tmp_path / "empty", pipeline)
    assert str(tmp_path) not in (tmp_path / "empty" / "unet" / "config.json").read_text()
    assert str(exported.parent) not in (tmp_path / "empty" / "unet" / "config.json").read_text()


def test_plain_diffusers_repositories_load(tmp_path):
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    stock = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10))
    stock.set_progress_bar_config(disable=True)
    stock.save_pretrained(tmp_path / "stock")
    pipeline = load_pipeline(tmp_path / "stock")
    expected = stock(2, torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np").images
    images = pipeline(2, generator=torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np").images
    assert abs(images - expected).max() < 1e-4

    export_pipeline(tmp_path / "again", MyDDPMPipeline(unet, DDIMScheduler()))
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert (index["unet"], index["scheduler"]) == (["diffusers", "UNet2DModel"], ["diffusers", "DDIMScheduler"])
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "again", trust_remote_code=True).unet, UNet2DModel)


def test_a_run_and_its_checkpoints_can_be_loaded(exported, tmp_path):
    for name, title in (("step-9", "shirt"), ("step-10", "newest"), ("step-11", "damaged")):

        def write(partial, title=title):
            shutil.copytree(exported, partial / "pipeline")
            index = partial / "pipeline" / "model_index.json"
            index.write_text(index.read_text().replace("shirt", title))

        write_checkpoint(tmp_path / "checkpoints" / name, write)
    (tmp_path / "checkpoints/step-11/pipeline/unet/config.json").write_text("{}")
    assert load_pipeline(tmp_path).config.id2label["0"] == "newest"
    shutil.copytree(exported, tmp_path / "pipeline")
    assert load_pipeline(tmp_path).config.id2label["0"] == "shirt"


# ---- push


@BOTH_STORAGES
def test_push_is_one_commit_and_private_when_asked(hub, exported, tmp_path):
    exported = shutil.copytree(exported, tmp_path / "model")
    push(exported, "acme/secret", private=True)
    repo = hub.repos["model", "acme/secret"]
    assert repo.private
    assert len(repo.commits) == 2  # the repository's own first one, and ours
    uploaded = set(repo.resolve("main").files) - {".gitattributes", "README.md"}
    assert uploaded == {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    push(exported, "acme/secret")
    assert hub.repos["model", "acme/secret"].private


def test_push_fills_in_the_card_and_keeps_the_users_own(hub, exported, tmp_path):
    from huggingface_hub import ModelCard

    folder = shutil.copytree(exported, tmp_path / "model")
    push(folder, "alice/shapes")
    card = ModelCard.load("alice/shapes")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "unconditional-image-generation")
    text = " ".join(card.text.split())
    for expected in (
        "# shapes",
        "grayscale pictures of 6x6 pixels",
        "of 3 classes",
        'from_pretrained("alice/shapes"',
        "2. bag",
    ):
        assert expected in text
    assert "{{" not in card.text
    assert not (folder / "README.md").exists()
    push(folder, "acme/others")  # another repository gets a card of its own
    assert "# others" in ModelCard.load("acme/others").text
    (folder / "README.md").write_text("mine")
    push(folder, "alice/shapes")
    assert hub.repos["model", "alice/shapes"].resolve("main").files["README.md"].data == b"mine"


def test_push_removes_component_files_of_an_older_version(hub, exported):
    """And no others that somebody has put there."""
    push(exported, "alice/shapes")
    for name in ("unet/ddpm_hf_unet_0123456789ab.py", "extra.py"):
        HfApi().upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id="alice/shapes")
    push(exported, "alice/shapes")
    files = hub.repos["model", "alice/shapes"].resolve("main").files
    assert "unet/ddpm_hf_unet_0123456789ab.py" not in files
    assert "extra.py" in files
    assert len(hub.repos["model", "alice/shapes"].commits) == 5


def test_push_to_a_hub_that_does_not_answer(exported, tmp_path, root):
    script = "import sys; from ddpm_hf.__main__ import main; sys.exit(main(sys.argv[1:]))"
    path = f"{root}{os.pathsep}{hasty(tmp_path / 'hasty')}"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": path}
    before = sorted(exported.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-c", script, "push", str(exported), "--repo-id", "a/b"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: pushing to a/b failed: ")
    assert "Traceback" not in result.stderr
    assert sorted(exported.rglob("*")) == before


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("carol/model", None, "pushing to carol/model failed: the Hub refuses this .403: You don't have the rights"),
        ("alice/model", "hf_nobody", "pushing to alice/model failed: .*401"),
        ("not an id", None, "'not an id' is not a Hub id"),
    ],
)
def test_push_that_is_refused_says_why(hub, exported, repo_id, token, message):
    with pytest.raises(UserError, match=message) as error:
        push(exported, repo_id, token=token)
    assert "\n" not in str(error.value)
    assert "hf_" not in str(error.value)


def test_a_push_without_a_token_says_so(hub, exported, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))  # of the process that uploads
    with pytest.raises(UserError, match=r"there is no token for the Hub .401.*; log in with `hf auth login`") as error:
        push(exported, "alice/model")
    assert "does not accept" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"the Hub does not accept the token .401"):
        push(exported, "alice/model", token="hf_nobody")


# ---- push of a run


def a_run(folder: Path, exported: Path, **settings) -> Path:
    """A run that has a checkpoint and a pipeline, as far as a push reads it."""
    write_checkpoint(folder / "checkpoints" / "step-3", lambda part: shutil.copytree(exported, part / "pipeline"))
    shutil.copytree(exported, folder / "pipeline")
    (folder / "config.yaml").write_text(json.dumps({"dataset": "pictures", **settings}))
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n')
    return folder


def test_no_part_of_a_private_run_becomes_public(hub, exported, tmp_path):
    run = a_run(tmp_path / "pipeline", exported, hub_private_repo=True)  # a run may be called that, too
    parts = (".", "pipeline", "checkpoints/step-3", "checkpoints/step-3/pipeline")
    for number, part in enumerate(parts):
        push(run / part, f"alice/m{number}")
        assert hub.repos["model", f"alice/m{number}"].private, part
    push(run / "pipeline", "alice/shown", private=False)
    assert not hub.repos["model", "alice/shown"].private
    public = a_run(tmp_path / "public", exported, hub_private_repo=False)
    push(public / "pipeline", "alice/public")
    assert not hub.repos["model", "alice/public"].private
    (run / "config.yaml").write_text("hub_private_repo: [")
    for part in parts:
        with pytest.raises(UserError, match="which says whether the run is private, cannot be read"):
            push(run / part, "alice/unknown")
    assert ("model", "alice/unknown") not in hub.repos


def test_a_push_is_of_the_files_as_they_were(hub, exported, tmp_path, monkeypatch):
    """The run goes on in the meantime: it writes to its metrics, and its checkpoint goes."""
    run = a_run(tmp_path / "run", exported)
    shutil.rmtree(run / "pipeline")
    before = (run / "metrics.jsonl").read_bytes()

    def send_later(*arguments, **options):
        (run / "metrics.jsonl").write_text("later")
        shutil.rmtree(run / "checkpoints")
        return send(*arguments, **options)

    monkeypatch.setattr("ddpm_hf.hub.publishing.send", send_later)
    push(run, "alice/m")
    files = hub.repos["model", "alice/m"].resolve("main").files
    assert files["metrics.jsonl"].data == before and WEIGHTS in files


def test_a_folder_of_links_is_pushed(hub, exported, tmp_path, monkeypatch):
    """As the cache of the Hub has them: relative ones, to files without suffixes beside the folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    blobs = tmp_path / "cache" / "models--a--b" / "blobs"
    linked = blobs.parent / "snapshots" / "0123456789"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in exported.rglob("*") if path.is_file()):
        shutil.copy(path, blobs / str(number))
        link = linked / path.relative_to(exported)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    push(linked, "alice/m")
    assert digest(load_pipeline("alice/m")) == digest(load_pipeline(exported))


def test_numbers_of_an_evaluation_stay_numbers_and_it_goes_with_its_weights(hub, exported, tmp_path):
    run = a_run(tmp_path / "run", exported)
    scores = {"fid": 12.5, "kid": 1e-05, "recall": float("nan")}
    protocol = {"dataset": "/home/me/my pictures", "num_images": 100, "reference_images": 90, "features": "inception"}
    protocol |= {"sampler": "ddim", "steps": 20, "seed": 10**20, "small": -2.5e-07}
    (run / "evaluation.json").write_text(json.dumps({"scores": scores, "protocol": protocol}))
    (run / "evaluation-samples.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    push(run, "alice/m")
    repo = hub.repos["model", "alice/m"]
    sent = json.loads(repo.resolve("main").files["evaluation.json"].data)
    assert sent["protocol"] == {**protocol, "dataset": "my pictures"}
    assert sent["scores"]["kid"] == 1e-05 and sent["scores"]["recall"] != sent["scores"]["recall"]
    for name in ("evaluation.json", "evaluation-samples.png"):
        (run / name).unlink()
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="evaluations/notes.json", repo_id="alice/m")
    push(run, "alice/m")
    names = [name for name in repo.resolve("main").files if name.startswith("evaluation")]
    assert names == ["evaluations/notes.json"]


TAG_ONLY_FAULTS = [
    None,
    {"method": "POST", "path": "/branch/", "lose_response": True},
    {"method": "POST", "path": "/branch/", "status": 503, "times": 2},
    {"method": "POST", "path": "/commit/for-v1", "lose_response": True},
    {"method": "POST", "path": "/commit/for-v1", "drop_after": 0},
    {"method": "POST", "path": "/tag/", "lose_response": True},
    {"method": "DELETE", "path": "/branch/", "lose_response": True},
    {"method": "DELETE", "path": "/branch/", "status": 503, "times": 2},
]


@pytest.mark.parametrize("fault", TAG_ONLY_FAULTS)
def test_a_tag_alone_leaves_the_main_branch(hub, exported, tmp_path, fault):
    push(exported, "alice/model", quiet=True)
    repo, older = hub.repos["model", "alice/model"], load_pipeline(exported)
    newest, before = repo.branches["main"], len(repo.commits)
    older.unet.out_conv.bias.data += 1
    export_pipeline(tmp_path / "older", older)
    hit = hub.fault(**fault) if fault else None
    options = {"tag": "v1", "tag_only": True, "quiet": True, "limits": RetryLimits(attempts=4, first_wait=0.02)}
    for _ in range(1 if fault else 2):
        assert push(tmp_path / "older", "alice/model", **options) == f"{hub.endpoint}/alice/model/tree/v1"
        assert repo.branches == {"main": newest} and len(repo.commits) == before + 1
        assert repo.commits[repo.tags["v1"]].parent == newest
    assert hit is None or hit.hits
    assert torch.equal(load_pipeline("alice/model", revision="v1").unet.out_conv.bias, older.unet.out_conv.bias)
    if fault:
        return
    with pytest.raises(UserError, match="the tag v1 is there already"):
        push(exported, "alice/model", **options)
    assert repo.branches == {"main": newest} and len(repo.commits) == before + 1


@pytest.mark.parametrize(
    ("method", "path", "left"),
    [
        ("POST", "/branch/", None),
        ("POST", "/commit/for-v1", "The branch for-v1 was made for it, and goes with the same command."),
        ("POST", "/tag/", "the tag v1 is not set yet."),
        ("DELETE", "/branch/", "the branch for-v1, which is needed no more, is there yet."),
    ],
)
def test_a_tag_alone_that_is_refused_is_finished_by_the_same_command(hub, exported, method, path, left):
    hub.fault(method, path, status=403, message="no")
    with pytest.raises(UserError, match=r"the Hub refuses this \(403: no\)") as error:
        push(exported, "alice/model", tag="v1", tag_only=True, quiet=True)
    assert left is None or str(error.value).endswith(left)
    repo = hub.repos["model", "alice/model"]
    assert len(repo.commits) <= 2 and repo.resolve("main").files.keys() == {".gitattributes"}
    push(exported, "alice/model", tag="v1", tag_only=True, quiet=True)
    assert len(repo.commits) == 2 and repo.branches.keys() == {"main"}
    assert repo.tags["v1"] != repo.branches["main"]


def test_a_tag_alone_takes_a_tag(exported):
    with pytest.raises(UserError, match="give --tag"):
        push(exported, "alice/model", tag_only=True)


def test_a_tag_is_set_or_refused(hub, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    push(folder, "alice/m", tag="v1")
    repo = hub.repos["model", "alice/m"]
    first = repo.branches["main"]
    push(folder, "alice/m", tag="v1")  # it is on that commit
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="alice/m")
    with pytest.raises(UserError, match=f"the tag v1 is there already, on commit {first[:8]}, nothing was uploaded"):
        push(folder, "alice/m", tag="v1")  # nothing to upload, but the newest commit is another
    push(folder, "alice/m", tag="v2")
    assert repo.tags == {"v1": first, "v2": repo.branches["main"]} and first != repo.branches["main"]


def test_a_component_that_would_be_left_out_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    change_json(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    (folder / "vqvae").mkdir()
    with pytest.raises(UserError, match="has a component vqvae; a push takes unet, scheduler, tokenizer and"):
        push(folder, "alice/m")


# ---- what cannot be loaded


def without(exported: Path, tmp_path: Path, *names: str) -> Path:
    folder = shutil.copytree(exported, tmp_path / "broken")
    for name in names:
        (folder / name).unlink()
    return folder


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_pickled_weights_are_refused(hub, exported, tmp_path):
    folder = without(exported, tmp_path, WEIGHTS)
    marker = tmp_path / "was unpickled"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"weight": Bomb()}, folder / "unet" / "diffusion_pytorch_model.bin")
    HfApi().create_repo("alice/pickles")
    HfApi().upload_folder(repo_id="alice/pickles", folder_path=folder)
    for model in (folder, "alice/pickles"):
        with pytest.raises(UserError, match="no safetensors weights; pickled weights can run code and are not loaded"):
            load_pipeline(model)
    assert not marker.exists()


def test_foreign_code_is_not_run(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "foreign")
    for source in folder.rglob("*.py"):
        source.write_text("raise SystemExit('ran')")
    assert digest(load_pipeline(folder)) == digest(load_pipeline(exported))
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["evil", "EvilUNet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="a unet of class EvilUNet; known are"):
        load_pipeline(folder)


def test_models_that_are_not_there(hub, exported, tmp_path):
    push(exported, "alice/shapes")
    for model, message in [
        ("alice/none", "neither a folder here nor a repository you can see on the Hub"),
        (tmp_path / "none", "is not there"),
        ("./none", "is not there"),
        ("no such name!", "neither a folder here nor a Hub id"),
        (without(exported, tmp_path, "model_index.json"), "has no model_index.json"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            load_pipeline(model)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="has no revision 'v9'"):
        load_pipeline("alice/shapes", revision="v9")


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_broken_weights_are_one_line(exported, tmp_path, content):
    folder = shutil.copytree(exported, tmp_path / "broken")
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_pipeline(folder)
    assert "\n" not in str(error.value)


def change_weights(folder: Path, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def change_json(file: Path, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_weights(f, lambda w: w["out_conv.bias"].fill_(float("nan"))), "out_conv.bias is not finite"),
        (lambda f: change_weights(f, lambda w: w.pop("out_conv.bias")), "out_conv.bias is missing"),
        (lambda f: change_weights(f, lambda w: w.update(more=torch.zeros(1))), "more is unexpected"),
        (lambda f: change_json(f / "model_index.json", output_height=-3), "output_height in model_index.json must"),
        (lambda f: change_json(f / "model_index.json", output_width=9), r"must be a whole number in \[1, 8\], got 9"),
        (lambda f: change_json(f / "model_index.json", id2label=[1]), "id2label in model_index.json must"),
        (lambda f: (f / "model_index.json").write_text("[]"), "must hold an object, not a list"),
        (lambda f: (f / "model_index.json").write_text("{"), "is not a JSON file that can be read"),
        (
            lambda f: change_json(f / "unet/config.json", sample_size="abc"),
            "'sample_size': input should be a valid integer",
        ),
        (lambda f: change_json(f / "unet/config.json", num_attention_heads=0), "num_attention_heads must be"),
        (lambda f: change_json(f / "scheduler/scheduler_config.json", num_train_timesteps=99), "network knows only 20"),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "has no scheduler/scheduler_config.json"),
    ],
)
def test_damaged_models_are_one_line(exported, tmp_path, damage, message):
    folder = shutil.copytree(exported, tmp_path / "broken")
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(folder)
    assert "\n" not in str(error.value)


def test_the_temporary_folder_is_not_left_behind(exported):
    assert not [name for name in os.listdir(exported.parent) if name.startswith(".")]
