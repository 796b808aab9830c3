"""MyUNet with ``cross_attention_dim``: attention to the words of a caption."""

import pytest
import torch
from helpers import tiny_unet
from torch import nn

WIDTH, TOKENS = 12, 5


def words_unet(**settings) -> nn.Module:
    """A network that reads captions, its zero-initialised weights random."""
    unet = tiny_unet(cross_attention_dim=WIDTH, **settings)
    generator = torch.Generator().manual_seed(1)
    for weight in unet.parameters():
        if weight.requires_grad and not weight.any():
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return unet


@pytest.fixture(scope="module")
def unet():
    return words_unet()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(3, 1, 8, 8, generator=generator)
    return sample, torch.tensor([0, 7, 19]), torch.randn(3, TOKENS, WIDTH, generator=generator)


@torch.no_grad()
def test_at_the_start_words_change_nothing(inputs):
    sample, timestep, words = inputs
    fresh, plain = tiny_unet(cross_attention_dim=WIDTH), tiny_unet()
    fresh.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(fresh(sample, timestep, encoder_hidden_states=words).sample, plain(sample, timestep).sample)


def test_without_captions_nothing_is_added():
    names = [name for name in words_unet().state_dict() if name not in tiny_unet().state_dict()]
    assert {name.split(".")[0] for name in names} == {"words_embed", "down", "up"}
    assert not any("ca." in name or "words" in name for name in tiny_unet().state_dict())
    attended = tiny_unet(cross_attention_dim=WIDTH, attention_levels=(1,), block_out_channels=(8, 16, 16))
    assert [level.ca is not None for level in (*attended.down, *attended.up)] == [True, False, True, False]


@torch.no_grad()
def test_attention_is_that_of_torch(unet):
    ours = unet.down[0].ca
    channels = ours.to_q.in_features
    theirs = nn.MultiheadAttention(channels, ours.num_heads, kdim=WIDTH, vdim=WIDTH, batch_first=True)
    key, value = ours.to_kv.weight.chunk(2)
    theirs.q_proj_weight.copy_(ours.to_q.weight)
    theirs.k_proj_weight.copy_(key)
    theirs.v_proj_weight.copy_(value)
    theirs.in_proj_bias.copy_(torch.cat((ours.to_q.bias, ours.to_kv.bias)))
    theirs.out_proj.load_state_dict(ours.to_out.state_dict())
    x, words = torch.randn(2, channels, 4, 4), torch.randn(2, TOKENS, WIDTH)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    tokens = x.flatten(2).transpose(1, 2)
    expected, _ = theirs(ours.norm(tokens), words, words, key_padding_mask=~mask)
    found = ours(x, ours.keys_values(words), mask[:, None, None])
    torch.testing.assert_close(found, x + expected.transpose(1, 2).unflatten(2, (4, 4)))


@torch.no_grad()
def test_padding_does_not_count_and_other_words_do(unet, inputs):
    sample, timestep, words = inputs
    mask = torch.tensor([[1, 1, 0, 0, 0]] * 3)
    expected = unet(sample, timestep, encoder_hidden_states=words[:, :2]).sample
    found = unet(sample, timestep, encoder_hidden_states=words, encoder_attention_mask=mask).sample
    torch.testing.assert_close(found, expected)
    other = unet(sample, timestep, encoder_hidden_states=words).sample
    assert (other - expected).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@torch.no_grad()
def test_words_are_made_once_for_all_steps(unet, inputs):
    sample, timestep, words = inputs
    made = unet.words(words)
    for t in (timestep, timestep.flip(0)):
        expected = unet(sample, t, encoder_hidden_states=words).sample
        assert torch.equal(unet(sample, t, encoder_hidden_states=made).sample, expected)


@torch.no_grad()
def test_an_image_depends_on_its_own_words_alone(unet, inputs):
    sample, timestep, words = inputs
    together = unet(sample, timestep, encoder_hidden_states=words).sample
    for i in range(3):
        alone = unet(sample[i : i + 1], timestep[i], encoder_hidden_states=words[i : i + 1]).sample
        torch.testing.assert_close(alone[0], together[i])


def test_gradients_reach_every_weight_with_and_without_checkpointing(inputs):
    sample, timestep, words = inputs
    gradients = []
    for checkpointing in (False, True):
        unet = words_unet(num_class_embeds=2).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        labels = torch.tensor([0, 1, 2])
        unet(sample, timestep, labels, encoder_hidden_states=words).sample.square().sum().backward()
        gradients.append({name: weight.grad for name, weight in unet.named_parameters() if weight.requires_grad})
        assert all(gradient is not None and gradient.any() for gradient in gradients[-1].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        (None, None, r"encoder_hidden_states must have shape \(B, L, 12\), got None"),
        ((3, 5, 11), None, r"must have shape \(B, L, 12\), got \(3, 5, 11\)"),
        ((3, 12), None, r"got \(3, 12\)"),
        ((2, 5, 12), None, "2 captions for 3 images"),
        ((3, 5, 12), torch.ones(3, 4), r"encoder_attention_mask must have shape \(3, 5\), got \(3, 4\)"),
        ((3, 5, 12), torch.tensor([[1, 0, 0, 0, 0]] * 2 + [[0] * 5]), "every caption needs a token"),
    ],
)
def test_wrong_words_are_one_line(unet, inputs, shape, mask, message):
    words = None if shape is None else torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        unet(*inputs[:2], encoder_hidden_states=words, encoder_attention_mask=mask)


def test_a_model_without_captions_takes_none(inputs):
    sample, timestep, words = inputs
    with pytest.raises(ValueError, match="the model has no cross_attention_dim"):
        tiny_unet()(sample, timestep, encoder_hidden_states=words)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="cross_attention_dim must be a whole number of at least 1"):
            tiny_unet(cross_attention_dim=wrong)


def test_a_saved_network_reads_the_same_words(unet, inputs, tmp_path):
    sample, timestep, words = inputs
    unet.save_pretrained(tmp_path)
    again = type(unet).from_pretrained(tmp_path)
    with torch.no_grad():
        expected = unet(sample, timestep, encoder_hidden_states=words).sample
        assert torch.equal(again(sample, timestep, encoder_hidden_states=words).sample, expected)
