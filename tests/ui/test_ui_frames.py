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
from ddpm_hf.ui.tasks import Film


def frames_of(values: list[dict]) -> dict[str, dict]:
    """All frames of a run by index, from the values of its stream."""
    return {index: frame for value in values for index, frame in value["frames"].items()}


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
    assert 0.2 < pipeline.unit_variance(step).std() < 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_finished_images_are_shown_as_they_are(engine, name):
    pipeline = with_sampler(engine.pipeline, name)
    *_, step = pipeline.denoise(2, [0] * 2, 1.0, 3, seed=0)
    assert torch.equal(pipeline.unit_variance(step), step.sample)


@pytest.mark.parametrize("which", ["engine", "plain_engine"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_x_t_t_and_x_0_of_a_frame_belong_together(which, name, request):
    """Asked again, the network answers for x_t and t of every frame with its x_0; the last has neither noise nor t."""
    model = request.getfixturevalue(which).models.first
    guidance = 2.0 if model.limits.classes else 1.0
    labels = [0, 1] if model.limits.classes else None
    settings = model.limits.check(num_images=2, sampler=name, steps=7, guidance_scale=guidance, seed=3)
    with torch.inference_mode():
        noise, *stills, last = Film.of(model, settings, [3, 4], labels).stills()
        pipeline = with_sampler(model.pipeline, name)
        pipeline.scheduler.set_timesteps(7)
        assert [still.t for still in stills] == pipeline.scheduler.timesteps.tolist()
        for still in stills:
            called = labels if labels is None else torch.tensor(labels)
            epsilon = pipeline._predict(still.x_t, torch.tensor(still.t), pipeline._condition(called, None), guidance)
            alpha_bar = model.pipeline.scheduler.alphas_cumprod[int(still.t)]
            x_0 = (still.x_t - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
            most = 1e-3 + 2e-4 / alpha_bar.sqrt()  # what rounding epsilon makes of x_0
            assert (still.x_0.clamp(-1, 1) - x_0.clamp(-1, 1)).abs().max() < most, (still.index, still.t)
        *_, step = pipeline.denoise(2, labels, guidance, 7, seed=3)
    assert (noise.index, noise.t) == (0, stills[0].t) and torch.equal(noise.x_t, stills[0].x_t)
    assert [still.index for still in [*stills, last]] == list(range(len(stills) + 1))
    assert last.t is None and torch.equal(last.x_t, step.sample) and torch.equal(last.x_0, last.x_t)


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_the_end_waits_for_nothing(engine, name):
    """Two pictures more than calls: the start comes twice, and after the last call come the last two."""
    model, order = engine.models.first, []
    settings = model.limits.check(num_images=2, sampler=name, steps=5, guidance_scale=1.0, seed=3)
    handle = model.pipeline.unet.register_forward_hook(lambda *_: order.append("call"))
    try:
        with torch.inference_mode():
            film = Film.of(model, settings, [3, 4], [0, 1])
            for item in film.frames([2]):
                order.append(item[0].index)
    finally:
        handle.remove()
    calls = order.count("call")
    assert calls >= 5 and order[:3] == [0, "call", 0]
    assert order[-3:] == ["call", film.total - 1, film.total]
    assert len(order) - calls == film.total + 2 <= calls + 2
