"""MyDDPMScheduler against two oracles: the original's own loop in float64, and diffusers' DDPMScheduler."""

import itertools

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from ddpm_hf.scheduler import (
    PREDICTION_TYPES,
    SOLVER_SETTINGS,
    TIMESTEP_SPACINGS,
    VARIANCE_TYPES,
    MyDDPMScheduler,
)

SHAPE = (2, 1, 4, 4)


def predict(sample, timestep):
    """A stand-in for a network: smooth, depends on x and t, of about unit size."""
    return torch.tanh(sample * 0.7 + 0.001 * float(timestep))


def predict_noise(sample, t, alpha_bars):
    """The best prediction of epsilon for images of independent pixels N(0, 1/4), which keeps x bounded."""
    alpha_bar = alpha_bars[int(t)].to(sample.dtype)
    return (1 - alpha_bar).sqrt() / (alpha_bar / 4 + 1 - alpha_bar) * sample


def original_loop(steps):
    """The loop of the original's ``generate_new_images``, in float64: x after every step, and the noise it used."""
    betas = torch.linspace(10**-4, 0.02, steps, dtype=torch.float64)
    alphas = 1 - betas
    alpha_bars = torch.stack([torch.prod(alphas[: i + 1]) for i in range(steps)])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).double()
    for t in range(steps)[::-1]:
        eta_theta = predict_noise(x, t, alpha_bars)
        x = (1 / alphas[t].sqrt()) * (x - (1 - alphas[t]) / (1 - alpha_bars[t]).sqrt() * eta_theta)
        if t > 0:
            z = torch.randn(SHAPE, generator=generator).double()
            x = x + betas[t].sqrt() * z
        yield t, x


@pytest.mark.parametrize("steps", [200, 500, 1000])
def test_every_step_equals_the_seeds_loop(steps):
    scheduler = MyDDPMScheduler(steps)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator)
    errors = []
    for (t, expected), timestep in zip(original_loop(steps), scheduler.timesteps, strict=True):
        assert t == timestep
        output = predict_noise(x, timestep, scheduler.alphas_cumprod)
        x = scheduler.step(output, timestep, x, generator=generator).prev_sample
        errors.append((x - expected).abs().max().item())
    print(f"T={steps}: max |error| over all steps {max(errors):.2e}")
    assert max(errors) < 2e-5


CASES = [
    case
    for case in itertools.product(VARIANCE_TYPES, PREDICTION_TYPES, TIMESTEP_SPACINGS, (False, True), (False, True))
    if not (case[1] == "epsilon" and case[4])
]


def stock_in_float64(**settings):
    """diffusers' scheduler with its tables computed in float64, so that its own rounding is not measured."""
    theirs = diffusers.DDPMScheduler(**settings)
    betas = torch.linspace(
        settings["beta_start"], settings["beta_end"], settings["num_train_timesteps"], dtype=torch.float64
    )
    if settings["rescale_betas_zero_snr"]:
        betas = rescale_zero_terminal_snr(betas)
    theirs.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    theirs.one = theirs.one.double()
    return theirs


@pytest.mark.parametrize("steps", [1, 7, 50, 100])
@pytest.mark.parametrize(("variance", "prediction", "spacing", "clip", "zero_snr"), CASES)
def test_every_step_equals_diffusers(variance, prediction, spacing, clip, zero_snr, steps):
    settings = {
        "num_train_timesteps": 100,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "variance_type": variance,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "clip_sample": clip,
        "rescale_betas_zero_snr": zero_snr,
    }
    ours, theirs = MyDDPMScheduler(**settings), stock_in_float64(**settings)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x, y = start.double(), start.double()
    mine, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for t in ours.timesteps:
        a = ours.step(predict(x, t), t, x, generator=mine)
        b = theirs.step(predict(y, t), t, y, generator=other)
        assert (a.pred_original_sample - b.pred_original_sample).abs().max() < 1e-9
        if t > 0 and t == ours.timesteps[-1]:
            # DDPMScheduler adds noise even to the finished image when its timestep is not 0; ours never does
            assert (a.prev_sample - a.pred_original_sample).abs().max() < 1e-12
        else:
            assert (a.prev_sample - b.prev_sample).abs().max() < 1e-9
        x, y = a.prev_sample, b.prev_sample


