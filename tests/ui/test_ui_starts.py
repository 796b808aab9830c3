"""Runs that start at a picture: variations, a part made anew, the way between two; as link, PNG, file and API."""

import asyncio
import base64
import io
import itertools
import json

import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image, ImageSequence
from test_ui_forward import RAMP, file_url
from test_ui_frames import decoded, frames_of
from test_ui_runs import drain

from ddpm_hf.errors import UserError
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import with_sampler
from ddpm_hf.ui.exports import export, settings_of_png
from ddpm_hf.ui.frames import starting_noise
from ddpm_hf.ui.links import SNIPPETS_OF_STARTS, query_of, settings_of_query, snippet
from ddpm_hf.ui.runs import generate_for_program, stream_to_stage
from ddpm_hf.ui.start import add_noise, from_png, half_way, spherical

ENGINES = pytest.mark.parametrize("which", ["engine", "plain_engine"])
DARK = file_url(Image.new("RGB", (40, 40), (10, 40, 90)))


def mask_url(size=(14, 14)) -> str:
    """White in the lower half."""
    mask = Image.new("L", size)
    mask.paste(255, (0, size[1] // 2, *size))
    return file_url(mask)


KINDS = {
    "variations": {"image": file_url(RAMP), "t": 400},
    "a part": {"image": file_url(RAMP), "mask": mask_url()},
    "between": {"image": file_url(RAMP), "to_image": DARK, "t": 600, "sampler": "ddim"},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def request(kind: str, **values) -> dict:
    return {"num_images": 4, "steps": 10, "seed": 5, "sampler": "dpm", **KINDS[kind], **values}


def finished(engine, values) -> tuple[dict, np.ndarray]:
    """The last value of a run, and its images, uint8."""
    _, task = asyncio.run(engine.generation(values))
    value = drain(stream_to_stage(engine, values))[-1]
    frames = engine.cache.get(task)
    return value, frames[-1].pixels


# ---- what is made


@ENGINES
def test_nine_variations_are_those_of_the_pipeline(which, request):
    engine = request.getfixturevalue(which)
    model = engine.models.first
    values = {"num_images": 9, "steps": 10, "seed": 5, "sampler": "ddim", **KINDS["variations"], "t": 499}
    value, images = finished(engine, values)
    assert len(images) == 9 and len({image.tobytes() for image in images}) == 9
    picture = asyncio.run(engine.generation(values))[1].settings.start.picture
    x_t = add_noise(model, from_png(model, picture), starting_noise(model.pipeline, range(5, 14)), 499)
    labels = [seed % 3 for seed in range(5, 14)] if model.limits.classes else None
    pipeline = with_sampler(model.pipeline, "ddim", 500)
    scale = value["settings"]["guidance_scale"]
    interval = model.limits.classes and [min(t, 500) for t in value["settings"]["guidance_interval"]]
    *_, step = pipeline.denoise(9, labels, scale, 5, latents=x_t, guidance_interval=interval or None)
    expected = np.stack([np.asarray(image) for image in pipeline.postprocess(step.sample)])
    assert np.abs(images.astype(int) - expected).max() <= 1


def test_a_little_noise_gives_the_picture_again_and_without_t_it_is_half_way(engine):
    _, images = finished(engine, request("variations", t=0))
    assert np.abs(images.astype(int) - np.asarray(RAMP)).max() < 20
    values = request("variations")
    del values["t"]
    t = finished(engine, values)[0]["settings"]["t"]
    assert t == half_way(engine.models.first)
    alpha_bar = engine.pipeline.scheduler.alphas_cumprod
    assert alpha_bar[t] >= 0.5 > alpha_bar[t + 1]


@ENGINES
@pytest.mark.parametrize("sampler", ["dpm", "ddpm", "euler"])
def test_outside_of_the_mask_the_picture_stays_to_the_pixel(which, sampler, request):
    engine = request.getfixturevalue(which)
    height = engine.models.first.image_size[1]
    values = {"num_images": 2, "steps": 10, "seed": 5, "sampler": sampler, "image": DARK, "mask": mask_url((30, 30))}
    value, images = finished(engine, values)
    start = asyncio.run(engine.generation(values))[1].settings.start
    assert value["settings"]["t"] == 999  # from noise alone, where nothing else is asked for
    seen = np.asarray(Image.open(io.BytesIO(start.picture)))
    assert np.array_equal(images[0][: height // 2], seen[: height // 2])
    assert not np.array_equal(images[0][height // 2 :], seen[height // 2 :])


def ideal(pipeline, sample, timestep, labels):
    """The noise as a network sees it that knows the data perfectly: pixels of variance 0.3, each by itself."""
    alpha_bar = pipeline.scheduler.alphas_cumprod[int(timestep)]
    x_0 = alpha_bar.sqrt() * 0.3 / (0.3 * alpha_bar + 1 - alpha_bar) * sample
    return (sample - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()


@ENGINES
def test_the_way_begins_at_one_picture_and_ends_at_the_other(which, request, monkeypatch):
    monkeypatch.setattr(MyDDPMPipeline, "_run_unet", ideal)
    engine = request.getfixturevalue(which)
    model = engine.models.first
    values = {"num_images": 5, "steps": 500, "seed": 0, "sampler": "ddim", "image": file_url(RAMP), "to_image": DARK}
    values["t"] = 300
    _, images = finished(engine, values)
    start = asyncio.run(engine.generation(values))[1].settings.start
    for made, png in ((images[0], start.picture), (images[-1], start.other)):
        assert np.abs(made.astype(int) - np.asarray(Image.open(io.BytesIO(png)))).mean() < 4
    steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(images)]
    assert max(steps) < 3 * min(steps)  # in even steps
    if model.limits.classes:  # the two may be of different classes: no guidance
        settings = drain(stream_to_stage(engine, values))[-1]["settings"]
        assert settings["guidance_scale"] == 0 and settings["guidance_interval"] == [0, 1000]


def test_the_arc_keeps_the_length_of_noise():
    first, second = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    middle = spherical(first, second, 0.5)
    assert middle.std().item() == pytest.approx(1, abs=0.03)  # a straight line would give 0.71
    assert torch.allclose(spherical(first, second, 0), first) and torch.allclose(spherical(first, second, 1), second)
    assert torch.allclose(spherical(first, first, 0.3), first)


# ---- the ways it travels


@EVERY_KIND
def test_a_link_a_png_and_the_api_make_the_same_run(engine, kind):
    values = request(kind)
    made = asyncio.run(export(engine, values, "png"))
    settings = drain(stream_to_stage(engine, values))[-1]["settings"]
    assert settings_of_query(engine, query_of(settings)) == settings
    restored = settings_of_png(engine, "data:image/png;base64," + base64.b64encode(made).decode())
    assert restored == json.loads(json.dumps(settings))
    *_, answer = drain(generate_for_program(engine, restored))
    assert base64.b64decode(answer["grid_png"]) == made and answer["settings"] == settings
    assert drain(stream_to_stage(engine, restored))[-1]["cached"]
    for code in SNIPPETS_OF_STARTS:
        assert snippet(engine, settings, code)
    with pytest.raises(UserError, match="comes for gradio_client, curl"):
        snippet(engine, settings, "diffusers")


def test_one_image_of_several_is_restored_alone(engine):
    one = asyncio.run(export(engine, request("variations"), "png", image=2))
    settings = settings_of_png(engine, "data:image/png;base64," + base64.b64encode(one).decode())
    assert (settings["num_images"], settings["seed"], settings["t"]) == (1, 7, 400)
    assert asyncio.run(export(engine, settings, "png")) == one


def test_the_animation_of_a_way_goes_there_and_back(engine):
    content = asyncio.run(export(engine, request("between"), "gif"))
    frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(content)))]
    assert len(frames) >= 6  # 1 2 3 4 3 2
    assert np.array_equal(frames[1], frames[5]) and not np.array_equal(frames[0], frames[3])


def test_no_class_is_told_of_what_was_made_without_one(engine):
    value, _ = finished(engine, request("variations", guidance_scale=0.0, guidance_interval=[0, 1000]))
    assert value["names"] == [None] * 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"t": 5}, "drop in a picture"),
        ({"mask": mask_url()}, "drop in a picture"),
        ({"to_image": DARK}, "drop in a picture"),
        ({"image": DARK, "t": 1000}, "t must be a whole number from 0 to 999"),
        ({"image": DARK, "t": True}, "t must be a whole number"),
        ({"image": DARK, "mask": "x"}, "there is no picture"),
        ({"image": DARK, "mask": file_url(Image.new("L", (14, 14)))}, "paint over the part"),
        ({"image": DARK, "mask": mask_url(), "to_image": DARK}, "either a mask or a second picture"),
        ({"image": DARK, "to_image": DARK, "sampler": "ddpm"}, "without fresh noise"),
        ({"image": DARK, "to_image": 7}, "there is no picture"),
        ({"image": {"path": "/etc/passwd"}}, "there is no picture"),
        ({"example": 0}, "brings no examples"),
        ({"image": DARK, "to_example": 0}, "brings no examples"),
    ],
)
def test_what_is_wrong_is_one_line(engine, values, words):
    with pytest.raises(UserError, match=words) as caught:
        drain(stream_to_stage(engine, {"steps": 3, "num_images": 1, **values}))
    assert "\n" not in str(caught.value)


