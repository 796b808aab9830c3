"""The forward process and the way back, against diffusers and against the pipeline itself."""

import asyncio
import base64
import copy
import io
import json
import os

import diffusers
import helpers
import numpy as np
import pytest
import torch
from app_server import tiny_pipeline
from huggingface_hub import HfApi
from PIL import Image
from test_ui_frames import decoded, frames_of
from test_ui_runs import drain

from ddpm_hf.errors import UserError
from ddpm_hf.figures import class_columns, make_grid
from ddpm_hf.hub import export_pipeline, load_pipeline
from ddpm_hf.samplers import SAMPLERS, make_scheduler
from ddpm_hf.sampling import with_sampler
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.ui.examples import example_images
from ddpm_hf.ui.forward import forward_process, schedule_curve
from ddpm_hf.ui.frames import starting_noise
from ddpm_hf.ui.runs import Engine, stream_to_stage
from ddpm_hf.ui.start import add_noise, denoise_options, sampler_of, to_network

RAMP = Image.fromarray(np.linspace(0, 255, 14 * 14).reshape(14, 14).astype(np.uint8))
PICTURES = [RAMP, Image.new("RGB", (300, 40), "red"), Image.new("L", (2, 2), 99), Image.new("RGB", (17, 900))]


def file_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---- pictures


@pytest.mark.parametrize("which", ["engine", "plain_engine"])
@pytest.mark.parametrize("picture", PICTURES)
def test_any_picture_fits_the_network(which, picture, request):
    model = request.getfixturevalue(which).models.first
    x_0 = to_network(model, picture)
    assert x_0.shape == (1, model.pipeline.unet.config.in_channels, 16, 16)
    assert x_0.min() >= -1 and x_0.max() <= 1
    assert model.pipeline.postprocess(x_0)[0].size == model.image_size


def test_a_picture_of_the_models_size_is_not_changed(engine):
    model = engine.models.first
    x_0 = to_network(model, RAMP)
    assert np.array_equal(np.asarray(model.pipeline.postprocess(x_0)[0]), np.asarray(RAMP))
    assert (x_0[..., 0, :] == -1).all()  # padded with black, as the training images are


def test_models_of_scaled_pictures_get_them_scaled():
    pipeline = tiny_pipeline(conditional=False)
    pipeline.register_to_config(output_height=20, output_width=40, output_resize=True)
    model = Engine(pipeline).models.first
    x_0 = to_network(model, Image.new("RGB", (400, 200), "white"))
    assert (x_0 == 1).all() and x_0.shape == (1, 3, 16, 16)


# ---- q(x_t | x_0)


@pytest.mark.parametrize("which", ["engine", "plain_engine"])
def test_noise_is_that_of_diffusers(which, request):
    engine = request.getfixturevalue(which)
    model = engine.models.first
    x_0, noise = to_network(model, RAMP), starting_noise(model.pipeline, [5])
    stock = diffusers.DDPMScheduler.from_config(model.pipeline.scheduler.config)
    for t in (0, 1, 499, 999):
        expected = stock.add_noise(x_0, noise, torch.tensor([t]))
        assert torch.allclose(add_noise(model, x_0, noise, t), expected, atol=2e-5)
        answer = forward_process(engine, RAMP, t, seed=5)
        assert answer["alpha_bar"] == pytest.approx(stock.alphas_cumprod[t].item(), rel=1e-4)
        assert answer["snr"] == pytest.approx(answer["alpha_bar"] / (1 - answer["alpha_bar"]), rel=1e-2)
        shown = np.asarray(model.pipeline.postprocess(expected)[0]).astype(int)
        assert np.abs(np.asarray(decoded(answer["x_t"])).astype(int) - shown).max() <= 1


def test_the_strip_is_the_seeds(engine):
    answer = forward_process(engine, file_url(RAMP), 499, seed=5)
    assert answer["strip"][1] == answer["x_t"] != answer["strip"][0] and len(answer["strip"]) == 4
    assert np.array_equal(np.asarray(decoded(answer["original"])), np.asarray(RAMP))