@pytest.mark.parametrize("variance", VARIANCE_TYPES)
def test_float32_stays_near_diffusers_as_it_ships(variance):
    ours = MyDDPMScheduler(variance_type=variance)
    theirs = diffusers.DDPMScheduler.from_config(ours.config)
    generators = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    x = y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for t in ours.timesteps:
        x = ours.step(predict_noise(x, t, ours.alphas_cumprod), t, x, generator=generators[0]).prev_sample
        y = theirs.step(predict_noise(y, t, ours.alphas_cumprod), t, y, generator=generators[1]).prev_sample
    error = (x - y).abs().max().item()
    print(f"{variance}: max |error| to diffusers after 1000 float32 steps {error:.2e}")
    assert error < 2e-3


@pytest.mark.parametrize("zero_snr", [False, True])
def test_forward_process_equals_diffusers(zero_snr):
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr}
    ours, theirs = MyDDPMScheduler(500, **settings), diffusers.DDPMScheduler(500, **settings)
    x0, noise = torch.randn(2, 4, 3, 8, 8).unbind()
    t = torch.tensor([0, 100, 498, 499])
    assert (ours.add_noise(x0, noise, t) - theirs.add_noise(x0, noise, t)).abs().max() < 1e-5
    assert (ours.get_velocity(x0, noise, t) - theirs.get_velocity(x0, noise, t)).abs().max() < 1e-5
    assert (ours.alphas_cumprod - theirs.alphas_cumprod).abs().max() < 1e-6
    assert zero_snr == (ours.alphas_cumprod[-1] == 0)


def test_terminal_signal_is_what_the_docstring_says():
    last = {steps: MyDDPMScheduler(steps).alphas_cumprod[-1].item() for steps in (200, 500, 1000)}
    assert last == pytest.approx({200: 0.13, 500: 0.006, 1000: 4e-5}, rel=0.1)


def test_target_recovers_the_image():
    """x_0 predicted from the perfect target is x_0, for every prediction type."""
    x0, noise = torch.randn(2, 1, 1, 4, 4).unbind()
    for prediction in PREDICTION_TYPES:
        scheduler = MyDDPMScheduler(100, prediction_type=prediction)
        t = torch.tensor([60])
        target = scheduler.training_target(x0, noise, t)
        output = scheduler.step(target, 60, scheduler.add_noise(x0, noise, t))
        assert (output.pred_original_sample - x0).abs().max() < 1e-4


def test_loss_weight_is_the_slides():
    scheduler = MyDDPMScheduler(200)
    beta = torch.linspace(1e-4, 0.02, 200, dtype=torch.float64)
    alpha, alpha_bar = 1 - beta, torch.cumprod(1 - beta, 0)
    t = torch.arange(200)
    expected = beta**2 / (2 * beta * alpha * (1 - alpha_bar))
    assert (scheduler.loss_weight(t) / expected - 1).abs().max() < 1e-5

    small = MyDDPMScheduler(200, variance_type="fixed_small").loss_weight(t)
    sigma2 = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta[1:]
    expected = beta[1:] ** 2 / (2 * sigma2 * alpha[1:] * (1 - alpha_bar[1:]))
    assert (small[1:] / expected - 1).abs().max() < 1e-5
    assert torch.isfinite(small).all()


STOCK = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


