"""Whole images made square: a pipeline scales its pictures back to the size the images had."""

import json

import numpy as np
import pytest
import torch
from helpers import tiny_unet
from making import numbered
from PIL import Image

from ddpm_hf.data import load_images
from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import with_sampler
from ddpm_hf.scheduler import MyDDPMScheduler


def pipeline(height, width, resize=True, **settings) -> MyDDPMPipeline:
    size = {"output_height": height, "output_width": width, "output_resize": resize}
    result = MyDDPMPipeline(tiny_unet(**settings), MyDDPMScheduler(20), **size)
    result.set_progress_bar_config(disable=True)
    return result


@pytest.mark.parametrize("shape", [(20, 33), (5, 6), (8, 8), (4, 90)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_have_the_size_of_the_images(tmp_path, shape, channels):
    color = 90 if channels == 1 else (90, 120, 30)
    data = load_images(numbered(tmp_path / "a.parquet", [color], shape=shape), sample_size=8, resize="area")
    assert (data.output_size, data.output_resize) == (shape, True)
    made = pipeline(*data.output_size, data.output_resize, in_channels=channels, out_channels=channels)
    images = made.postprocess(data.batch(np.array([0]))[0])
    assert images[0].size == shape[::-1]
    assert np.abs(np.asarray(images[0]).astype(int) - color).max() <= 1
    assert made(2, num_inference_steps=2, seed=0).images[1].size == shape[::-1]


def test_scaled_as_pillow_scales(tmp_path):
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for shape in ((24, 40), (5, 4)):
        pixels = pipeline(*shape).postprocess(x, "pt")
        for image, expected in zip(pixels, x[:, 0].numpy()):
            oracle = Image.fromarray(expected / 2 + 0.5).resize(shape[::-1], Image.Resampling.BICUBIC)
            assert np.abs(image[0].numpy() - np.clip(oracle, 0, 1)).max() < 1e-5


def test_a_picture_does_not_depend_on_its_batch():
    made = pipeline(19, 30)
    together = made(5, num_inference_steps=3, seed=4, output_type="pt").images
    alone = made(1, num_inference_steps=3, seed=6, output_type="pt").images
    assert (together[2] - alone[0]).abs().max() < 1e-5
    assert together.min() >= 0
    assert together.max() <= 1


def test_exported_and_loaded(tmp_path):
    folder = export_pipeline(tmp_path / "model", pipeline(20, 33))
    index = json.loads((folder / "model_index.json").read_text())
    assert (index["output_height"], index["output_width"], index["output_resize"]) == (20, 33, True)
    loaded = load_pipeline(folder)
    assert loaded.config.output_resize is True
    assert with_sampler(loaded, "ddim")(1, num_inference_steps=2, seed=0).images[0].size == (33, 20)


def test_a_pipeline_of_before_is_cropped(tmp_path):
    folder = export_pipeline(tmp_path / "model", pipeline(6, 7, None))
    index = json.loads((folder / "model_index.json").read_text())
    assert index.pop("output_resize") is None
    (folder / "model_index.json").write_text(json.dumps(index))
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    assert torch.equal(load_pipeline(folder).postprocess(x, "pt"), (x[:, :, 1:7, :7] / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_resize": "yes"}, "output_resize in model_index.json must be true or false, got 'yes'"),
        ({"output_resize": 1}, "must be true or false, got 1"),
        ({"output_resize": False}, r"output_height in model_index.json must be a whole number in \[1, 8\], got 20"),
        ({"output_height": 5000}, r"must be a whole number in \[1, 4096\], got 5000"),
    ],
)
def test_wrong_entries_are_one_line(tmp_path, changes, message):
    folder = export_pipeline(tmp_path / "model", pipeline(20, 33))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(folder)
    assert "\n" not in str(error.value)
