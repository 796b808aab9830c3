"""What the project did not write it neither replaces nor deletes: somebody's files in every folder it writes to."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import ROOT, moments_file, tiny_pipeline
from huggingface_hub import CommitOperationAdd, HfApi
from PIL import Image
from training.tiny_runs import DATA, tiny_run, tiny_trainer

from ddpm_hf.__main__ import main
from ddpm_hf.checkpoints import checkpoints_of, set_aside_after, write_checkpoint
from ddpm_hf.config import TrainConfig
from ddpm_hf.errors import UserError
from ddpm_hf.hub import deploy_space, export_pipeline, load_pipeline, push
from ddpm_hf.ownership import PIPELINE, RUN, SETTINGS, replace_folder

pytestmark = pytest.mark.usefixtures("uploads_here")

WORK = b"years of work\r\n\xff"
FEW = ["--num-images", "2", "--steps", "2", "--scheduler", "ddim"]
SCORED = ["--num-images", "20", "--reference-split", "train", "--steps", "1", "--scheduler", "ddim"]


def put(folder: Path, *names: str) -> dict[Path, bytes]:
    """Somebody's files; what they hold, by path."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(WORK + name.encode())
    return {folder / name: WORK + name.encode() for name in names}


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def unchanged(files: dict[Path, bytes]) -> bool:
    return {path: path.read_bytes() for path in files if path.is_file()} == files


def stock_pipeline() -> DDPMPipeline:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, layers_per_block=1, **blocks)
    return DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 12 steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tiny_run(folder)
    return folder


# ---- whose a folder is


def test_runs_and_exports_of_before_are_known(tmp_path):
    """Those of 0.1.0 have no mark."""
    assert RUN.owns(ROOT / "pretrained" / "fashion_mnist_small")
    assert PIPELINE.owns(ROOT / "pretrained" / "fashion_mnist_small")
    assert PIPELINE.owns(ROOT / "tests" / "hub" / "versions" / "0.1.0")
    assert set(TrainConfig.model_fields) >= SETTINGS
    assert PIPELINE.owns(export_pipeline(tmp_path / "stock", stock_pipeline()))
    stock_pipeline().save_pretrained(tmp_path / "somebody")
    assert not PIPELINE.owns(tmp_path / "somebody")


@pytest.mark.parametrize("text", ["[" * 100_000, "x" * 2_000_000, "\0", "- 1", "a: &a [*a]", "", "1: 2"])
def test_an_odd_index_is_somebodys(tmp_path, text):
    for layout in (RUN, PIPELINE):
        (tmp_path / layout.index).write_text(text)
        assert not layout.owns(tmp_path)


# ---- output_dir


@pytest.mark.parametrize("resume", ["auto", "force"])
@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml", "metrics.jsonl", "facts.json", "report.html", "loss.png", "timesteps.png", ".lock"),
        *("samples/step-0000006.png", "checkpoints/step-4/model.bin", ".push/1/notes.txt"),
        *("pipeline", "pipeline/notes.txt", "pipeline/model_index.json"),
    ],
)
def test_a_folder_of_somebodys_is_no_output_dir(tmp_path, name, resume):
    put(tmp_path, name)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="choose another output_dir") as error:
        tiny_trainer(tmp_path, resume=resume)
    assert name.split("/")[0] in str(error.value) and "\n" not in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "report.html"])
