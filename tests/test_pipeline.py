"""MyDDPMPipeline: the generator, every scheduler, seeds, labels, output types."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from helpers import tiny_pipeline

from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.samplers import SAMPLERS, make_scheduler
from ddpm_hf.sampling import with_sampler
from ddpm_hf.scheduler import MyDDPMScheduler

NAMES = {"0": "shirt", "1": "shoe", "2": "bag"}


def conditional(**settings):
    return tiny_pipeline(num_class_embeds=3, id2label=NAMES, **settings)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_sampler_yields_every_step_and_a_consistent_x0(name, prediction_type):
    pipeline = tiny_pipeline()
    pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    pipeline = with_sampler(pipeline, name)
    steps = list(pipeline.denoise(2, num_inference_steps=5, seed=0))
    assert [step.index for step in steps] == list(range(len(pipeline.scheduler.timesteps)))
    assert [step.timestep for step in steps] == pipeline.scheduler.timesteps.tolist()
    for step in steps:
        assert step.sample.shape == step.pred_original_sample.shape == (2, 1, 8, 8)
        assert step.sample.dtype == torch.float32
        assert torch.isfinite(step.sample).all()
        assert torch.isfinite(step.pred_original_sample).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["dpm", "unipc", "euler"])
def test_x0_is_what_the_prediction_says(name, prediction_type):
    """A network that knows the image: every predicted x_0 is that image, whatever the scheduler returns."""
    pipeline = tiny_pipeline()
    pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    pipeline = with_sampler(pipeline, name)
    image = torch.rand(1, 1, 8, 8) * 1.8 - 0.9
    alphas_cumprod = pipeline.scheduler.alphas_cumprod

    def knowing(scaled, timestep, labels, guidance_scale):
        signal, sigma = alphas_cumprod[int(timestep)].sqrt(), (1 - alphas_cumprod[int(timestep)]).sqrt()
        noise = (scaled - signal * image) / sigma
        return {"epsilon": noise, "sample": image, "v_prediction": signal * noise - sigma * image}[prediction_type]

    pipeline._predict = knowing
    for step in pipeline.denoise(1, num_inference_steps=6, seed=0):
        assert (step.pred_original_sample - image).abs().max() < 1e-3
    assert (step.sample - image).abs().max() < 2e-2


def test_call_drains_the_generator():
    pipeline = tiny_pipeline()
    last = list(pipeline.denoise(2, num_inference_steps=4, seed=3))[-1].sample
    images = pipeline(2, num_inference_steps=4, seed=3, output_type="pt").images
    assert torch.equal(images, (last / 2 + 0.5).clamp(0, 1))


def test_equals_the_stock_pipeline():
    """diffusers' own DDPMPipeline with the same network, scheduler and noise."""
    pipeline = tiny_pipeline()
    stock = DDPMPipeline(pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config))
    stock.set_progress_bar_config(disable=True)
    theirs = stock(2, generator=torch.Generator().manual_seed(0), num_inference_steps=20, output_type="np").images
    ours = pipeline(2, generator=torch.Generator().manual_seed(0), num_inference_steps=20, output_type="np").images
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["ddpm", "dpm", "dpm-sde", "euler", "unipc"])
def test_an_image_is_the_same_whatever_batch_it_is_made_in(name, dtype):
    pipeline = conditional(sample_size=32, block_out_channels=(8, 16, 16), attention_levels=(1, 2))
    pipeline.unet = pipeline.unet.to(dtype)
    pipeline = with_sampler(pipeline, name)
    labels = [i % 3 for i in range(11)]

    def pixels(start, count):
        images = pipeline(count, labels[start : start + count], num_inference_steps=8, seed=start).images
        return np.stack([np.asarray(image) for image in images]).astype(int)

    together = pixels(0, 11)
    assert np.abs(together[0] - together[3]).max() > 10
    for start, count in ((0, 1), (4, 1), (1, 3), (2, 9), (0, 8)):
        assert np.abs(pixels(start, count) - together[start : start + count]).max() <= 1


