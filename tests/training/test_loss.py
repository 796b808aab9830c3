"""The losses against their formulas, the random numbers of a batch, and the learning rate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_unet
from tiny_runs import TINY

from ddpm_hf.config import build_config
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.training import Draw, diffusion_loss, min_snr_weight, rate_factor, squared_error


def draw_of(images, scheduler, seed=3, **probabilities):
    return Draw.of(images.shape, len(scheduler), torch.Generator().manual_seed(seed), **probabilities)


def test_simple_and_weighted_loss_are_the_formulas():
    unet, scheduler = tiny_unet(), MyDDPMScheduler(20)
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    draw = draw_of(images, scheduler)
    t = draw.timesteps
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 20), 0)[t][:, None, None, None]
    noisy = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * draw.noise
    squared = (draw.noise - unet(noisy, t).sample).square().mean(dim=(1, 2, 3))

    simple, error = diffusion_loss(unet, scheduler, images, None, draw, loss_type="simple")
    assert simple.item() == error.item() == pytest.approx(squared.mean().item(), rel=1e-5)
    beta = torch.linspace(1e-4, 0.02, 20)[t]
    weight = beta**2 / (2 * beta * (1 - beta) * (1 - alpha_bar.flatten()))
    weighted, error = diffusion_loss(unet, scheduler, images, None, draw, loss_type="weighted")
    assert weighted.item() == pytest.approx((weight * squared).mean().item(), rel=1e-4)
    assert error.item() == pytest.approx(squared.mean().item(), rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_same_error_of_x0_whatever_is_predicted(prediction_type):
    """An error d of x_0 is one of -d sqrt(SNR) in epsilon and of -d / sigma in v; weight x error^2 must not change."""
    scheduler = MyDDPMScheduler(1000, prediction_type=prediction_type)
    timesteps = torch.tensor([0, 1, 50, 300, 700, 999])
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    error_of_d1 = {"epsilon": snr.sqrt(), "v_prediction": (1 - alpha_bar) ** -0.5, "sample": torch.ones(6)}
    weighted = min_snr_weight(scheduler, timesteps, 5.0).double() * error_of_d1[prediction_type] ** 2
    assert (weighted / snr.clamp(max=5.0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_is_what_diffusers_scripts_compute(prediction_type):
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    timesteps = torch.arange(0, 1000, 7)
    snr = compute_snr(DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02), timesteps)
    expected = snr.clamp(max=5.0) / (snr if prediction_type == "epsilon" else snr + 1)
    ours = min_snr_weight(MyDDPMScheduler(1000, prediction_type=prediction_type), timesteps, 5.0)
    assert (ours / expected - 1).abs().max() < 1e-3  # theirs is in float32 throughout


def test_min_snr_loss_is_the_weighted_mean():
    unet, scheduler = tiny_unet(), MyDDPMScheduler(20)
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    draw = draw_of(images, scheduler)
    errors = squared_error(unet, scheduler, images, None, draw.noise, draw.timesteps)
    loss, _ = diffusion_loss(unet, scheduler, images, None, draw, loss_type="min_snr", snr_gamma=2.0)
    assert loss.item() == pytest.approx((errors * min_snr_weight(scheduler, draw.timesteps, 2.0)).mean().item())
    assert loss.item() != pytest.approx(errors.mean().item())


@pytest.mark.parametrize("loss_type", ["simple", "min_snr"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loss_falls_for_every_prediction_type(prediction_type, loss_type):
    unet = tiny_unet(residual=True).train()
    scheduler = MyDDPMScheduler(20, prediction_type=prediction_type)
    optimizer = torch.optim.Adam([p for p in unet.parameters() if p.requires_grad], lr=3e-3)
    images = torch.rand(16, 1, 8, 8) * 2 - 1
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss, _ = diffusion_loss(
            unet, scheduler, images, None, draw_of(images, scheduler, step % 4), loss_type=loss_type
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


class Recorder(torch.nn.Module):
    """Predicts its input and remembers it."""

    def forward(self, x, t, labels, return_dict):
        self.x, self.labels = x, labels
        return (x,)


def test_labels_are_dropped_as_often_as_asked():
    images, labels, scheduler = torch.zeros(2000, 1, 2, 2), torch.zeros(2000, dtype=torch.long), MyDDPMScheduler()
    for probability in (0.0, 0.3, 1.0):
        draw = draw_of(images, scheduler, class_dropout_prob=probability)
        diffusion_loss(network := Recorder(), scheduler, images, labels, draw, null_label=5)
        assert (network.labels == 5).float().mean().item() == pytest.approx(probability, abs=0.04)
    diffusion_loss(network, scheduler, images, labels, draw)
    assert network.labels is None


def test_images_are_mirrored_as_often_as_asked():
    scheduler = MyDDPMScheduler(rescale_betas_zero_snr=True, prediction_type="sample")
    images = torch.tensor([-1.0, 1.0]).expand(2000, 1, 2, 2)
    for probability in (0.0, 0.5, 1.0):
        draw = draw_of(images, scheduler, flip_prob=probability)
        draw = replace(draw, timesteps=torch.zeros_like(draw.timesteps))  # hardly any noise
        diffusion_loss(network := Recorder(), scheduler, images, None, draw)
        mirrored = (network.x[:, 0, 0, 0] > 0).float().mean().item()
        assert mirrored == pytest.approx(probability, abs=0.04)
        assert torch.equal(network.x[:, 0, 0, 0] > 0, draw.flipped)


def test_stratified_timesteps_take_one_from_each_range_in_any_order():
    scheduler, images, drawn = MyDDPMScheduler(num_train_timesteps=100), torch.zeros(20, 1, 2, 2), []
    for seed in range(400):
        draw = draw_of(images, scheduler, seed, timestep_sampling="stratified")
        assert (draw.timesteps // 5).sort().values.tolist() == list(range(20))
        assert torch.equal(draw.noise, draw_of(images, scheduler, seed).noise)
        drawn.append(draw.timesteps)
    first = torch.stack(drawn)[:, 0].double()  # of one place in the batch, over all ranges
    assert first.min() < 5 and first.max() >= 95
    assert first.mean() == pytest.approx(49.5, abs=3 * 28.9 / 400**0.5)


def test_stratified_timesteps_of_a_batch_larger_than_the_process():
    draw = draw_of(torch.zeros(64, 1, 2, 2), MyDDPMScheduler(num_train_timesteps=10), timestep_sampling="stratified")
    counts = torch.bincount(draw.timesteps, minlength=10)
    assert counts.sum() == 64 and counts.min() >= 5 and counts.max() <= 8


def test_a_part_of_a_draw_is_that_part_of_all_its_numbers():
    draw = draw_of(torch.zeros(6, 1, 2, 2), MyDDPMScheduler(), class_dropout_prob=0.5, flip_prob=0.5)
    part = draw[2:4]
    for name in ("noise", "timesteps", "dropped", "flipped"):
        assert torch.equal(getattr(part, name), getattr(draw, name)[2:4])


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_learning_rate(kind):
    config = build_config({**TINY, "lr_warmup_steps": 10, "lr_scheduler": kind})
    factors = [rate_factor(config, step, 110) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == 1
    assert factors[60] == pytest.approx(1 if kind == "constant" else 0.5)
    assert factors[109] < (1.02 if kind == "constant" else 0.012)