def test_a_pipe_is_no_empty_file(tmp_path, name):
    """Writing to one would wait for a reader."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"already has {name}"):
        tiny_trainer(tmp_path)


def test_the_run_of_another_program_is_no_output_dir(tmp_path):
    """Its settings have names that ours have, too."""
    settings = {"output_dir": "x", "seed": 0, "dataset": "cats", "train_batch_size": 8, "num_train_timesteps": 1000}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    put(tmp_path, "checkpoints/step-4/state.json", "metrics.jsonl")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"already has checkpoints/step-4, config\.yaml, metrics\.jsonl, but no"):
        tiny_trainer(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert contents(tmp_path) == before


def test_the_pipeline_of_somebody_in_a_run_is_in_the_way(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "pipeline")
    stock_pipeline().save_pretrained(run / "pipeline")
    before = contents(run)
    with pytest.raises(UserError, match="pipeline is in the way"):
        tiny_trainer(run)
    assert contents(run) == before


def test_files_that_no_run_touches_are_fine(tmp_path):
    """Hidden files, those of a clone of a new repository, and names that no run uses."""
    names = [".gitkeep", ".DS_Store", ".git/HEAD", ".gitattributes", "README.md", "LICENSE"]
    files = put(tmp_path, *names, "train.log", "notes/plan.md", "samples/cat.png", "checkpoints/README.md")
    put(tmp_path, "loss.png")
    (tmp_path / "loss.png").write_bytes(b"")  # touched only
    for _ in range(2):
        tiny_run(tmp_path, max_train_steps=1)
    assert (tmp_path / "pipeline" / "model_index.json").is_file()
    assert unchanged(files)


def test_every_command_leaves_what_somebody_put_into_a_run(finished, tmp_path, hub, capsys):
    """Beside our files, in every folder that a run and the commands write to."""
    run = shutil.copytree(finished, tmp_path / "run")
    oldest, last = checkpoints_of(run)
    files = put(
        run,
        *("notes.txt", "photo.png", ".hidden", "wandb/x", "samples/notes.txt", "samples/.step-by-step.md"),
        *("checkpoints/notes.txt", "checkpoints/.step-4.partial.txt", "checkpoints/.step-x.partial/notes.txt"),
        *("checkpoints/step-99.damaged/notes.txt", ".push/notes.txt", "pipeline/README.md", "pipeline/.git/HEAD"),
        *("pipeline/notes.txt", "pipeline/unet/notes.txt", "pipeline/unet/diffusion_pytorch_model.bin"),
        *("pipeline/feature_extractor/config.json", "features/notes.txt", "evaluation.txt", "grid.txt"),
        *("evaluation-notes.png", "evaluation-samples.txt", "samples-evaluation.json"),
    )
    (run / "pipeline" / "empty").mkdir()
    of_oldest = put(oldest, "notes.txt")[oldest / "notes.txt"]
    weights = (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()

    tiny_run(
        run, max_train_steps=14, resume="force", checkpoints_total_limit=1, push_to_hub=True, hub_model_id="alice/run"
    )
    run_text, out = str(run), str(run / "pipeline")
    commands = [
        ["report", run_text],
        ["sample", run_text, *FEW, "--output", str(run / "grid.png")],
        ["sample", run_text, *FEW, "--output", str(run / "grid.gif")],
        ["sample", run_text, *FEW, "--output", str(run / "grid.npz")],
        ["noise", run_text, "--dataset", DATA, "--num-images", "2", "--steps", "2", "--output", str(run / "noise.png")],
        ["export", run_text, "--output", out, "--max-shard-size", "5KB"],
        ["export", run_text, "--output", out],
        ["train-features", "--dataset", DATA, "--epochs", "1", "--output", str(run / "classifier")],
        [
            "evaluate",
            run_text,
            *SCORED,
            "--features",
            moments_file(tmp_path / "moments.pt"),
            "--output",
            str(run / "evaluation.json"),
        ],
    ]
    for command in commands * 2:  # over what they have written, too
        assert main(command) == 0, capsys.readouterr().err
        files |= put(run / "classifier", "notes.txt", ".git/HEAD") if command[0] == "train-features" else {}
    assert unchanged(files) and (run / "pipeline" / "empty").is_dir()
    assert (oldest.with_name(f"{oldest.name}.kept") / "notes.txt").read_bytes() == of_oldest
    assert [path.name for path in checkpoints_of(run)] == ["step-14"] and not last.exists()
    assert (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != weights
    assert not list((run / "pipeline").rglob("*-of-*"))  # the shards of the export before
    assert load_pipeline(run / "pipeline").num_classes == 10


# ---- checkpoints


def test_a_checkpoint_with_somebodys_file_is_set_aside_where_it_would_be_replaced(tmp_path):
    folder = tmp_path / "checkpoints" / "step-1"
    for text in ("first", "second", "third"):
        write_checkpoint(folder, lambda partial, text=text: (partial / "state.json").write_text(text))
        put(folder, "notes.txt") if text != "third" else None
    kept = sorted(path.relative_to(folder.parent).as_posix() for path in folder.parent.rglob("notes.txt"))
    assert kept == ["step-1.kept-2/notes.txt", "step-1.kept/notes.txt"]
    assert (folder / "state.json").read_text() == "third"


def test_damaged_checkpoints_are_all_kept(tmp_path):
    for _ in range(2):
        put(tmp_path / "checkpoints" / "step-8", "notes.txt")
        set_aside_after(tmp_path, 4)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-8.damaged", "step-8.damaged-2"]


# ---- export and train-features


@pytest.mark.parametrize(
    "names", [["chapter.txt"], ["model_index.json"], ["unet/config.json"], ["pipeline.py", ".git/HEAD"]]
)
def test_a_folder_of_somebodys_is_not_exported_to(tmp_path, names, capsys):
    model = export_pipeline(tmp_path / "model", tiny_pipeline())
    put(tmp_path / "work", *names)
    before = contents(tmp_path / "work")
    assert main(["export", str(model), "--output", str(tmp_path / "work")]) == 2
    assert capsys.readouterr().err.endswith("work exists and is not an exported pipeline; choose another folder.\n")
    command = ["train-features", "--dataset", DATA, "--epochs", "1", "--output", str(tmp_path / "work")]
    assert main(command) == 2
    assert capsys.readouterr().err.endswith("work exists and is not a classifier; choose another folder.\n")
    assert contents(tmp_path / "work") == before


def test_a_model_that_diffusers_saved_is_not_exported_over(tmp_path):
    stock_pipeline().save_pretrained(tmp_path / "somebody")
    before = contents(tmp_path / "somebody")
    with pytest.raises(UserError, match="is not an exported pipeline"):
        export_pipeline(tmp_path / "somebody", tiny_pipeline())
    assert contents(tmp_path / "somebody") == before


def test_a_link_to_somebodys_folder_is_not_written_through(tmp_path):
    files = put(tmp_path / "elsewhere", "config.json", "diffusion_pytorch_model.safetensors")
    model = export_pipeline(tmp_path / "model", tiny_pipeline())
    shutil.rmtree(model / "unet")
    (model / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is not an exported pipeline"):
        export_pipeline(model, tiny_pipeline())
    assert unchanged(files)


@pytest.mark.parametrize("names", [[".gitkeep"], [".git/HEAD", ".gitattributes", "README.md", "LICENSE.md"]])
def test_a_folder_prepared_for_an_export_is_used(tmp_path, names):
    files = put(tmp_path / "model", *names)
    for _ in range(2):
        export_pipeline(tmp_path / "model", tiny_pipeline())
    assert unchanged(files) and load_pipeline(tmp_path / "model").num_classes is None


def test_an_export_beside_other_files_has_its_index_last(tmp_path, monkeypatch):
    """One that is ended in the middle is an exported pipeline still, and the same command finishes it."""
    model = export_pipeline(tmp_path / "model", tiny_pipeline())
    files = put(model, "notes.txt")
    moved, replace = [], os.replace

    def record(source, target):
        moved.append(Path(target).relative_to(model).as_posix())
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    export_pipeline(model, tiny_pipeline())
    assert moved[-1] == "model_index.json" and len(moved) == len(set(moved)) > 4
    assert unchanged(files)


def test_a_new_folder_takes_the_place_of_one_of_ours_at_once(tmp_path):
    export_pipeline(tmp_path / "model", tiny_pipeline())
    new = tmp_path / ".model-x" / "new"
    new.mkdir(parents=True)
    (new / "model_index.json").write_text("{}")
    before = (tmp_path / "model").stat().st_ino
    replace_folder(tmp_path / "model", new, PIPELINE)
    assert (tmp_path / "model").stat().st_ino != before and (tmp_path / ".model-x" / "old").stat().st_ino == before


# ---- files


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp", ".npz"])
def test_a_file_of_another_kind_is_not_sampled_over(finished, tmp_path, suffix, capsys):
    output = tmp_path / f"output{suffix}"
    files = put(tmp_path, output.name)
    command = ["sample", str(finished), *FEW, "--output", str(output)]
    assert main(command) == 2
    assert capsys.readouterr().err.endswith(
        f"{output.name} exists, and this command did not write it; choose another name.\n"
    )
    if suffix == ".png":
        assert main(["noise", "--dataset", DATA, "--output", str(output)]) == 2
    assert unchanged(files)
    output.write_bytes(b"")
    for _ in range(2):
        assert main(command) == 0


def test_an_archive_of_somebodys_is_not_sampled_over(finished, tmp_path):
    import numpy as np

    np.savez(tmp_path / "data.npz", images=np.arange(3), captions=np.arange(3))
    before = contents(tmp_path)
    assert main(["sample", str(finished), *FEW, "--output", str(tmp_path / "data.npz")]) == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize("taken", ["score.json", "score-samples.png", "score-neighbours.png"])
def test_an_evaluation_replaces_evaluations_only(finished, tmp_path, taken, capsys):
    if taken.endswith(".json"):
        (tmp_path / taken).write_text(json.dumps({"scores": [1, 2]}))
    else:
        Image.new("L", (3, 3)).save(tmp_path / taken)
    before = contents(tmp_path)
    command = ["evaluate", str(finished), "--output", str(tmp_path / "score.json")]
    assert main(command) == 2
    assert taken in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert contents(tmp_path) == before
    report = json.loads((ROOT / "pretrained" / "fashion_mnist_small" / "evaluation.json").read_text())
    (tmp_path / "score.json").write_text(json.dumps(report))  # of 0.1.0: the figures are its own
    assert main([*command, "--num-images", "0"]) == 2
    assert "--num-images" in capsys.readouterr().err


# ---- the Hub


def commit(repo_type: str, repo_id: str, files: dict[str, bytes], **options):
    """A repository with somebody's files."""
    api = HfApi()
    api.create_repo(repo_id, repo_type=repo_type, exist_ok=True, **options)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    api.create_commit(repo_id, operations, commit_message="mine", repo_type=repo_type)


