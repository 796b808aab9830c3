"""Several models: an allow-list, loaded when asked for, within a bound on memory."""

import asyncio
import inspect
import json
from types import SimpleNamespace

import pytest
from app_server import tiny_pipeline
from huggingface_hub import HfApi
from test_ui_runs import drain

from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline
from ddpm_hf.memory import memory_from_environment
from ddpm_hf.sampling import Sampling, with_sampling
from ddpm_hf.ui.api import Api
from ddpm_hf.ui.attendance import Attendance
from ddpm_hf.ui.description import describe
from ddpm_hf.ui.journal import Journal
from ddpm_hf.ui.models import Model, Models, models_from_environment
from ddpm_hf.ui.runs import Engine, stream_to_stage


@pytest.fixture
def loads(shapes, colors):
    """``load`` of three models, and what it was asked for."""
    asked = []

    def load(source):
        asked.append(source)
        if source == "someone/broken":
            raise UserError(f"model {source} has no weights.")
        return {"someone/colors": colors, "someone/other": shapes}[source]

    return load, asked


def test_models_are_loaded_when_asked_for_and_dropped_when_there_is_no_room(shapes, loads):
    load, asked = loads
    first = Model("first", shapes)
    models = Models(first, ["someone/colors", "someone/other"], load, max_bytes=first.num_bytes + 1)
    assert models.names == ["first", "someone/colors", "someone/other"] and asked == []
    assert models.get() is models.get("first") is first
    colors = models.get("someone/colors")
    assert models.get("someone/colors") is colors and asked == ["someone/colors"]
    models.get("someone/other")
    assert models.loaded("someone/colors") is None and models.loaded("first") is first
    models.get("someone/colors")
    assert asked == ["someone/colors", "someone/other", "someone/colors"]


@pytest.mark.parametrize("name", ["someone/else", "../../etc", "", 3, True, ["first"], {"a": 1}, "x" * 10**6, "<b>"])
def test_no_other_model_can_be_had(shapes, loads, name):
    load, asked = loads
    engine = Engine(shapes, "someone/first", ["someone/colors"], load)
    if name == "":  # a form that has no such field
        assert engine.models.check(name) == "someone/first"
        return
    with pytest.raises(UserError) as caught:
        drain(stream_to_stage(engine, {"model": name}))
    assert len(str(caught.value)) < 300 and "<" not in str(caught.value) and asked == []


def test_each_model_has_its_own_rules(shapes, loads):
    load, _ = loads
    engine = Engine(shapes, "someone/first", ["someone/colors", "someone/broken"], load)
    request = {"num_images": 1, "steps": 2, "class_name": "square"}
    assert drain(stream_to_stage(engine, request))[-1]["settings"]["model"] == "someone/first"
    with pytest.raises(UserError, match="no classes"):
        drain(stream_to_stage(engine, {**request, "model": "someone/colors"}))
    value = drain(stream_to_stage(engine, {"num_images": 1, "steps": 2, "model": "someone/colors"}))[-1]
    assert value["tile"] == [16, 16] and value["names"] == [None]
    with pytest.raises(UserError, match="model someone/broken has no weights"):
        drain(stream_to_stage(engine, {**request, "model": "someone/broken"}))


def test_programs_get_the_sampling_of_the_model_that_they_name(shapes, colors):
    """Where there are several models, the endpoints have no defaults of the first one's."""
    own = with_sampling(colors, Sampling("dpm", 3, 1.0, None))
    engine = Engine(shapes, "someone/first", ["someone/colors"], lambda source: own)
    functions = {}

    class Server:
        def api(self, function, *, name, **_):
            functions[name] = function

    attendance = Attendance(engine.worker.cancel_session)
    Api(Server(), engine, attendance, Journal())
    defaults = {name: one.default for name, one in inspect.signature(functions["generate"]).parameters.items()}
    del defaults["request"]
    names = ("guidance_scale", "guidance_interval", "sampler", "steps")
    assert [defaults[name] for name in names] == [None] * 4
    for model, steps, interval in (("someone/colors", 3, None), ("someone/first", 20, [0, 400])):
        values = {**defaults, "model": model, "num_images": 1}
        attendance.admit("generate", "a", "")
        attendance.opened("a")
        *_, answer = drain(functions["generate"](SimpleNamespace(session_hash="a"), **values))
        attendance.closed("a", ended=True)
        assert answer["settings"]["steps"] == steps and answer["settings"].get("guidance_interval") == interval
    engine.close()


