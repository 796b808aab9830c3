"""Pictures from words: ``pipeline("a red apple")``."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import tiny_pipeline
from tiny_encoder import WIDTH, tiny_encoder

from ddpm_hf.errors import UserError
from ddpm_hf.hub import export_pipeline, load_pipeline
from ddpm_hf.pipeline import MOST_TOKENS
from ddpm_hf.text_encoders import load_text_encoder

pytest.importorskip("transformers")  # CI installs it after all others, which would wait for its import

FAST = {"num_inference_steps": 4, "output_type": "pt"}
PROMPTS = ["a red square", "blue", "a small picture of squares in green"]


def images(pipeline, *args, **options) -> torch.Tensor:
    return pipeline(*args, **{"seed": 0, **FAST, **options}).images


def test_the_prompt_goes_where_the_number_of_images_does_or_by_its_name(pipeline):
    expected = images(pipeline, prompt="a red square")
    assert torch.equal(images(pipeline, "a red square"), expected) and expected.shape == (1, 1, 8, 8)
    assert not torch.equal(images(pipeline, "blue"), expected)
    assert len(images(pipeline, 3, prompt="blue")) == 3
    assert len(images(pipeline, PROMPTS)) == 3
    twice = images(pipeline, ["red", "blue"], num_images_per_prompt=2)
    assert torch.equal(twice, images(pipeline, ["red", "red", "blue", "blue"]))
    embeds = pipeline.encode_prompt(["red", "blue"])
    assert torch.equal(images(pipeline, prompt_embeds=embeds, num_images_per_prompt=2), twice)


def test_a_picture_depends_on_its_own_words_and_seed_alone(pipeline):
    together = images(pipeline, PROMPTS, seed=[5, 6, 7], guidance_scale=3.0)
    for i, prompt in enumerate(PROMPTS):
        alone = images(pipeline, prompt, seed=5 + i, guidance_scale=3.0)
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_prompt_embeds_are_what_encode_prompt_makes(pipeline, dtype):
    pipeline.unet.to(dtype)
    embeds = pipeline.encode_prompt(PROMPTS)
    assert embeds.shape == (3, MOST_TOKENS, WIDTH)
    counts = (embeds != 0).any(-1).sum(1).tolist()
    assert counts == [len(ids) for ids in pipeline.tokenizer(PROMPTS)["input_ids"]]
    options = {"guidance_scale": 2.0}
    expected = images(pipeline, PROMPTS, negative_prompt="green", **options)
    negative = pipeline.encode_prompt("green")
    assert torch.equal(images(pipeline, prompt_embeds=embeds, negative_prompt_embeds=negative, **options), expected)
    without = copy.copy(pipeline)
    without.register_modules(text_encoder=None, tokenizer=None)
    short = embeds[:, : max(counts)]
    assert torch.equal(images(without, prompt_embeds=short, negative_prompt_embeds=negative, **options), expected)
    with pytest.raises(ValueError, match="give negative_prompt_embeds, too"):
        images(without, prompt_embeds=short)


def test_guidance_goes_away_from_the_negative_prompt(pipeline):
    """At every step, null + w (words - null), as two calls of the network compute it."""
    scale, words, null = 2.5, pipeline.encode_prompt("red"), pipeline.encode_prompt("green")
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    step = next(pipeline.denoise(prompt="red", negative_prompt="green", guidance_scale=scale, latents=x, seed=0))
    t, alpha_bar = int(step.timestep), pipeline.scheduler.alphas_cumprod[int(step.timestep)]
    with torch.no_grad():
        calls = [pipeline.unet(x, t, None, each, (each != 0).any(-1)).sample for each in (words, null)]
    noise = calls[1] + scale * (calls[0] - calls[1])
    expected = ((x - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()).clamp(-1, 1)
    torch.testing.assert_close(step.pred_original_sample.clamp(-1, 1), expected, atol=1e-4, rtol=0)


def test_without_a_prompt_pictures_are_of_anything_and_not_guided(pipeline):
    expected = images(pipeline, 2)
    assert torch.equal(images(pipeline, 2, guidance_scale=7.0), expected)
    assert torch.equal(images(pipeline, 2, prompt_embeds=pipeline.encode_prompt(""), guidance_scale=1.0), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt is empty; leave it out"),
        ({"prompt": "  \n"}, "prompt is empty"),
        ({"prompt": "a" * 10_000}, "prompt has 10,000 characters; at most 1,000 are read"),
        ({"prompt": "a\x00b"}, r"prompt has the control character '\\x00'"),
        ({"prompt": ["red", "\x1b[0m"]}, r"control character '\\x1b'"),
        ({"prompt": "\ud800"}, "control character"),
        ({"prompt": ["red", 3]}, "prompt must be a text, got int"),
        ({"prompt": []}, "prompt must be a text or a list of texts"),
        ({"prompt": {"red": 1}}, "prompt must be a text or a list of texts"),
        ({"prompt": ["red", "blue"], "batch_size": 3}, "2 prompts were given for batch_size=3"),
        ({"batch_size": "red", "prompt": "blue"}, "give the prompt once"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt was given without a prompt"),
        ({"prompt": "red", "num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number"),
        ({"negative_prompt": "red"}, "negative_prompt was given without a prompt"),
        ({"prompt": "red", "negative_prompt": "\x07"}, "negative_prompt has the control character"),
        ({"prompt": "red", "prompt_embeds": torch.ones(1, 2, WIDTH)}, "either prompt or prompt_embeds"),
        ({"prompt_embeds": torch.ones(1, 2, 5)}, rf"prompt_embeds must have shape \(B, L, {WIDTH}\), got \(1, 2, 5\)"),
        ({"prompt_embeds": [1.0]}, "prompt_embeds must be a tensor"),
        ({"prompt_embeds": torch.ones(2, 2, WIDTH), "batch_size": 3}, "2 prompts were given for batch_size=3"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
def test_bad_prompts_are_one_line(pipeline, options, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline(**options, num_inference_steps=2)
    assert "\n" not in str(error.value)


def test_models_without_words_take_none(pipeline, encoder_folder, tmp_path):
    plain = tiny_pipeline()
    with pytest.raises(ValueError, match="prompt was given, but the model reads no words"):
        plain("a red square")
    with pytest.raises(ValueError, match="text encoder makes words of width 12, and the network reads no words"):
        type(pipeline)(plain.unet, plain.scheduler, **load_text_encoder(encoder_folder)._asdict())
    wide = load_text_encoder(tiny_encoder(tmp_path / "wide", 16))
    with pytest.raises(ValueError, match="words of width 16, and the network reads words of width 12"):
        type(pipeline)(pipeline.unet, pipeline.scheduler, **wide._asdict())
    pipeline.register_modules(text_encoder=None, tokenizer=None)
    with pytest.raises(ValueError, match="the model has no text encoder: give prompt_embeds"):
        pipeline("red")


def test_an_exported_model_draws_the_same_with_and_without_us(pipeline, tmp_path):
    expected = images(pipeline, PROMPTS, guidance_scale=2.0)
    folder = export_pipeline(tmp_path / "model", pipeline, fp16_variant=True)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "BertModel"] and index["tokenizer"][0] == "transformers"
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.rglob("*.json"))
    assert torch.equal(images(load_pipeline(folder), PROMPTS, guidance_scale=2.0), expected)
    half = load_pipeline(folder, variant="fp16")
    torch.testing.assert_close(images(half, PROMPTS, guidance_scale=2.0), expected, atol=0.05, rtol=0)
    again = export_pipeline(folder, load_pipeline(folder))  # replaces all of it, the variant too
    assert not list(again.rglob("*fp16*")) and (again / "text_encoder" / "model.safetensors").is_file()
    script = f"""
