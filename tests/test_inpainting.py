"""A part of a picture made anew: what is known stays, what is not is sampled."""

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline

from ddpm_hf.samplers import SAMPLERS
from ddpm_hf.sampling import with_sampler

IMAGE = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
LOWER_HALF = torch.zeros(1, 1, 8, 8)
LOWER_HALF[..., 4:, :] = 1


def last(pipeline, **options):
    *_, step = pipeline.denoise(2, num_inference_steps=5, **options)
    return step.sample


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_known_is_the_image_to_the_bit(name):
    pipeline = with_sampler(tiny_pipeline(), name)
    sample = last(pipeline, seed=3, image=IMAGE, mask=LOWER_HALF)
    assert torch.equal(sample[:, :, :4], IMAGE[:, :, :4].expand(2, -1, -1, -1))
    plain = last(pipeline, seed=3)
    assert not torch.allclose(sample[:, :, 4:], plain[:, :, 4:])  # the known half is seen from the other
    assert not torch.equal(sample[0], sample[1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mask_of_ones_is_plain_sampling_to_the_bit(name):
    pipeline = with_sampler(tiny_pipeline(), name)
    assert torch.equal(last(pipeline, seed=3, image=IMAGE, mask=torch.ones(1, 1, 8, 8)), last(pipeline, seed=3))


@pytest.mark.parametrize("name", ["ddim", "dpm", "euler", "heun", "ddpm"])
def test_before_every_step_the_known_part_is_noised_to_its_timestep(name):
    """The oracle: over many images the known part has the mean and the variance of q(x_t | x_0)."""
    pipeline, count = with_sampler(tiny_pipeline(num_train_timesteps=1000), name), 600
    known = torch.full((1, 1, 8, 8), 0.5)
    steps = list(pipeline.denoise(count, num_inference_steps=4, seed=0, image=known, mask=LOWER_HALF))
    for step, following in zip(steps, pipeline.scheduler.timesteps[1:]):
        alpha_bar = pipeline.scheduler.alphas_cumprod[int(following)].item()
        upper = pipeline.unit_variance(step)[:, :, :4]
        assert upper.mean().item() == pytest.approx(0.5 * alpha_bar**0.5, abs=0.03)
        assert upper.std().item() == pytest.approx((1 - alpha_bar) ** 0.5, rel=0.03, abs=0.01)


def test_a_network_that_knows_the_image_restores_it():
    """Where the network predicts the image itself, the part that is made anew is the image, too."""
    pipeline = tiny_pipeline(num_train_timesteps=1000)
    pipeline.scheduler.register_to_config(prediction_type="sample")
    pipeline = with_sampler(pipeline, "ddim")
    pipeline._predict = lambda scaled, *_: IMAGE.expand_as(scaled)
    assert torch.allclose(last(pipeline, seed=1, image=IMAGE, mask=LOWER_HALF), IMAGE.expand(2, -1, -1, -1), atol=1e-2)


def test_an_image_depends_on_its_own_seed_alone():
    pipeline = with_sampler(tiny_pipeline(), "ddpm")
    both = last(pipeline, seed=[7, 8], image=IMAGE, mask=LOWER_HALF)
    turned = last(pipeline, seed=[8, 7], image=IMAGE, mask=LOWER_HALF)
    assert torch.allclose(both, turned.flip(0), atol=1e-6)


def test_calls_take_an_image_and_a_mask_for_each_and_of_each_channel():
    pipeline = tiny_pipeline(in_channels=3, out_channels=3)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    mask = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    mask[1, 2] = True
    made = pipeline(2, num_inference_steps=3, seed=0, image=images, mask=mask, output_type="np").images
    expected = (images / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    assert np.allclose(made[0], expected[0], atol=1e-6) and np.allclose(
        made[1, ..., :2], expected[1, ..., :2], atol=1e-6
    )
    assert not np.allclose(made[1, ..., 2], expected[1, ..., 2], atol=1e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": IMAGE}, "give image and mask together"),
        ({"mask": LOWER_HALF}, "give image and mask together"),
        ({"image": IMAGE[0], "mask": LOWER_HALF}, "image must have shape"),
        ({"image": IMAGE.expand(3, -1, -1, -1), "mask": LOWER_HALF}, "image must have shape"),
        ({"image": IMAGE, "mask": torch.ones(1, 2, 8, 8)}, "mask must have shape"),
        ({"image": IMAGE * 255, "mask": LOWER_HALF}, r"image must hold numbers in \[-1, 1\]"),
        ({"image": IMAGE * float("nan"), "mask": LOWER_HALF}, r"image must hold numbers in \[-1, 1\]"),
        ({"image": IMAGE, "mask": LOWER_HALF * 0.5}, "mask must hold 0 and 1 alone"),
        ({"image": "a.png", "mask": LOWER_HALF}, "image must have shape .* got str"),
    ],
)
def test_what_is_no_image_or_mask_is_one_line(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        last(tiny_pipeline(), **options)
    assert "\n" not in str(caught.value)
