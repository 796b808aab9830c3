"""MyUNet: the original's parameter counts, an oracle for its attention, and every setting."""

import pytest
import torch
from helpers import tiny_unet
from torch import nn

from ddpm_hf.unet import (
    Conv3x3,
    ImageGroupNorm,
    ImageLayerNorm,
    MyBlock,
    MyTESA,
    MyUNet,
    TimestepTable,
    sinusoidal_embedding,
)


@pytest.mark.parametrize(("channels", "total", "trainable"), [(1, 20_722_881, 20_594_881), (3, 20_728_259, 20_600_259)])
def test_parameter_counts_are_those_the_seed_published(channels, total, trainable):
    unet = MyUNet(in_channels=channels, out_channels=channels)
    assert sum(p.numel() for p in unet.parameters()) == total
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == trainable


def test_defaults_are_the_flowers_network():
    config = MyUNet().config
    assert (config.in_channels, config.sample_size, config.num_train_timesteps) == (3, 32, 500)


def test_attention_equals_torchs_encoder_layer():
    torch.manual_seed(0)
    ours = MyTESA(16, 8, num_heads=4, dim_feedforward=32)
    theirs = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, activation="gelu", norm_first=True, batch_first=True)
    attention = theirs.self_attn
    ours.to_qkv.weight.data, ours.to_qkv.bias.data = attention.in_proj_weight.data, attention.in_proj_bias.data
    for mine, other in [
        (ours.to_out, attention.out_proj),
        (ours.linear1, theirs.linear1),
        (ours.linear2, theirs.linear2),
        (ours.norm1, theirs.norm1),
        (ours.norm2, theirs.norm2),
    ]:
        mine.load_state_dict(other.state_dict())
    x = torch.randn(2, 16, 8, 8)
    expected = theirs(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    assert (ours(x) - expected).abs().max() < 1e-5
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("size", [8, 16])
def test_attention_in_bfloat16_has_the_gradients_of_float32(size):
    torch.manual_seed(0)
    layer = MyTESA(32, size, num_heads=4, dim_feedforward=32)
    x = torch.randn(2, 32, size, size)
    gradients = []
    for enabled in (False, True):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = layer(leaf)
        out.float().square().mean().backward()
        gradients.append([leaf.grad, *(p.grad.clone() for p in layer.parameters())])
    for single, half in zip(*gradients):
        assert (half - single).norm() < 0.03 * single.norm()


@pytest.mark.parametrize("size", [4, 8, 16])
def test_wide_convolution_has_torchs_gradients(size):
    torch.manual_seed(0)
    ours = Conv3x3(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    theirs = nn.Conv2d(256, 256, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 256, size, size)
    results = []
    for layer, memory_format in ((ours, torch.channels_last), (theirs, torch.contiguous_format)):
        leaf = x.clone(memory_format=memory_format).requires_grad_()
        out = layer(leaf)
        out.sin().sum().backward()
        results.append([out, leaf.grad, layer.weight.grad, layer.bias.grad])
    for mine, other in zip(*results):
        assert (mine - other).abs().max() < 1e-5 * other.abs().max() + 1e-5


def test_block_is_what_its_docstring_says():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    block = MyBlock((4, 8, 8), 4, 8, num_groups=2)
    h = nn.functional.layer_norm(x, (4, 8, 8))
    h = nn.functional.silu(nn.functional.group_norm(block.conv1(h), 2))
    expected = nn.functional.silu(nn.functional.group_norm(block.conv2(h), 2))
    assert (block(x) - expected).abs().max() < 1e-5

    residual = MyBlock((4, 8, 8), 4, 8, num_groups=2, residual=True, normalize=False)
    h = nn.functional.silu(nn.functional.group_norm(residual.conv1(x), 2))
    expected = residual.skip(x) + nn.functional.group_norm(residual.conv2(h), 2)
    assert (residual(x) - expected).abs().max() < 1e-5


def test_time_table_rows_and_fractions():
    table = TimestepTable(100, 16)
    rows = table(torch.tensor([0, 7, 99]))
    assert torch.equal(rows, sinusoidal_embedding(100, 16)[[0, 7, 99]])
    frequencies = 10_000 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    t = torch.tensor([0.1, 7.25, 98.999])
    angles = t.double()[:, None] * frequencies
    expected = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
    assert (table(t) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("channels_last", [True, False])
def test_group_norm_does_not_depend_on_the_place_in_the_batch(threads, channels_last):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(8, 16, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
        x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        norm, order = ImageGroupNorm(8, 16).bfloat16(), torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
        with torch.inference_mode():
            assert torch.equal(norm(x[order]), norm(x)[order])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_norm_in_both_memory_formats(memory_format):
    torch.manual_seed(0)
    norm = ImageLayerNorm((4, 6, 6))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 6, 6)
    expected = nn.functional.layer_norm(x, (4, 6, 6), norm.weight, norm.bias)
    out = norm(x.to(memory_format=memory_format))
    assert (out - expected).abs().max() < 1e-5
    assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"in_channels": 3, "out_channels": 3},
        {"sample_size": 12, "block_out_channels": (8, 16, 24)},
        {"block_out_channels": (8, 16, 24, 32)},
        {"attention_levels": ()},
        {"attention_levels": (1,)},
        {"num_attention_heads": 1},
        {"residual": True},
        {"normalize_input": False},
        {"residual": True, "normalize_input": False, "num_class_embeds": 3},
        {"dropout": 0.5},
        {"norm_num_groups": 2, "time_embed_dim": 8},
        {"sample_size": 16, "patch_size": 2, "residual": True, "normalize_input": False, "num_class_embeds": 3},
        {"sample_size": 24, "patch_size": 3, "in_channels": 3, "out_channels": 3},
    ],
    ids=str,
)
def test_every_setting_trains_every_parameter(settings):
    unet = tiny_unet(**settings).train()
    config = unet.config
    x = torch.randn(2, config.in_channels, config.sample_size, config.sample_size)
    labels = None if config.num_class_embeds is None else torch.tensor([0, 3])
    out = unet(x, torch.tensor([3, 17]), labels).sample
    assert out.shape == x.shape
    out.square().mean().backward()
    without = [name for name, p in unet.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    # a bias in front of a GroupNorm of one channel a group, or a norm's weight after it, may have no gradient
    assert not [name for name in without if not name.endswith("bias")]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_channels_of_a_smaller_network(dtype, memory_format):
    """The oracle: the same weights without patches, on pixels that were unshuffled before."""
    settings = {"num_class_embeds": 3, "attention_levels": (1,)}
    patched = tiny_unet(sample_size=16, in_channels=3, out_channels=3, patch_size=2, **settings)
    plain = tiny_unet(sample_size=8, in_channels=12, out_channels=12, **settings)
    assert patched.config.sample_size == 16
    plain.load_state_dict(patched.state_dict())
    x = torch.randn(2, 3, 16, 16).to(dtype, memory_format=memory_format)
    patched, plain = (unet.to(dtype, memory_format=memory_format) for unet in (patched, plain))
    timesteps, labels = torch.tensor([3, 17]), torch.tensor([0, 2])
    with torch.no_grad():
        out = patched(x, timesteps, labels).sample
        expected = plain(nn.functional.pixel_unshuffle(x, 2), timesteps, labels).sample
    assert torch.equal(out, nn.functional.pixel_shuffle(expected, 2))
    assert out.shape == x.shape


def test_a_network_with_patches_survives_saving(tmp_path):
    unet = tiny_unet(sample_size=16, patch_size=2)
    unet.save_pretrained(tmp_path)
    loaded = MyUNet.from_pretrained(tmp_path)
    assert loaded.config.patch_size == 2
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x, 3).sample, unet(x, 3).sample)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_gradient_checkpointing_gives_the_same_gradients(patch_size):
    gradients = []
    for checkpointing in (False, True):
        unet = tiny_unet(patch_size=patch_size).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        unet(x, 3).sample.square().mean().backward()
        gradients.append([p.grad for p in unet.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_timestep_in_every_form_means_the_same():
    unet = tiny_unet()
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = unet(x, 7).sample
        for timestep in (7.0, torch.tensor(7), torch.tensor(7.0), torch.tensor([7]), torch.tensor([7, 7, 7])):
            assert torch.equal(unet(x, timestep).sample, expected)
        assert not torch.equal(unet(x, 7.5).sample, expected)
        mixed = unet(x, torch.tensor([2.0, 7.0, 19.0])).sample
        assert (mixed[1] - expected[1]).abs().max() < 1e-5


def test_timesteps_and_labels_of_any_dtype_and_form():
    unet = tiny_unet(num_train_timesteps=500, num_class_embeds=3)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = unet(x, 100, torch.tensor([1, 1])).sample
        for timestep in (torch.tensor(100, dtype=torch.int8), torch.tensor(100, dtype=torch.bfloat16)):
            assert torch.equal(unet(x, timestep, 1).sample, expected)
            assert torch.equal(unet(x, timestep, [1, 1]).sample, expected)
    with pytest.raises(ValueError, match=r"timestep must lie in \[0, 499\]"):
        unet(x, torch.tensor(499, dtype=torch.bfloat16))  # which is 500
    with pytest.raises(ValueError, match="timestep must be one for all or one for each of 2 images, got 3"):
        unet(x, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="class_labels must be one for all or one for each of 2 images, got 3"):
        unet(x, 1, torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("timestep", [20, -1, 19.5, float("nan"), torch.tensor([3, 20]), torch.tensor([-1.0, 3])])
def test_timesteps_beyond_the_table_are_refused(timestep):
    with pytest.raises(ValueError, match=r"timestep must lie in \[0, 19\]"):
        tiny_unet()(torch.randn(2, 1, 8, 8), timestep)


def test_class_labels():
    unet = tiny_unet(num_class_embeds=3)
    x = torch.randn(2, 1, 8, 8)
    null = unet(x, 3).sample
    assert torch.equal(null, unet(x, 3, torch.tensor([3, 3])).sample)
    assert not torch.equal(null, unet(x, 3, torch.tensor([0, 1])).sample)
    with pytest.raises(ValueError, match=r"class_labels must lie in \[0, 3\]"):
        unet(x, 3, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="unconditional"):
        tiny_unet()(x, 3, torch.tensor([0, 1]))


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 8, 8), (1, 8, 8), (2, 1, 8, 7)])
def test_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"sample must have shape \(B, 1, 8, 8\)"):
        tiny_unet()(torch.randn(shape), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_size": 28, "block_out_channels": (8, 16, 24, 32)}, "not divisible by 8.*nearest.* (24|32)"),
        ({"block_out_channels": (8,)}, "at least 2 widths"),
        ({"norm_num_groups": 3}, "norm_num_groups=3 must divide"),
        ({"num_attention_heads": 3}, "num_attention_heads=3 must divide"),
        ({"attention_levels": (2,)}, "levels go from 0 to 1"),
        ({"time_embed_dim": 15}, "must be even"),
        ({"block_out_channels": (0, 8)}, r"block_out_channels\[0\] must be a whole number of at least 1, got 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be"),
        ({"num_class_embeds": -1}, "num_class_embeds must be"),
        ({"patch_size": 0}, "patch_size must be a whole number of at least 1, got 0"),
        (
            {"sample_size": 12, "patch_size": 4},
            "sample_size=12 is not divisible by 8, the downsampling factor of patches of 4 pixels and 2 levels; the "
            "nearest size that works is (8|16)",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_unet(**settings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_single(dtype):
    unet = tiny_unet(num_class_embeds=2)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = unet(x, 7, torch.tensor([0, 1])).sample
        out = unet.to(dtype)(x.to(dtype), 7, torch.tensor([0, 1])).sample
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_channels_last_is_the_same_function():
    unet = tiny_unet()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = unet(x, 7).sample
        out = unet.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), 7).sample
    assert (out - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_compiles_without_graph_breaks_and_still_checks_timesteps():
    unet = tiny_unet(num_class_embeds=2, attention_levels=(1,))
    compiled = torch.compile(unet, fullgraph=True)
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    with torch.no_grad():
        for timestep in (torch.tensor([3.0, 7.5]), torch.tensor([0.0, 19.0])):
            out = compiled(x, timestep, labels).sample
            assert (out - unet(x, timestep, labels).sample).abs().max() < 1e-4
        for wrong in (torch.tensor([3.0, 20.0]), torch.tensor([-1.0, 3.0])):
            with pytest.raises(RuntimeError, match=r"timestep must lie in|index out of bounds"):
                compiled(x, wrong, labels)