def files_of(hub, repo_type: str, repo_id: str) -> dict[str, str]:
    return {name: blob.oid for name, blob in hub.repos[repo_type, repo_id].resolve("main").files.items()}


@pytest.mark.parametrize(
    "name",
    [
        *("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"),
        *("config.yaml", "metrics.jsonl", "samples/step-0000001.png", "evaluation-mine.png", "loss.png"),
    ],
)
def test_a_repository_of_somebodys_is_not_pushed_to(finished, hub, name):
    content = b'{"_class_name": "Mine"}' if name.endswith(".json") else WORK
    commit("model", "alice/mine", {"README.md": b"# My work", name: content})
    before = files_of(hub, "model", "alice/mine")
    with pytest.raises(UserError, match=f"holds {name}.* of another program, nothing was uploaded") as error:
        push(finished, "alice/mine", quiet=True)
    assert "\n" not in str(error.value)
    assert files_of(hub, "model", "alice/mine") == before and len(hub.repos["model", "alice/mine"].commits) == 2


def test_a_model_that_diffusers_saved_there_is_not_pushed_over(finished, hub, tmp_path):
    stock_pipeline().save_pretrained(tmp_path / "somebody")
    HfApi().create_repo("alice/mine")
    HfApi().upload_folder(repo_id="alice/mine", folder_path=tmp_path / "somebody")
    before = files_of(hub, "model", "alice/mine")
    with pytest.raises(UserError, match=r"holds model_index\.json and 3 more files of another program"):
        push(finished, "alice/mine", quiet=True)
    assert files_of(hub, "model", "alice/mine") == before