def test_the_curve_is_one_number_a_timestep_and_json(engine):
    curve = schedule_curve(engine)
    assert [len(curve[key]) for key in ("t", "alpha_bar", "snr_db")] == [1000] * 3
    assert curve["alpha_bar"] == sorted(curve["alpha_bar"], reverse=True) and 0 < curve["alpha_bar"][-1] < 1e-4
    assert curve["snr_db"][0] == pytest.approx(40, abs=0.1) and len(json.dumps(curve, allow_nan=False)) < 40_000


def test_a_schedule_that_ends_in_nothing_but_noise_has_a_curve_too():
    scheduler = MyDDPMScheduler(1000, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    engine = Engine(_pipeline_with(scheduler))
    json.dumps(schedule_curve(engine), allow_nan=False)
    assert forward_process(engine, RAMP, 999)["alpha_bar"] == 0
    for sampler in SAMPLERS:
        assert drain(stream_to_stage(engine, request_from(t=100, sampler=sampler)))[-1]["state"] == "done"
    engine.close()


def _pipeline_with(scheduler):
    pipeline = copy.copy(tiny_pipeline(conditional=True))
    pipeline.scheduler = scheduler
    return pipeline


BAD_IMAGES = [None, "", "data:image/png;base64,AAAA", {"path": "/etc/passwd"}, 3, [], b"GIF89a", {"example": 0}]


@pytest.mark.parametrize("image", BAD_IMAGES)
def test_what_is_no_picture_is_refused(engine, image):
    with pytest.raises(UserError) as caught:
        forward_process(engine, image, 5)
    assert "\n" not in str(caught.value) and "/etc" not in str(caught.value)


@pytest.mark.parametrize("values", [{"t": 1000}, {"t": -1}, {"t": None}, {"t": 1.5}, {"seed": -1}, {"seed": True}])
def test_what_is_no_timestep_or_seed_is_refused(engine, values):
    with pytest.raises(UserError, match="must be a whole number"):
        forward_process(engine, RAMP, **{"t": 1, **values})


# ---- the way back


def request_from(**values) -> dict:
    return {"image": file_url(RAMP), "t": 300, "steps": 20, "seed": 3, "num_images": 1, **values}


@pytest.mark.parametrize("t", [0, 49, 500])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_way_back_starts_exactly_at_t_and_takes_its_share_of_the_steps(engine, sampler, t):
    values = drain(stream_to_stage(engine, request_from(sampler=sampler, t=t)))
    frames = frames_of(values)
    steps = max(1, round(20 * (t + 1) / 1000))
    calls = 2 * steps - 1 if sampler == "heun" else steps
    assert values[-1]["total"] == calls and sorted(map(int, frames)) == list(range(calls + 1))
    assert frames["0"]["t"] == t == values[-1]["settings"]["t"]
    times = [frames[str(index)]["t"] for index in range(calls + 1)]
    assert times[-1] is None and times[:-1] == sorted(times[:-1], reverse=True)
    assert len(set(times)) == steps + 1  # Heun calls the network twice at each but the first
    assert values[-1]["images"][0]["seed"] == 3 and values[-1]["state"] == "done"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_the_first_timestep_almost_nothing_changes(engine, sampler):
    """x_0 is all but known there, whatever the network says: epsilon has a weight of 0.01."""
    values = drain(stream_to_stage(engine, request_from(sampler=sampler, t=0, steps=1000)))
    last = decoded(frames_of(values)[str(values[-1]["total"])]["src"]).crop((0, 0, 14, 14))
    difference = np.asarray(last).astype(int) - np.asarray(RAMP)
    assert np.abs(difference).max() < 12


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_cut_process_is_the_first_part_of_the_whole(shapes, sampler):
    """The same beta and alpha_bar at each timestep, and the same steps where both make them."""
    whole, part = (make_scheduler(sampler, shapes.scheduler, n) for n in (None, 400))
    assert torch.allclose(whole.alphas_cumprod[:400], part.alphas_cumprod, rtol=1e-5)
    assert len(part.alphas_cumprod) == 400


def test_ddim_goes_the_way_it_goes_from_pure_noise(engine):
    """From x_t of the whole way, at a timestep of its own: the rest of the way is the same, to the pixel or so."""
    model = engine.models.first
    pipeline = with_sampler(model.pipeline, "ddim")
    steps = list(pipeline.denoise(1, [1], num_inference_steps=10, seed=3))
    middle = next(step for step in steps if step.timestep == 599)
    part = with_sampler(model.pipeline, "ddim", 500)
    *_, last = part.denoise(1, [1], num_inference_steps=5, latents=middle.sample, seed=9)
    assert torch.allclose(last.sample, steps[-1].sample, atol=1e-3)


def test_the_noise_on_the_way_is_not_that_of_the_start(engine):
    """The same epsilon drawn twice would not be noise."""
    model = engine.models.first
    _, task = asyncio.run(engine.generation(request_from()))
    noise = starting_noise(model.pipeline, [3])
    pipeline = sampler_of(model, task.settings)
    (generator,) = denoise_options(model, pipeline, task.settings.start, [3], noise)["generator"]
    fresh = torch.randn(noise.shape, generator=generator)
    assert not torch.allclose(fresh, starting_noise(model.pipeline, [3]))


def test_several_ways_back_from_one_picture(plain_engine):
    values = drain(stream_to_stage(plain_engine, request_from(num_images=3, t=700)))
    last = decoded(frames_of(values)[str(values[-1]["total"])]["src"])
    assert [image["seed"] for image in values[-1]["images"]] == [3, 4, 5]
    tiles = [np.asarray(last.crop((x, y, x + 16, y + 16))) for x, y in [(0, 0), (16, 0), (0, 16)]]
    assert not np.array_equal(tiles[0], tiles[1])


def test_a_way_back_again_is_from_the_cache(engine):
    assert [drain(stream_to_stage(engine, request_from()))[-1]["cached"] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    "values", [{"image": None}, {"image": "x"}, {"steps": 0}, {"lanes": []}, {"t": "1"}, {"example": 3, "image": ""}]
)
def test_bad_ways_back_are_refused(engine, values):
    with pytest.raises(UserError) as caught:
        drain(stream_to_stage(engine, request_from(**values)))
    assert "\n" not in str(caught.value)


# ---- examples


def test_examples_are_for_the_models_that_know_their_classes(engine):
    assert example_images(engine) == []
    with pytest.raises(UserError, match="drop in a picture"):
        forward_process(engine, {"example": 0}, 5)


def sampled(folder, pipeline, count, **changes) -> Engine:
    """An engine for a model of a folder with grids of samples, as the trainer lays them out."""
    images = [Image.new("RGB", (16, 16), (16 * i, 255 - 9 * i, 40)) for i in range(count)]
    (folder / "samples").mkdir(parents=True)
    columns = changes.pop("columns", class_columns(count, pipeline.num_classes or 0))
    make_grid(images[::-1], columns).save(folder / "samples" / "step-0000010.png")
    make_grid(images, columns, **changes).save(folder / "samples" / "step-0000020.png")
    return Engine(pipeline, str(folder))


RGB = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "attention_levels": (), "block_out_channels": (16, 32)}