def test_an_error_does_not_say_where_a_model_is(shapes, tmp_path):
    (tmp_path / "broken").mkdir()

    def load(source):
        raise UserError(f"model {source} has no weights.")

    engine = Engine(shapes, None, [str(tmp_path / "broken")], load)
    assert engine.models.names == ["fashion_mnist_small", "broken"]
    with pytest.raises(UserError, match=r"^model broken has no weights"):
        asyncio.run(engine.model({"model": "broken"}))


def test_the_allow_list_comes_from_the_environment(monkeypatch):
    assert models_from_environment() == [None]
    monkeypatch.setenv("MODELS", " a/b, ,c/d,a/b ")
    assert models_from_environment() == [None, "a/b", "c/d"]  # None: the embedded model
    monkeypatch.setenv("MODEL_ID", "c/d")
    assert models_from_environment() == ["c/d", "a/b"]
    assert models_from_environment("x/y") == ["x/y", "a/b", "c/d"]
    monkeypatch.delenv("MODELS")
    assert models_from_environment() == ["c/d"]


def test_the_memory_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("MODELS_MEMORY", "0.5")
    assert memory_from_environment() == 2**29
    for bad in ("0", "-1", "much", "nan", "inf"):
        monkeypatch.setenv("MODELS_MEMORY", bad)
        with pytest.raises(UserError, match="number of GB"):
            memory_from_environment()


def test_plain_diffusers_models_work():
    """UNet2DModel with any schedule, all samplers: also those of ours that know the linear one alone."""
    import diffusers

    from ddpm_hf.pipeline import MyDDPMPipeline
    from ddpm_hf.samplers import SAMPLERS

    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    engine = Engine(MyDDPMPipeline(unet.eval(), scheduler), "someone/plain")
    for sampler in SAMPLERS:
        value = drain(stream_to_stage(engine, {"num_images": 1, "steps": 3, "sampler": sampler}))[-1]
        assert value["state"] == "done" and value["tile"] == [16, 16]
    engine.close()


def test_rectangular_models_work():
    pipeline = tiny_pipeline(conditional=False)
    pipeline.register_to_config(output_height=10, output_width=14)
    engine = Engine(pipeline, "someone/wide")
    assert drain(stream_to_stage(engine, {"num_images": 1, "steps": 2}))[-1]["tile"] == [14, 10]
    engine.close()


def test_scores_are_those_of_the_revision_that_is_shown(hub, tmp_path):
    """Not those of the newest commit, also where that is in the cache, too."""
    folder = export_pipeline(tmp_path / "model", tiny_pipeline(conditional=False))
    api = HfApi()
    api.create_repo("alice/scored")
    protocol = {"num_images": 10, "reference_images": 10, "features": "inception"}
    for tag, fid in (("v1", 1.5), ("v2", 2.5)):
        (folder / "evaluation.json").write_text(json.dumps({"protocol": protocol, "scores": {"fid": fid}}))
        api.upload_folder(repo_id="alice/scored", folder_path=folder)
        api.create_tag("alice/scored", tag=tag)
        load_pipeline("alice/scored")  # the newest
    for revision, shown in (("v1", "1.500"), ("v2", "2.500"), (None, "2.500")):
        pipeline = load_pipeline("alice/scored", revision=revision)
        card = describe(Engine(pipeline, "alice/scored"))["card"]
        assert card["scores"] == [["FID", shown, ""]] and card["url"].endswith("alice/scored")
