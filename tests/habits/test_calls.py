"""What a run of the pipeline leaves alone, and where its network is when it ends."""

import threading

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from habit_cases import NAMES, ours
from helpers import tiny_pipeline

from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import with_sampler
from ddpm_hf.scheduler import MyDDPMScheduler

SAMPLERS = ("ddpm", "dpm-sde", "euler", "heun", "unipc")


@pytest.mark.parametrize("name", SAMPLERS)
def test_runs_in_turn_are_as_alone(name):
    """Two generators of one pipeline, with other numbers of steps, called in turn."""
    pipeline = with_sampler(tiny_pipeline(num_train_timesteps=100), name)
    settings = [{"num_inference_steps": steps, "seed": seed} for steps, seed in ((9, 0), (4, 5))]
    alone = [list(pipeline.denoise(2, **setting))[-1].sample for setting in settings]
    runs = [pipeline.denoise(2, **setting) for setting in settings]
    last = [None, None]
    while any(steps := [next(run, None) for run in runs]):
        last = [old if step is None else step.sample for old, step in zip(last, steps)]
    assert all(torch.equal(a, b) for a, b in zip(alone, last))


def test_threads_on_one_pipeline_are_as_alone():
    pipeline = with_sampler(tiny_pipeline(num_train_timesteps=100), "dpm-sde")
    settings = [{"num_inference_steps": steps, "seed": steps, "output_type": "pt"} for steps in (7, 11, 20, 5)]
    alone = [pipeline(2, **setting).images for setting in settings]
    together, started = {}, threading.Barrier(len(settings))

    def work(i):
        started.wait()
        together[i] = pipeline(2, **settings[i]).images

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[i], together[i]) for i in range(len(settings)))


def test_timesteps_of_the_last_run_can_be_looked_at():
    pipeline = with_sampler(tiny_pipeline(num_train_timesteps=100), "heun")
    assert pipeline.num_timesteps is None
    steps = list(pipeline.denoise(1, num_inference_steps=6))
    assert pipeline.num_timesteps == len(steps) == len(pipeline.scheduler.timesteps) == 11
    assert [step.timestep for step in steps] == pipeline.scheduler.timesteps.tolist()


def test_a_guidance_each_is_that_of_each():
    pipeline = tiny_pipeline(num_class_embeds=3, id2label=NAMES)
    options = {"seed": 0, "num_inference_steps": 4, "output_type": "pt"}
    both = pipeline(2, [0, 1], guidance_scale=[1.0, 4.0], **options).images
    for i, scale in enumerate((1.0, 4.0)):
        alone = pipeline(2, [0, 1], guidance_scale=scale, **options).images
        assert (both[i] - alone[i]).abs().max() < 1e-5
    assert torch.equal(pipeline(2, ["SHOE", "bag"], **options).images, pipeline(2, [1, 2], **options).images)


def test_guidance_without_classes_is_refused():
    with pytest.raises(ValueError, match="guidance_scale was given, but the model has no classes"):
        tiny_pipeline()(1, guidance_scale=3.0)
    assert tiny_pipeline()(1, guidance_scale=1, num_inference_steps=2).images


def test_eta_is_that_of_ddim():
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    options = {"seed": 0, "num_inference_steps": 5, "output_type": "pt"}
    plain, noisy = pipeline(1, **options).images, pipeline(1, eta=1.0, **options).images
    assert torch.equal(pipeline(1, eta=0.0, **options).images, plain)
    assert not torch.equal(plain, noisy)


@pytest.mark.parametrize("scheduler", [MyDDPMScheduler, DDPMScheduler])
def test_chosen_timesteps_are_taken(scheduler):
    """Those that a number of steps gives are the same run; others are taken as they are."""
    pipeline = tiny_pipeline()
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    counted = list(pipeline.denoise(1, num_inference_steps=4, seed=0))
    chosen = list(pipeline.denoise(1, timesteps=[step.timestep for step in counted], seed=0))
    assert torch.equal(chosen[-1].sample, counted[-1].sample)
    others = [step.timestep for step in pipeline.denoise(1, timesteps=torch.tensor([17, 3, 0]), seed=0)]
    assert others == [17, 3, 0]


def test_the_solver_takes_chosen_timesteps():
    scheduler = MyDDPMScheduler(20, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(timesteps=[19, 7, 1])
    assert scheduler.timesteps.tolist() == [19, 7, 1] and scheduler.num_inference_steps == 3
    for wrong in ([], [3, 5], [20], [1.5], [True]):
        with pytest.raises(ValueError, match="timesteps must be"):
            scheduler.set_timesteps(timesteps=wrong)
    for neither_nor in ({}, {"num_inference_steps": 2, "timesteps": [1, 0]}):
        with pytest.raises(ValueError, match="either num_inference_steps or timesteps"):
            scheduler.set_timesteps(**neither_nor)


def test_chosen_sigmas_are_taken():
    pipeline = tiny_pipeline()
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    sigmas = [0.4, 0.2, 0.05, 0]
    assert len(list(pipeline.denoise(1, sigmas=sigmas, seed=0))) == 3
    assert torch.allclose(pipeline.scheduler.sigmas, torch.tensor(sigmas))


def test_trained_betas_come_along():
    betas = torch.linspace(0.3, 0.01, 20).tolist()
    ours = MyDDPMScheduler.from_config(DDPMScheduler(20, trained_betas=betas).config)
    assert torch.allclose(ours.betas, torch.tensor(betas))


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float64, 2), (torch.float32, 2), (torch.bfloat16, 16)])
def test_only_half_precision_is_padded(dtype, rows):
    pipeline, seen = tiny_pipeline(), []
    pipeline.unet = pipeline.unet.to(dtype)
    pipeline.unet.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    pipeline(2, num_inference_steps=1)
    assert seen == [rows]


def test_the_network_is_given_back_when_a_run_ends(monkeypatch):
    """As enable_model_cpu_offload needs it: at the end of a call, of a generator, and when that is closed."""
    pipeline, freed = ours(), []
    monkeypatch.setattr(MyDDPMPipeline, "maybe_free_model_hooks", lambda self: freed.append(True))
    pipeline(1, num_inference_steps=2)
    list(pipeline.denoise(1, num_inference_steps=2))
    assert len(freed) == 2
    run = pipeline.denoise(1, num_inference_steps=2)
    next(run)
    assert len(freed) == 2
    run.close()
    assert len(freed) == 3

    def fails(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(1, num_inference_steps=2, callback_on_step_end=fails)
    assert len(freed) == 4