def test_seed_lists_and_generator_lists_agree():
    pipeline = tiny_pipeline()
    expected = pipeline(3, num_inference_steps=3, seed=5, output_type="pt").images
    assert torch.equal(pipeline(3, num_inference_steps=3, seed=[5, 6, 7], output_type="pt").images, expected)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    assert torch.equal(pipeline(3, num_inference_steps=3, generator=generators, output_type="pt").images, expected)


def test_guidance_is_the_formula():
    pipeline = conditional()
    x = torch.randn(2, 1, 8, 8)
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        with_class = pipeline.unet(x, 5, labels).sample
        with_null = pipeline.unet(x, 5, torch.tensor([3, 3])).sample
        guided = pipeline._predict(x, torch.tensor(5), pipeline._condition(labels, None), 2.5)
    assert (guided - (with_null + 2.5 * (with_class - with_null))).abs().max() < 1e-5


def rows_of(pipeline):
    """The rows of every call of the network, filled while it runs."""
    rows = []
    pipeline.unet.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_in_an_interval_doubles_only_the_calls_within_it(name):
    pipeline = with_sampler(conditional(), name)
    rows = rows_of(pipeline)
    steps = list(pipeline.denoise(2, [0, 1], 3.0, 8, seed=0, guidance_interval=(5, 12)))
    expected = [4 if 5 <= step.timestep <= 12 else 2 for step in steps]
    assert rows == expected and {2, 4} == set(expected)


def test_the_interval_includes_its_ends_and_the_whole_is_guidance_everywhere():
    pipeline = with_sampler(conditional(), "ddim")
    arguments = {"class_labels": [0, 2], "num_inference_steps": 5, "seed": 1, "output_type": "pt"}
    images = lambda scale, interval: pipeline(2, guidance_scale=scale, guidance_interval=interval, **arguments).images  # noqa: E731
    assert torch.equal(images(3.0, (0, 20)), images(3.0, None))
    rows = rows_of(pipeline)
    timesteps = [step.timestep for step in pipeline.denoise(2, [0, 2], 3.0, 5, seed=1, guidance_interval=(7, 11))]
    assert (timesteps, rows) == ([19, 15, 11, 7, 3], [2, 2, 4, 4, 2])
    # outside of the interval the trajectory is the unguided one, inside it is the guided one
    early = [list(pipeline.denoise(2, [0, 2], 3.0, 5, seed=1, guidance_interval=i)) for i in ((0, 11), (15, 20))]
    plain = list(pipeline.denoise(2, [0, 2], 1.0, 5, seed=1))
    assert torch.equal(early[0][1].sample, plain[1].sample) and not torch.equal(early[0][2].sample, plain[2].sample)
    assert not torch.equal(early[1][0].sample, plain[0].sample)


def test_a_model_has_sampling_of_its_own():
    """16 pictures without arguments: its steps, its guidance in its interval, its classes in turn."""
    own = {"num_inference_steps": 5, "guidance_scale": 2.0, "guidance_interval": [0, 8]}
    given = {"num_inference_steps": 5, "guidance_scale": 2.0, "guidance_interval": (0, 8), "class_labels": [0, 1, 2, 0]}
    plain = conditional()
    plain.scheduler = MyDDPMScheduler(20, algorithm_type="sde-dpmsolver++")
    pipeline = MyDDPMPipeline(plain.unet, plain.scheduler, **own)
    pipeline.set_progress_bar_config(disable=True)
    rows = rows_of(pipeline)
    images = pipeline(batch_size=4, seed=0, output_type="pt").images
    assert rows == [4, 4, 4, 8, 8]
    assert torch.equal(images, plain(batch_size=4, seed=0, output_type="pt", **given).images)
    # class of the seed, so that image 2 of seeds 0.. is image 0 of seeds 2..
    assert (pipeline(seed=2, output_type="pt").images[0] - images[2]).abs().max() < 1e-4
    # what is given wins, part by part
    rows.clear()
    pipeline(guidance_scale=1.0)
    pipeline(num_inference_steps=20)
    pipeline(class_labels=3, guidance_interval=(0, 20))
    assert rows == [1] * 5 + [1] * 11 + [2] * 9 + [2] * 5