def test_frames_of_a_way_are_those_of_its_images(engine):
    values = drain(stream_to_stage(engine, request("between")))
    frames = frames_of(values)
    assert sorted(map(int, frames)) == list(range(values[-1]["total"] + 1)) and values[-1]["state"] == "done"
    assert frames["0"]["t"] == 600 and decoded(frames["0"]["src"]).size[0] == 28


def test_the_api_takes_pictures(server):
    client = Client(server.url, verbose=False)
    asked = {"num_images": 2, "steps": 4, "seed": 3, "sampler": "ddim"}
    varied = client.predict(**asked, image=file_url(RAMP), t=300, api_name="/vary")
    assert varied["settings"]["t"] == 300 and len({image["png"] for image in varied["images"]}) == 2
    settings = {key: value for key, value in varied["settings"].items() if key != "model"}  # there is only one
    again = client.predict(**settings, api_name="/vary")
    assert again["images"] == varied["images"]
    painted = client.predict(**asked, image=file_url(RAMP), mask=mask_url(), api_name="/vary")
    upper = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"]))))[:7] for one in painted["images"]]
    assert all(np.array_equal(part, np.asarray(RAMP)[:7]) for part in upper)
    way = client.predict(**asked, image=file_url(RAMP), to_image=DARK, api_name="/vary")
    assert way["settings"]["to_image"].startswith("data:image/png") and len(way["images"]) == 2
    with pytest.raises(AppError, match="There is no picture"):
        client.predict(**asked, t=5, api_name="/vary")
