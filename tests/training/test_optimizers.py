"""Muon against torch's own, a polar decomposition and AdamW; what it is given; and in runs."""

import diffusers
import pytest
import torch
from tiny_runs import metrics, newest, tiny_run, tiny_trainer

from ddpm_hf.config import build_config
from ddpm_hf.errors import UserError
from ddpm_hf.training.optimizers import Muon, build_optimizer, hidden_matrices, orthogonalise
from ddpm_hf.unet import MyUNet

SHAPES = [(24, 24), (16, 40), (40, 16)]


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def step(optimizer, *values: torch.nn.Parameter, seed: int):
    """One step of the optimizer with gradients that depend on the seed alone."""
    for value, gradient in zip(values, parameters(*(value.shape for value in values), seed=seed)):
        value.grad = gradient.detach()
    optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matrices_move_as_with_torchs_muon(weight_decay):
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = Muon(ours, parameters((1,)), muon_lr=0.02, momentum=0.9, weight_decay=weight_decay)
    oracle = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=weight_decay)
    for i in range(1, 6):
        step(optimizer, *ours, seed=i)
        step(oracle, *theirs, seed=i)
    for a, b, start in zip(ours, theirs, parameters(*SHAPES)):
        assert (a - start).norm() > 0.1  # they did move
        assert (a - b).norm() / (b - start).norm() < 0.01  # bfloat16 rounds to 2^-9


@pytest.mark.parametrize(("dtype", "leak"), [(torch.bfloat16, 0.05), (torch.float32, 1e-4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_is_near_the_polar_factor(shape, dtype, leak):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > 0.02 * values.max()  # what five iterations lift; below it bfloat16 has little left of a direction
    found = u.T @ orthogonalise(matrix.to(dtype)[None])[0].double() @ v.T  # diagonal where singular vectors are kept
    diagonal = found.diagonal()[kept]
    assert diagonal.min() > 0.65 and diagonal.max() < 1.25
    assert (found - found.diagonal().diag()).abs().max() < leak


def test_singular_values_lie_in_the_published_range():
    for seed in range(20):
        matrix = torch.randn(1, 32, 128, generator=torch.Generator().manual_seed(seed))
        values = torch.linalg.svdvals(orthogonalise(matrix.bfloat16())[0].double())
        assert values.min() > 0.65 and values.max() < 1.25


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_the_matrix_of_its_outputs(memory_format):
    (kernel,), (matrix,) = parameters((16, 4, 3, 3)), parameters((16, 36))
    gradient = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    kernel = torch.nn.Parameter(kernel.detach().to(memory_format=memory_format))
    matrix.data = kernel.detach().flatten(1).clone()
    before = kernel.detach().clone()
    kernel.grad, matrix.grad = gradient.to(memory_format=memory_format), gradient.flatten(1)
    Muon([kernel], parameters((1,))).step()
    Muon([matrix], parameters((1,))).step()
    assert (kernel - before).norm() > 0.01
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), atol=4e-4, rtol=0)  # bfloat16's last bit


def test_all_others_move_as_with_adamw_to_the_bit():
    shapes = [(7,), (5, 3)]
    (hidden,), ours, theirs = parameters((8, 8)), parameters(*shapes), parameters(*shapes)
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1}
    optimizer, oracle = Muon([hidden], ours, **options), torch.optim.AdamW(theirs, **options, fused=True)
    for i in range(1, 4):
        step(optimizer, *ours, hidden, seed=i)
        step(oracle, *theirs, seed=i)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert hidden.grad is not None  # gradients are left as AdamW leaves them


def test_a_parameter_without_a_gradient_stays():
    still, moved, other = parameters((4, 4), (4, 4), (3,))
    before = still.detach().clone()
    optimizer = Muon([still, moved], [other])
    step(optimizer, moved, seed=1)
    assert torch.equal(still, before)
    assert still not in optimizer.state


def names_of(unet: torch.nn.Module, chosen: list[torch.nn.Parameter]) -> set[str]:
    ids = {id(parameter) for parameter in chosen}
    return {name for name, parameter in unet.named_parameters() if id(parameter) in ids}


def test_muon_gets_hidden_matrices_and_kernels_only():
    unet = MyUNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), num_class_embeds=3, residual=True
    )
    names = names_of(unet, hidden_matrices(unet))
    assert {"input_conv.conv1.weight", "down.0.te.1.weight", "down.0.sa.to_qkv.weight"} <= names
    assert {"bottleneck.0.skip.weight", "up.0.block2.conv2.weight"} <= names
    embeddings = ("class_embed.weight", "time_embed.weight")
    assert not any("norm" in name or name.endswith("bias") or name in embeddings for name in names)
    assert "out_conv.weight" not in names
    stock = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    names = names_of(stock, hidden_matrices(stock))
    assert "conv_in.weight" in names and "conv_out.weight" not in names


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimizer_has_every_trained_parameter_once(name):
    unet = MyUNet(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), num_class_embeds=3)
    optimizer = build_optimizer(build_config({"dataset": "x", "optimizer": name, "learning_rate": 3e-4}), unet, "no")
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert len(held) == len(trained) and {id(value) for value in held} == {id(value) for value in trained}
    assert [group["peak_lr"] for group in optimizer.param_groups] == [3e-4, 0.02][: len(optimizer.param_groups)]


# ---- runs


def test_both_rates_follow_the_schedule(tmp_path):
    trainer = tiny_trainer(tmp_path, optimizer="muon", muon_learning_rate=0.05, lr_warmup_steps=4)
    trainer.train_step()
    assert [group["lr"] for group in trainer.state.optimizer.param_groups] == pytest.approx([1e-3 / 4, 0.05 / 4])


def test_it_learns_faster_than_adamw(tmp_path):
    last = {}
    for name in ("adamw", "muon"):
        tiny_run(tmp_path / name, optimizer=name, max_train_steps=60, logging_steps=20, validation_split=None)
        last[name] = metrics(tmp_path / name)[-1]["loss"]
    assert last["muon"] < 0.9 * last["adamw"]


def test_another_optimizers_state_is_refused(tmp_path, finished_run):
    finished_run(tmp_path, max_train_steps=4)
    assert newest(tmp_path).name == "step-4"
    with pytest.raises(UserError, match=r"step-4 does not fit this run .*of another network or optimizer"):
        tiny_run(tmp_path, max_train_steps=8, optimizer="muon", resume="force")