def test_a_model_without_settings_of_its_own_is_as_before():
    """All steps, unguided, the null class: what a model exported by version 0.1 did."""
    pipeline = conditional()
    rows = rows_of(pipeline)
    images = pipeline(2, seed=0, output_type="pt").images
    assert rows == [2] * 20
    assert torch.equal(images, pipeline(2, 3, 1.0, 20, seed=0, output_type="pt").images)


def test_all_steps_are_the_original_loop_whatever_the_model_takes_for_fewer():
    unet = tiny_pipeline().unet
    plain = MyDDPMPipeline(unet, MyDDPMScheduler(20))
    own = MyDDPMPipeline(unet, MyDDPMScheduler(20, algorithm_type="sde-dpmsolver++"), num_inference_steps=5)
    for pipeline in (plain, own):
        pipeline.set_progress_bar_config(disable=True)
    arguments = {"batch_size": 2, "seed": 4, "output_type": "pt"}
    assert torch.equal(own(num_inference_steps=20, **arguments).images, plain(**arguments).images)
    few = own(**arguments).images
    assert torch.equal(few, with_sampler(plain, "dpm-sde")(num_inference_steps=5, **arguments).images)
    assert not torch.equal(few, plain(num_inference_steps=5, **arguments).images)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_inference_steps": 21}, r"num_inference_steps must be a whole number in \[1, 20\]"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance_scale": "2"}, "guidance_scale must be a finite number"),
        ({"guidance_interval": [0]}, r"guidance_interval must be \(low, high\) with 0 <= low <= high <= 20"),
    ],
)
def test_wrong_settings_of_a_models_own_are_refused(own, message):
    plain = conditional()
    with pytest.raises(ValueError, match=message):
        MyDDPMPipeline(plain.unet, plain.scheduler, **own)


def test_labels_change_the_picture_and_none_is_the_null_class():
    pipeline = conditional()
    images = {
        label: pipeline(1, label, num_inference_steps=4, seed=0, output_type="np").images for label in (0, 1, 3, None)
    }
    assert np.abs(images[0] - images[1]).max() > 1e-3
    assert np.array_equal(images[3], images[None])


def test_output_types():
    gray, color = tiny_pipeline(output_size=(6, 7)), tiny_pipeline(in_channels=3, out_channels=3)
    image = gray(1, num_inference_steps=2, seed=0).images[0]
    assert (image.mode, image.size) == ("L", (7, 6))
    assert gray(1, num_inference_steps=2, seed=0, output_type="np").images.shape == (1, 6, 7, 1)
    assert gray(1, num_inference_steps=2, seed=0, output_type="pt").images.shape == (1, 1, 6, 7)
    image = color(1, num_inference_steps=2, seed=0).images[0]
    assert (image.mode, image.size) == ("RGB", (8, 8))
    (images,) = color(1, num_inference_steps=2, seed=0, return_dict=False)
    assert images[0].mode == "RGB"


def test_callback_sees_every_step():
    seen = []
    tiny_pipeline()(
        1,
        num_inference_steps=4,
        seed=0,
        callback_on_step_end=lambda pipe, index, timestep, kwargs: seen.append((index, kwargs["latents"].shape)),
    )
    assert seen == [(i, (1, 1, 8, 8)) for i in range(4)]


