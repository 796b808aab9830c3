"""What visitors take away is what the command line writes, to the byte; settings survive every way they travel."""

import asyncio
import base64
import io
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from app_server import NAMES, export_tiny
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_ui_runs import drain

from ddpm_hf.__main__ import main
from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.ui.exports import KINDS, export, settings_of_png
from ddpm_hf.ui.links import query_of, settings_of_query, snippet
from ddpm_hf.ui.runs import Engine, generate_for_program, stream_to_stage

REQUEST = {"num_images": 4, "steps": 5, "seed": 21}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("models") / "shapes", conditional=True)


@pytest.fixture
def local(folder) -> Engine:
    """An engine on a model in a folder, as the command line has it too."""
    engine = Engine(load_pipeline(folder), str(folder))
    yield engine
    engine.close()


def exported(engine, values, kind, image=None) -> bytes:
    return asyncio.run(export(engine, values, kind, image=image))


def command_line(folder, path: Path, *arguments, dtype="float32") -> bytes:
    common = ["--num-images", "4", "--steps", "5", "--seed", "21", "--dtype", dtype]
    assert main(["sample", str(folder), *common, *arguments, "--output", str(path)]) == 0
    return path.read_bytes()


# ---- the same bytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_download_is_what_the_command_line_writes(local, folder, tmp_path, kind):
    assert exported(local, REQUEST, kind) == command_line(folder, tmp_path / f"x.{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_download_needs_no_disk(engine, kind):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # writing to any file fails
    try:
        assert exported(engine, REQUEST, kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_link_api_and_command_line_agree_to_the_byte(folder, tmp_path, dtype):
    pipeline = load_pipeline(folder, dtype=getattr(torch, dtype))
    pipeline.unet.to(memory_format=torch.channels_last)  # as the app and the commands load it
    engine = Engine(pipeline, str(folder))
    chosen = {**REQUEST, "sampler": "dpm-sde", "guidance_scale": 2.5, "class_name": "square"}
    query = query_of(drain(stream_to_stage(engine, chosen))[-1]["settings"])
    settings = settings_of_query(engine, query)
    from_link = exported(engine, settings, "png")
    *_, answer = drain(generate_for_program(engine, settings))
    options = ["--scheduler", "dpm-sde", "--guidance-scale", "2.5", "--labels", "square"]
    assert settings["guidance_interval"] == [0, 1000]
    written = command_line(folder, tmp_path / "x.png", *options, dtype=dtype)
    assert from_link == base64.b64decode(answer["grid_png"]) == written
    for i, image in enumerate(answer["images"]):
        one = ["--num-images", "1", "--seed", str(21 + i), *options]
        alone = command_line(folder, tmp_path / "one.png", *one, dtype=dtype)
        assert base64.b64decode(image["png"]) == exported(engine, settings, "png", i) == alone
    engine.close()


def test_downloads_of_what_is_on_the_stage_compute_nothing(engine, monkeypatch):
    drain(stream_to_stage(engine, REQUEST))
    monkeypatch.setattr(engine.pipeline.unet, "forward", None)
    assert [len(exported(engine, REQUEST, kind)) > 100 for kind in KINDS] == [True] * 4
    one = Image.open(io.BytesIO(exported(engine, REQUEST, "gif", 2)))
    assert (one.n_frames, one.size) == (5, (126, 126))


def test_a_download_leaves_no_file(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for kind in KINDS:
        exported(engine, REQUEST, kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "kind", "image"),
    [(REQUEST, "exe", None), (REQUEST, None, None), (REQUEST, ["png"], None), ({"steps": None}, "png", None)]
    + [([], "png", None)]
    + [(REQUEST, "png", bad) for bad in (4, -1, 1.5, True, "0", [0], float("nan"))],
)
def test_refuses_downloads_of_what_there_is_not(engine, values, kind, image):
    with pytest.raises(UserError) as caught:
        exported(engine, values, kind, image)
    assert "\n" not in str(caught.value)


# ---- settings in pictures and links


def test_a_picture_holds_its_settings(engine):
    whole = exported(engine, {**REQUEST, "guidance_scale": 1.5}, "png")
    settings = settings_of_png(engine, whole)
    assert settings == {
        "model": "fashion_mnist_small",
        "num_images": 4,
        "class_name": "any",
        "guidance_scale": 1.5,
        "guidance_interval": [0, 1000],
        "sampler": "dpm-sde",
        "steps": 5,
        "seed": 21,
    }
    one = settings_of_png(engine, exported(engine, settings, "png", 3))
    assert one == {**settings, "num_images": 1, "seed": 24, "class_name": NAMES[24 % 3]}
    assert exported(engine, one, "png") == exported(engine, settings, "png", 3)


def png_with(text: str, key="ddpm_hf") -> bytes:
    note, buffer = PngInfo(), io.BytesIO()
    note.add_text(key, text)
    Image.new("L", (8, 8)).save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"text", b"\x89PNG\r\n\x1a\n", png_with("{}", key="other")),
        *(png_with(text) for text in ("", "{", "[]", "3", '{"steps": NaN}', '{"steps": 5000}', '{"evil": 1}')),
        *(png_with(text) for text in ('{"model": "../../etc/passwd"}', '{"class_name": "<script>"}', "[" * 10_000)),
    ],
)
def test_no_other_picture_sets_anything(engine, content):
    with pytest.raises(UserError) as caught:
        settings_of_png(engine, content)
    assert "\n" not in str(caught.value) and "<script" not in str(caught.value)