def test_a_repository_with_other_files_is_pushed_to_and_keeps_them(finished, hub, tmp_path):
    """A new one with a README.md and notes, one of 0.1.0, and one with a model that diffusers saved and we pushed."""
    commit("model", "alice/notes", {"README.md": b"# My work", "notes.txt": WORK, "unet/notes.txt": WORK})
    stock_pipeline().save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "README.md").write_text("# My work")
    HfApi().create_repo("alice/before")
    HfApi().upload_folder(repo_id="alice/before", folder_path=ROOT / "tests" / "hub" / "versions" / "0.1.0")
    for repo_id, folder in (
        ("alice/notes", finished),
        ("alice/before", finished),
        ("alice/stock", tmp_path / "stock"),
        ("alice/stock", tmp_path / "stock"),
        ("alice/notes", finished / "pipeline"),
    ):
        push(folder, repo_id, quiet=True)
        assert load_pipeline(repo_id).unet is not None
    files = hub.repos["model", "alice/notes"].resolve("main").files
    assert files["README.md"].data == b"# My work" and files["notes.txt"].data == files["unet/notes.txt"].data == WORK


def test_a_space_of_somebodys_own_making_is_not_deployed_to(hub):
    """Also one that has our package beside an app of its own."""
    files = {"app.py": WORK, "README.md": b"---\nsdk: gradio\n---\n# My app\n", "ddpm_hf/__init__.py": b""}
    commit("space", "alice/mine", files, space_sdk="gradio")
    before = files_of(hub, "space", "alice/mine")
    with pytest.raises(UserError, match="holds something else, nothing was uploaded"):
        deploy_space("alice/mine", quiet=True)
    assert files_of(hub, "space", "alice/mine") == before and not hub.repos["space", "alice/mine"].variables


def test_a_space_keeps_what_its_owner_added(finished, hub):
    deploy_space("alice/mine", finished / "pipeline", quiet=True)
    names = ["notes.txt", "pretrained/mine/model_index.json", "model/notes.md", "ddpm_hf/notes.md", "data/mine.parquet"]
    commit("space", "alice/mine", dict.fromkeys(names, WORK), space_sdk="gradio")
    deploy_space("alice/mine", quiet=True)
    files = hub.repos["space", "alice/mine"].resolve("main").files
    assert set(names) <= set(files) and "model/model_index.json" not in files
    assert "pretrained/fashion_mnist_small/model_index.json" in files