def test_callback_can_change_the_images_on_the_way():
    """Put on the track of another seed half-way, a deterministic sampler ends where that one ends."""
    pipeline = with_sampler(tiny_pipeline(), "ddim")
    other = [step.sample for step in pipeline.denoise(1, num_inference_steps=4, seed=2)]

    def switch(pipe, index, timestep, kwargs):
        return {"latents": other[1]} if index == 1 else None

    arguments = {"batch_size": 1, "num_inference_steps": 4, "seed": 1, "output_type": "pt"}
    switched = pipeline(**arguments, callback_on_step_end=switch).images
    assert torch.equal(switched, (other[3] / 2 + 0.5).clamp(0, 1))
    assert not torch.equal(switched, pipeline(**arguments).images)


def test_grad_mode_between_steps_and_closing():
    pipeline = tiny_pipeline()
    calls = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    run = pipeline.denoise(1, num_inference_steps=10, seed=0)
    assert torch.is_grad_enabled()
    for _ in range(3):
        assert not next(run).sample.requires_grad
        assert torch.is_grad_enabled()
    with torch.no_grad():
        next(run)
        assert not torch.is_grad_enabled()
    run.close()
    assert torch.is_grad_enabled()
    assert calls == [False] * 4
    with pytest.raises(StopIteration):
        next(run)


def test_unit_variance_of_sigma_schedulers():
    pipeline = with_sampler(tiny_pipeline(num_train_timesteps=1000), "euler")
    pipeline._predict = lambda scaled, timestep, labels, guidance_scale: scaled  # all of it is noise
    for step in pipeline.denoise(4, num_inference_steps=6, seed=0):
        if step.index == 0:
            assert step.sample.std() > 5
        assert pipeline.unit_variance(step).std() < 2
    assert torch.equal(pipeline.unit_variance(step), step.sample)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, r"num_inference_steps must be a whole number in \[1, 20\]"),
        ({"num_inference_steps": 21}, r"\[1, 20\], got 21"),
        ({"num_inference_steps": float("nan")}, r"\[1, 20\], got nan"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"class_labels": 4}, r"class_labels must be a whole number in \[0, 3\]"),
        ({"class_labels": [0, 1, 2], "batch_size": 2}, "3 class_labels were given for batch_size=2"),
        ({"seed": [1, 2], "batch_size": 3}, "2 generators or seeds were given for batch_size=3"),
        ({"seed": 1, "generator": torch.Generator()}, "either generator or seed"),
        ({"output_type": "jpeg"}, "output_type must be"),
        ({"num_inference_steps": float("inf")}, "got inf"),
        ({"num_inference_steps": "a"}, "got 'a'"),
        ({"batch_size": 2.0}, "batch_size must be"),
        ({"class_labels": [1.5]}, "class_labels must be a whole number"),
        ({"guidance_scale": float("nan"), "class_labels": 1}, "guidance_scale must be a finite number"),
        ({"guidance_interval": (5, 2), "class_labels": 1}, r"guidance_interval must be \(low, high\) with 0 <= low"),
        ({"guidance_interval": (0, 21), "class_labels": 1}, r"<= high <= 20, got \(0, 21\)"),
        ({"guidance_interval": (-1, 2), "class_labels": 1}, "guidance_interval must be"),
        ({"guidance_interval": (0, float("nan")), "class_labels": 1}, "guidance_interval must be"),
        ({"guidance_interval": 7, "class_labels": 1}, "guidance_interval must be"),
        ({"guidance_interval": "0,7", "class_labels": 1}, "guidance_interval must be"),
        ({"latents": torch.zeros(3, 1, 8, 8), "batch_size": 2}, r"latents must have shape \(2, 1, 8, 8\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        conditional()(**arguments)
    if "class_labels" in arguments and not {"guidance_scale", "guidance_interval"} & set(arguments):
        with pytest.raises(ValueError, match="unconditional"):
            tiny_pipeline()(**arguments)


def test_a_scheduler_of_another_process_is_refused():
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=20)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler is not a scheduler of this diffusion"):
        pipeline(1, num_inference_steps=2)


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'ddim'"):
        make_scheduler("dimm", tiny_pipeline().scheduler)