@pytest.mark.parametrize("algorithm", [None, "sde-dpmsolver++"])
@pytest.mark.parametrize("name", STOCK)
def test_stock_schedulers_build_from_our_config_and_back(name, algorithm):
    if name == "LMSDiscreteScheduler":
        pytest.importorskip("scipy")
    settings = {"variance_type": "fixed_small", "prediction_type": "v_prediction", "algorithm_type": algorithm}
    ours = MyDDPMScheduler(300, 2e-4, 0.01, **settings)
    if algorithm and name == "DEISMultistepScheduler":  # which diffusers' own solver does not turn into, either
        with pytest.raises(NotImplementedError):
            diffusers.DEISMultistepScheduler.from_config(ours.config)
        assert diffusers.DEISMultistepScheduler.from_config(ours.config, algorithm_type="deis").config.solver_order == 2
        return
    stock = getattr(diffusers, name).from_config(ours.config)
    assert (stock.alphas_cumprod - ours.alphas_cumprod).abs().max() < 1e-6
    assert stock.config.prediction_type == "v_prediction"
    for key in ("clip_sample", "variance_type", "timestep_spacing"):  # defaults that differ from the stock ones
        assert stock.config[key] == ours.config[key]
    back = MyDDPMScheduler.from_config(stock.config)
    same = [key for key in ours.config if not key.startswith("_")]
    assert {key: back.config[key] for key in same} == {key: ours.config[key] for key in same}
    stock.set_timesteps(10)
    x = torch.randn(SHAPE)
    for t in stock.timesteps[:3]:
        x = stock.step(predict(x, t), t, x).prev_sample
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_fewer_steps_are_those_of_the_stock_solver(algorithm, prediction):
    ours = MyDDPMScheduler(100, prediction_type=prediction, algorithm_type=algorithm)
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(
        MyDDPMScheduler(100, prediction_type=prediction).config, algorithm_type=algorithm, **SOLVER_SETTINGS
    )
    ours.set_timesteps(8)
    theirs.set_timesteps(8)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    generators = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for t in ours.timesteps:
        output = predict(x, t)
        expected = MyDDPMScheduler(100, prediction_type=prediction).step(output, t, x).pred_original_sample
        step = ours.step(output, t, x, generator=generators[0])
        assert torch.equal(step.pred_original_sample, expected)
        x, y = step.prev_sample, theirs.step(predict(y, t), t, y, generator=generators[1]).prev_sample
        assert torch.equal(x, y)
    # all steps are ancestral, again and again
    ours.set_timesteps(100)
    ancestral = MyDDPMScheduler(100, prediction_type=prediction)
    ancestral.set_timesteps(100)
    assert torch.equal(ours.timesteps, ancestral.timesteps)
    a, b = (s.step(predict(x, 99), 99, x, generator=torch.Generator().manual_seed(0)) for s in (ours, ancestral))
    assert torch.equal(a.prev_sample, b.prev_sample)