def test_settings_survive_a_link(engine):
    settings = {
        "model": "fashion_mnist_small",
        "num_images": 7,
        "class_name": "<b>star</b>",
        "guidance_scale": 2.5,
        "guidance_interval": [100.5, 400],
        "sampler": "dpm-sde",
        "steps": 33,
        "seed": 2**32 - 1,
    }
    query = query_of(settings)
    assert "<" not in query and settings_of_query(engine, "?" + query) == settings
    assert settings_of_query(engine, "seed=5&utm_source=mail")["seed"] == 5


def test_a_link_keeps_the_end_of_a_name():
    assert query_of({"model": "shapes-1.0", "class_name": "2.0", "guidance_scale": 2.0}) == (
        "class_name=2.0&guidance_scale=2&model=shapes-1.0"
    )


@pytest.mark.parametrize(
    "query",
    ["steps=nan", "steps=1e3", "seed=-1", "sampler=x", "class_name=hat", "guidance_scale=inf", "model=x/y"]
    + ["guidance_interval=0", "guidance_interval=0,x", "guidance_interval=0,nan", "guidance_interval=9,1"],
)
def test_a_link_is_checked(engine, query):
    with pytest.raises(UserError):
        settings_of_query(engine, query)


@pytest.mark.parametrize("query", [None, 3, "seed=1&" * 30_000])
def test_what_is_no_link_is_refused(engine, query):
    with pytest.raises(UserError, match="too long"):
        settings_of_query(engine, query)


# ---- code


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_code_for_diffusers_makes_the_same_images(local, folder, monkeypatch, sampler):
    settings = drain(stream_to_stage(local, {**REQUEST, "sampler": sampler}))[-1]["settings"]
    code = snippet(local, settings, "diffusers")
    monkeypatch.chdir(folder.parent)
    made: dict = {}
    exec(code, made)
    assert str(folder.parent) not in code
    *_, answer = drain(generate_for_program(local, settings))
    for image, expected in zip(made["images"], answer["images"], strict=True):
        assert np.array_equal(image, Image.open(io.BytesIO(base64.b64decode(expected["png"]))))


def test_the_code_for_a_plain_diffusers_model_makes_the_same_images(tmp_path, monkeypatch):
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(1000)).save_pretrained(tmp_path / "plain")
    engine = Engine(load_pipeline(tmp_path / "plain"), str(tmp_path / "plain"))
    *_, answer = drain(generate_for_program(engine, {**REQUEST, "sampler": "ddpm", "num_images": 2}))
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    exec(snippet(engine, answer["settings"], "diffusers"), made)
    for image, expected in zip(made["images"], answer["images"], strict=True):
        assert np.array_equal(image, Image.open(io.BytesIO(base64.b64decode(expected["png"]))))
    engine.close()


def test_the_code_for_the_embedded_model_names_a_folder_of_the_repository(engine):
    assert "'pretrained/fashion_mnist_small'" in snippet(engine, {}, "diffusers")


def test_code_of_other_kinds_is_refused(engine):
    with pytest.raises(UserError, match="diffusers, gradio_client, curl"):
        snippet(engine, {}, "perl")


def test_settings_cannot_break_out_of_the_code(engine):
    with pytest.raises(UserError):
        snippet(engine, {"class_name": "'\"; import os #"}, "curl")
    assert "class_name='<b>star</b>'" in snippet(engine, {"class_name": "<b>star</b>"}, "gradio_client")