def test_examples_of_other_models_come_from_their_samples(tmp_path):
    names = {"0": "cat", "1": "dog", "2": "fox"}
    pipeline = helpers.tiny_pipeline(num_class_embeds=3, id2label=names, **RGB)
    engine = sampled(tmp_path / "rgb", pipeline, 14)
    examples = example_images(engine)
    assert [(example["label"], example["name"]) for example in examples] == [(0, "cat"), (1, "dog"), (2, "fox")]
    for i, example in enumerate(examples):  # of the newest grid, in the classes' order
        picture = decoded(example["src"])
        assert (picture.mode, picture.size) == ("RGB", (16, 16))
        assert picture.getcolors() == [(256, (16 * i, 255 - 9 * i, 40))]
    assert forward_process(engine, {"example": 2}, 5)["original"] == examples[2]["src"]
    engine.close()


def test_examples_of_a_model_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    pipeline = helpers.tiny_pipeline(num_class_embeds=2, id2label={"0": "cat", "1": "dog"}, **RGB)
    export_pipeline(tmp_path / "model", pipeline)
    sampled(tmp_path / "model", pipeline, 8).close()
    api = HfApi()
    api.create_repo("alice/pets")
    api.upload_folder(repo_id="alice/pets", folder_path=tmp_path / "model")
    engine = Engine(load_pipeline("alice/pets"), "alice/pets")
    hub.log.clear()
    assert [example["name"] for example in example_images(engine)] == ["cat", "dog"]
    asked = len(hub.log)
    assert asked and len(example_images(engine)) == 2 and len(hub.log) == asked  # once
    assert not [entry for entry in hub.log if "step-0000010" in entry["p"]]  # the newest alone
    engine.close()


