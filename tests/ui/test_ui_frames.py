"""Frames: what the canvas is given is what the pipeline computed."""

import base64
import io

import pytest
import torch
from PIL import Image, ImageChops

from ddpm_hf.figures import make_grid
from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import with_sampler
from ddpm_hf.ui.frames import encode_frame, starting_noise


def decoded(url: str) -> Image.Image:
    header, _, data = url.partition(",")
    assert header in ("data:image/png;base64", "data:image/webp;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("which", ["engine", "plain_engine"])
def test_starting_noise_is_where_denoise_starts(which, request):
    pipeline = with_sampler(request.getfixturevalue(which).pipeline, "ddim")
    noise = starting_noise(pipeline, range(7, 10))
    from_noise = pipeline(3, num_inference_steps=3, latents=noise, output_type="pt").images
    from_seed = pipeline(3, num_inference_steps=3, seed=7, output_type="pt").images
    assert torch.equal(from_noise, from_seed)


@pytest.mark.parametrize("which", ["engine", "plain_engine"])
def test_exact_frames_hold_every_pixel(which, request):
    pipeline = request.getfixturevalue(which).pipeline
    x_t, x_0 = starting_noise(pipeline, range(5)), starting_noise(pipeline, range(5, 10))
    sheet = decoded(encode_frame(pipeline, x_t, x_0, exact=True))
    upper = make_grid(pipeline.postprocess(x_t), scale=1, gap=0)
    lower = make_grid(pipeline.postprocess(x_0), scale=1, gap=0)
    assert sheet.size == (upper.width, 2 * upper.height) and sheet.mode == upper.mode
    for part, top in ((upper, 0), (lower, upper.height)):
        assert ImageChops.difference(sheet.crop((0, top, upper.width, top + upper.height)), part).getbbox() is None


def test_lossy_frames_are_close_and_smaller(engine):
    x_0 = torch.linspace(-1, 1, 16).expand(4, 1, 16, 16)
    exact = decoded(encode_frame(engine.pipeline, x_0, x_0, exact=True)).convert("RGB")
    lossy = decoded(encode_frame(engine.pipeline, x_0, x_0)).convert("RGB")
    assert max(high for _, high in ImageChops.difference(exact, lossy).getextrema()) < 40


@pytest.mark.parametrize("name", SAMPLERS)
def test_frames_are_of_the_scale_of_images(engine, name):
    """Euler and Heun hold x_0 + sigma eps, sigma up to 157: as it is, it would be black and white."""
    pipeline = with_sampler(engine.pipeline, name)
    step = next(pipeline.denoise(4, [0] * 4, 1.0, 20, seed=0))
    # the network is untrained, so no more than the order of magnitude can be told
    assert 0.2 < pipeline.unit_variance(step.sample).std() < 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_finished_images_are_shown_as_they_are(engine, name):
    pipeline = with_sampler(engine.pipeline, name)
    *_, step = pipeline.denoise(2, [0] * 2, 1.0, 3, seed=0)
    assert torch.equal(pipeline.unit_variance(step.sample), step.sample)