@pytest.mark.parametrize("algorithm", [None, "sde-dpmsolver++"])
def test_a_saved_configuration_loads_as_ours_and_as_the_stock_solver(algorithm, tmp_path):
    MyDDPMScheduler(100, algorithm_type=algorithm).save_pretrained(tmp_path)
    assert MyDDPMScheduler.from_pretrained(tmp_path).config.algorithm_type == algorithm
    stock = diffusers.DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    assert stock.config.algorithm_type == (algorithm or "dpmsolver++")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm_type": "deis"}, "algorithm_type must be one of None, 'dpmsolver\\+\\+'"),
        ({"variance_type": "learned"}, "variance_type must be one of 'fixed_large', 'fixed_small'"),
        ({"prediction_type": "eps"}, "prediction_type must be one of"),
        ({"beta_schedule": "cosine"}, "beta_schedule must be one of 'linear'"),
        ({"timestep_spacing": "even"}, "timestep_spacing must be one of"),
        ({"rescale_betas_zero_snr": True}, "needs prediction_type 'v_prediction' or 'sample'"),
        ({"num_train_timesteps": 0}, "at least 1"),
        ({"beta_start": 0.1}, "0 < beta_start <= beta_end < 1"),
        ({"steps_offset": -5}, r"steps_offset must lie in \[0, 999\]"),
        (
            {"num_train_timesteps": 1, "rescale_betas_zero_snr": True, "prediction_type": "sample"},
            "at least 2 timesteps",
        ),
        ({"beta_end": float("nan")}, "0 < beta_start <= beta_end < 1"),
        ({"trained_betas": [0.1, 1.0]}, "trained_betas must be a list of numbers between 0 and 1"),
        ({"trained_betas": []}, "at least 1"),
        ({"trained_betas": [[0.1]]}, "trained_betas must be"),
        ({"trained_betas": [float("nan")]}, "trained_betas must be"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MyDDPMScheduler(**settings)


@pytest.mark.parametrize("steps", [0, -1, 1001, float("nan"), float("inf"), 2.5])
def test_wrong_step_counts_are_refused(steps):
    with pytest.raises(ValueError, match="num_inference_steps must"):
        MyDDPMScheduler(1000).set_timesteps(steps)


SAVED = [
    {},
    {"num_train_timesteps": np.int64(300), "beta_end": np.float32(0.01), "clip_sample": True},
    {"variance_type": "fixed_small", "algorithm_type": "dpmsolver++"},
    {"trained_betas": np.linspace(1e-4, 0.3, 20)},
    {"trained_betas": (0.1, 0.3)},
]


@pytest.mark.parametrize("settings", SAVED, ids=str)
def test_a_config_that_was_saved_and_loaded_is_equal(tmp_path, settings):
    scheduler = MyDDPMScheduler(**settings)
    scheduler.save_pretrained(tmp_path)
    loaded = MyDDPMScheduler.from_pretrained(tmp_path)
    assert dict(loaded.config) == dict(scheduler.config)
    assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize("betas", [np.array([0.1, 0.3]), [0.5, 0.02, 0.3, 0.04], [0.2]], ids=str)
def test_trained_betas_are_the_process_as_in_diffusers(betas):
    """But that T is their number, which is what the process has."""
    ours = MyDDPMScheduler(trained_betas=betas, clip_sample=True)
    theirs = diffusers.DDPMScheduler(len(betas), trained_betas=betas, variance_type="fixed_large")
    assert len(ours) == ours.config.num_train_timesteps == len(betas)
    assert ours.betas.tolist() == theirs.betas.tolist()
    assert (ours.alphas_cumprod - theirs.alphas_cumprod).abs().max() < 1e-6
    stock = diffusers.DDIMScheduler.from_config(ours.config)
    assert torch.equal(stock.alphas_cumprod, theirs.alphas_cumprod)
    ours.set_timesteps(len(betas))
    x = y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    generators = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for t in ours.timesteps:
        x = ours.step(predict(x, t), t, x, generator=generators[0]).prev_sample
        y = theirs.step(predict(y, t), t, y, generator=generators[1]).prev_sample
        assert (x - y).abs().max() < 1e-5


@pytest.mark.parametrize("offset", [0, 1, 3, 40, 99])
def test_leading_timesteps_are_distinct_and_even_with_any_offset(offset):
    """Near T, the offset is as large as fits; elsewhere the timesteps are those of diffusers."""
    ours, theirs = MyDDPMScheduler(100, steps_offset=offset), diffusers.DDPMScheduler(100, steps_offset=offset)
    theirs.register_to_config(timestep_spacing="leading")
    for count in range(1, 101):
        ours.set_timesteps(count)
        theirs.set_timesteps(count)
        if theirs.timesteps[0] < 100:
            assert torch.equal(ours.timesteps, theirs.timesteps)
        assert ours.timesteps[0] == min(99, theirs.timesteps[0])
        assert ours.timesteps.diff().tolist() == [-(100 // count)] * (count - 1)
        assert ours.timesteps[-1] >= 0


def test_a_list_of_generators_gives_every_image_its_own_noise():
    scheduler = MyDDPMScheduler(10)
    x, output = torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 4, 4)

    def step(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return scheduler.step(output[: len(seeds)], 5, x[: len(seeds)], generator=generators).prev_sample

    together, alone = step([1, 2, 3]), step([3])
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(together[0], together[1])
