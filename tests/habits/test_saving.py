"""Every way of saving writes the same folder, and nothing that nobody can load."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from habit_cases import ours, stock
from helpers import tiny_pipeline, tiny_unet
from huggingface_hub import snapshot_download

from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline, push
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.unet import MyUNet


def files_of(folder) -> dict[str, bytes]:
    """Path in the folder -> content, without the card and what git needs."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name not in ("README.md", ".gitattributes")}


def on_the_hub(repo_id: str, tmp_path) -> dict[str, bytes]:
    folder = tmp_path / f"of {repo_id}".replace("/", "-")
    snapshot_download(repo_id, local_dir=folder)
    return {name: data for name, data in files_of(folder).items() if not name.startswith(".cache/")}


@pytest.fixture
def pipeline() -> MyDDPMPipeline:
    pipeline = ours()
    pipeline.weights = "raw"
    return pipeline


def test_every_way_writes_the_same_folder(hub, pipeline, tmp_path):
    exported = files_of(export_pipeline(tmp_path / "exported", pipeline))
    assert len([name for name in exported if name.endswith(".py")]) == 3
    assert json.loads(exported["model_index.json"])["_weights"] == "raw"
    pipeline.save_pretrained(tmp_path / "saved")
    assert files_of(tmp_path / "saved") == exported
    pipeline.push_to_hub("alice/one")
    pipeline.save_pretrained(tmp_path / "two", push_to_hub=True, repo_id="alice/two")
    push(tmp_path / "saved", "alice/three")
    for name in ("one", "two", "three"):
        assert on_the_hub(f"alice/{name}", tmp_path) == exported

    installed = load_pipeline(tmp_path / "saved")
    installed.save_pretrained(tmp_path / "installed")
    assert files_of(tmp_path / "installed") == exported
    brought = DiffusionPipeline.from_pretrained("alice/one", trust_remote_code=True)  # classes of the model's own code
    assert not isinstance(brought, MyDDPMPipeline)
    brought.weights = "raw"
    brought.save_pretrained(tmp_path / "brought")
    export_pipeline(tmp_path / "exported brought", brought)
    again = files_of(tmp_path / "brought")
    assert files_of(tmp_path / "exported brought") == again
    config = json.loads(again.pop("unet/config.json"))  # which notes the model that it was made of
    assert config.pop("_name_or_path").startswith("models--alice--one/snapshots/")
    assert config == json.loads(exported.pop("unet/config.json"))
    assert again == exported


def test_a_published_model_that_is_saved_over_stays_loadable(hub, pipeline, tmp_path):
    push(export_pipeline(tmp_path / "model", pipeline), "alice/model")
    brought = DiffusionPipeline.from_pretrained("alice/model", trust_remote_code=True)
    with torch.no_grad():
        brought.unet.out_conv.weight.zero_()
    brought.push_to_hub("alice/model")
    again = DiffusionPipeline.from_pretrained("alice/model", trust_remote_code=True)
    assert not again.unet.out_conv.weight.any()
    assert str(tmp_path).encode() not in b"".join(on_the_hub("alice/model", tmp_path).values())


class Mine(MyUNet):
    """What nobody else has."""


def wrapped(pipeline):
    pipeline.unet = torch.nn.DataParallel(pipeline.unet)


def subclassed(pipeline):
    pipeline.unet = Mine.from_config(pipeline.unet.config)


def changed(pipeline):
    pipeline.unet.out_conv = torch.nn.Conv2d(8, 3, 3, padding=1)


def offloaded(pipeline):
    pipeline.unet.to("meta")


@pytest.mark.parametrize("change", [wrapped, subclassed, changed, offloaded])
@pytest.mark.parametrize("save", [export_pipeline, lambda folder, pipeline: pipeline.save_pretrained(folder)])
def test_what_nobody_could_load_is_refused_before_anything_changes(pipeline, tmp_path, change, save):
    before = files_of(export_pipeline(tmp_path / "model", pipeline))
    change(pipeline)
    with pytest.raises((UserError, ValueError), match=r"unet is of class \w+, which|unet cannot be saved") as error:
        save(tmp_path / "model", pipeline)
    assert "\n" not in str(error.value)
    assert files_of(tmp_path / "model") == before


def test_a_compiled_network_is_exported_as_it_was(pipeline, tmp_path):
    plain = files_of(export_pipeline(tmp_path / "plain", pipeline))
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    assert files_of(export_pipeline(tmp_path / "model", pipeline, fp16_variant=True)).items() >= plain.items()
    half = export_pipeline(tmp_path / "half", pipeline, dtype=torch.float16)
    assert load_pipeline(half, dtype=torch.float16).unet.dtype == torch.float16


def test_a_push_knows_the_classes(hub, pipeline, tmp_path):
    """An export of 0.1.0 of a subclass says that it is diffusers' own."""
    folder = export_pipeline(tmp_path / "model", pipeline)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "Mine"]}))
    with pytest.raises(UserError, match="has a unet of class Mine; known are"):
        push(folder, "alice/model")
    assert not hub.repos


def test_a_stock_pipeline_is_exported_as_it_is(tmp_path):
    theirs = stock()
    theirs.save_pretrained(tmp_path / "stock")
    exported = export_pipeline(tmp_path / "exported", DiffusionPipeline.from_pretrained(tmp_path / "stock"))
    written, expected = files_of(exported), files_of(tmp_path / "stock")
    assert written.keys() == expected.keys()
    for name in written:
        if name.endswith(".json"):
            assert json.loads(written[name]) == json.loads(expected[name])


def test_settings_of_numpy_are_saved(tmp_path):
    import numpy as np

    pipeline = MyDDPMPipeline(tiny_unet(), tiny_pipeline().scheduler, num_inference_steps=np.int64(3))
    pipeline.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["num_inference_steps"] == 3