import sys
from diffusers import DiffusionPipeline
import numpy
sys.modules["ddpm_hf"] = None
pipeline = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
numpy.save({str(tmp_path / "images.npy")!r}, pipeline({PROMPTS!r}, guidance_scale=2.0, seed=0,
    num_inference_steps=4, output_type="pt").images.numpy())
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "images.npy")), expected, atol=1e-5, rtol=0)


def test_models_without_words_are_written_as_before(tmp_path):
    folder = export_pipeline(tmp_path / "model", tiny_pipeline())
    assert not {"text_encoder", "tokenizer"} & set(json.loads((folder / "model_index.json").read_text()))
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"unet", "scheduler"}
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert pipeline.text_encoder is None and len(pipeline(2, num_inference_steps=2).images) == 2


def test_text_encoders_that_cannot_be_loaded_are_one_line(encoder_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"text encoder .*empty cannot be loaded"):
        (tmp_path / "empty").mkdir()
        load_text_encoder(tmp_path / "empty")
    broken = tiny_encoder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"text encoder .*broken cannot be loaded"):
        load_text_encoder(broken)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install transformers"):
        load_text_encoder(encoder_folder)


def test_clip_and_t5_read_words_too(tmp_path):
    """Their text encoders of random weights, with the tokenizer of the tiny BERT."""
    import transformers

    tokenizer = load_text_encoder(tiny_encoder(tmp_path / "bert")).tokenizer
    small = {"vocab_size": 300, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    clip = transformers.CLIPTextConfig(**small, intermediate_size=8, max_position_embeddings=16)
    vision = transformers.CLIPVisionConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    both = transformers.CLIPConfig(text_config=clip.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    t5 = transformers.T5Config(vocab_size=300, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    models = {
        "clip_text": transformers.CLIPTextModel(clip),
        "clip": transformers.CLIPModel(both),
        "t5": transformers.T5EncoderModel(t5),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        encoder = load_text_encoder(tmp_path / name)
        assert type(encoder.text_encoder).__name__ == {"t5": "T5EncoderModel"}.get(name, "CLIPTextModel")
        assert encoder.width == 8 and not any(weight.requires_grad for weight in encoder.text_encoder.parameters())
        from ddpm_hf.pipeline import encode_texts

        long, short = encode_texts(*encoder, ["red " * 50, "red"])
        assert short.shape == (3, 8) and len(long) == min(32, 16 if "clip" in name else 32)