def test_examples_of_a_model_without_classes(tmp_path):
    engine = sampled(tmp_path / "plain", helpers.tiny_pipeline(**RGB), 14)
    assert [example["label"] for example in example_images(engine)] == [None] * 4  # one row
    engine.close()


@pytest.mark.parametrize("wrong", ["gap", "columns", "size", "damaged", "no picture", "bomb", "pipe", "endless"])
def test_samples_of_another_layout_are_no_examples(tmp_path, wrong):
    pipeline = helpers.tiny_pipeline(num_class_embeds=3, id2label={"0": "a", "1": "b", "2": "c"}, **RGB)
    changes = {"gap": {"gap": 3}, "columns": {"columns": 4}, "size": {"scale": 3}}.get(wrong, {})
    engine = sampled(tmp_path / "model", pipeline, 14, **changes)
    newest = tmp_path / "model" / "samples" / "step-0000020.png"
    if wrong == "damaged":
        newest.write_bytes(newest.read_bytes()[:-60])
    elif wrong == "no picture":
        newest.write_text("<svg/>")
    elif wrong == "bomb":
        Image.new("1", (13_000, 13_000)).save(newest)
    elif wrong in ("pipe", "endless"):
        newest.unlink()
        os.mkfifo(newest) if wrong == "pipe" else newest.symlink_to("/dev/zero")
    assert example_images(engine) == []
    engine.close()


def test_examples_of_the_embedded_models_classes():
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    settings = {"sample_size": 32, "block_out_channels": (16, 32), "num_train_timesteps": 1000, "attention_levels": ()}
    labels = {str(i): name for i, name in enumerate(names)}
    engine = Engine(helpers.tiny_pipeline(num_class_embeds=10, id2label=labels, output_size=(28, 28), **settings))
    examples = example_images(engine)
    assert [example["name"] for example in examples] == names
    assert all(decoded(example["src"]).size == (28, 28) for example in examples)
    answer = forward_process(engine, {"example": 3}, 0)
    assert np.array_equal(np.asarray(decoded(answer["original"])), np.asarray(decoded(examples[3]["src"])))
    for bad in (10, -1, True, None, 1.0, "1"):
        with pytest.raises(UserError, match="from 0 to 9"):
            forward_process(engine, {"example": bad}, 0)
    values = asyncio.run(_last(stream_to_stage(engine, {"example": 3, "t": 50, "steps": 20, "num_images": 1})))
    assert values["state"] == "done"
    engine.close()


async def _last(stream):
    async for value in stream:
        last = value
    return last
