"""``init_from``: a run that starts from a trained model."""

import diffusers
import pytest
import torch
from helpers import tiny_pipeline, tiny_unet
from tiny_runs import tiny_run, tiny_trainer

from ddpm_hf.checkpoints import checkpoints_of
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline
from ddpm_hf.hub.run_files import run_files_of
from ddpm_hf.training.init_from import init_from

NAMES = ["apple", "pear", "plum"]
ID2LABEL = {str(i): name for i, name in enumerate(NAMES)}


def spread(unet: torch.nn.Module) -> torch.nn.Module:
    """All learned weights random, the zero-initialised ones too."""
    generator = torch.Generator().manual_seed(5)
    for weight in unet.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    return unet


def exported(folder, id2label=None, **settings):
    pipeline = tiny_pipeline(id2label=id2label, **settings)
    spread(pipeline.unet)
    export_pipeline(folder, pipeline)
    return pipeline.unet.eval()


def test_the_same_network_starts_with_the_same_weights(tmp_path):
    source, unet = exported(tmp_path / "m", ID2LABEL, num_class_embeds=3), spread(tiny_unet(num_class_embeds=3))
    unet.out_conv.bias.data.zero_()
    assert init_from(unet, str(tmp_path / "m"), NAMES, "epsilon") == "started from m."
    assert all(torch.equal(a, b) for a, b in zip(unet.state_dict().values(), source.state_dict().values()))


@pytest.mark.parametrize("settings", [{}, {"patch_size": 2}, {"residual": True}])
def test_gray_to_colour_and_back_gives_the_same_for_gray_images(tmp_path, settings):
    gray = exported(tmp_path / "gray", in_channels=1, out_channels=1, **settings)
    colour = tiny_unet(in_channels=3, out_channels=3, **settings).eval()
    assert init_from(colour, str(tmp_path / "gray"), None, "epsilon") == "started from gray."
    size = gray.config.sample_size
    image, timestep = torch.randn(2, 1, size, size), torch.tensor([3, 7])
    with torch.no_grad():
        expected = gray(image, timestep).sample
        torch.testing.assert_close(colour(image.repeat(1, 3, 1, 1), timestep).sample, expected.repeat(1, 3, 1, 1))
        export_pipeline(tmp_path / "colour", tiny_pipeline(in_channels=3, out_channels=3, **settings))
        pipeline = tiny_pipeline(in_channels=3, out_channels=3, **settings)
        pipeline.unet.load_state_dict(colour.state_dict())
        export_pipeline(tmp_path / "colour", pipeline)
        again = tiny_unet(in_channels=1, out_channels=1, **settings).eval()
        init_from(again, str(tmp_path / "colour"), None, "epsilon")
        torch.testing.assert_close(again(image, timestep).sample, expected)


def test_classes_are_found_by_their_names(tmp_path):
    source = exported(tmp_path / "m", ID2LABEL, num_class_embeds=3)
    unet = tiny_unet(num_class_embeds=4)
    before = unet.class_embed.weight.clone()
    line = init_from(unet, str(tmp_path / "m"), ["plum", "fig", "apple", "kiwi"], "epsilon")
    assert line == "started from m, but these weights are new: 2 of 4 classes."
    rows, old = unet.class_embed.weight, source.class_embed.weight
    for row, expected in enumerate([old[2], before[1], old[0], before[3], old[3]]):
        assert torch.equal(rows[row], expected)


def test_classes_can_be_added_and_dropped(tmp_path):
    exported(tmp_path / "plain")
    line = init_from(tiny_unet(num_class_embeds=2), str(tmp_path / "plain"), ["a", "b"], "epsilon")
    assert line == "started from plain, but these weights are new: class_embed.weight."
    exported(tmp_path / "classes", ID2LABEL, num_class_embeds=3)
    assert init_from(tiny_unet(), str(tmp_path / "classes"), None, "epsilon") == "started from classes."


def test_what_does_not_fit_is_named(tmp_path):
    exported(tmp_path / "m")
    line = init_from(tiny_unet(time_embed_dim=32), str(tmp_path / "m"), None, "sample")
    assert "but these weights are new: down.0.te.1.weight" in line
    assert line.endswith("; it predicts epsilon, and this run has to learn sample.")
    stock = diffusers.UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    with pytest.raises(UserError, match="none of its weights has a shape of this run's network"):
        init_from(stock, str(tmp_path / "m"), None, "epsilon")
    with pytest.raises(UserError, match="nowhere"):
        init_from(stock, str(tmp_path / "nowhere"), None, "epsilon")


def test_a_run_starts_from_a_run_and_resumes_without_it(tmp_path, capsys):
    first = tiny_run(tmp_path / "first", max_train_steps=4)
    settings = {"init_from": str(tmp_path / "first"), "max_train_steps": 4}
    second = tiny_trainer(tmp_path / "second", **settings)
    assert second.origin == "started from first."
    averaged = first.state.averaged_unet().state_dict()
    assert all(torch.equal(a, averaged[name]) for name, a in second.state.unet.state_dict().items())
    average = next(iter(second.state.averages.values()))
    assert all(torch.equal(a, b) for a, b in zip(average.shadow_params, second.state.unet.parameters()))
    second.train()
    assert "started from first." in capsys.readouterr().out

    (tmp_path / "first").rename(tmp_path / "gone")
    third = tiny_run(tmp_path / "second", **settings | {"max_train_steps": 6, "resume": "force"})
    assert third.state.step == 6 and len(checkpoints_of(tmp_path / "second")) == 2


def test_a_hub_model_is_the_base_model_of_the_card(tmp_path, monkeypatch):
    exported(tmp_path / "m")
    monkeypatch.setattr("ddpm_hf.training.trainer.init_from", lambda unet, model, *_: "started.")
    for start, base in (("acme/first", "acme/first"), ("shipped", None), (str(tmp_path / "m"), None)):
        folder = tmp_path / start.replace("/", "-")
        tiny_run(folder, init_from=start, max_train_steps=4)
        assert run_files_of(folder).base_model == base
