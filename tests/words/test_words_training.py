"""Runs that train with captions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import WIDTH, coloured_squares

from ddpm_hf.config import build_config
from ddpm_hf.data import load_images
from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline
from ddpm_hf.pipeline import encode_texts
from ddpm_hf.text_encoders import load_text_encoder
from ddpm_hf.training import Trainer
from ddpm_hf.training.words import CaptionWords, captions_of

pytest.importorskip("transformers")  # CI installs it after all others, which would wait for its import

SMALL = {
    "sample_size": 8,
    "image_mode": "RGB",
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "feed_forward_dim": 16,
    "time_embed_dim": 16,
    "train_batch_size": 8,
    "max_train_steps": 6,
    "lr_warmup_steps": 2,
    "logging_steps": 2,
    "checkpointing_steps": 3,
    "validation_steps": 3,
    "sample_steps": 6,
    "num_samples": 4,
    "num_train_timesteps": 50,
    "mixed_precision": "no",
    "report_to": "none",
}


def config_of(folder, squares, encoder_folder, **settings):
    values = {"dataset": str(squares), "output_dir": str(folder), "text_encoder": str(encoder_folder)}
    return build_config({**SMALL, **values, **settings})


def test_words_are_those_of_the_encoder_and_chosen_by_place(encoder_folder):
    encoder = load_text_encoder(encoder_folder)
    captions = [["red", "a small red square"], [], ["blue"], ["red"]]
    words = CaptionWords(encoder, captions)
    images = np.array([0, 0, 1, 2, 3, 3])
    places = torch.tensor([0.0, 0.5, 0.9, 0.999, 0.2, 0.3])
    dropped = torch.tensor([False] * 5 + [True])
    taken = words.take(images, places, dropped)
    with torch.no_grad():
        expected = encode_texts(*encoder, ["red", "a small red square", "", "blue", "red", ""])
    assert taken.shape == (6, max(map(len, expected)), WIDTH) and taken.dtype == torch.float32
    for row, own in zip(taken, expected):
        torch.testing.assert_close(row[: len(own)], own, atol=2e-3, rtol=1e-3)  # kept in float16
        assert not row[len(own) :].any() and (row[: len(own)] != 0).any(1).all()
    assert isinstance(words.words, np.memmap) and words.words.dtype == np.float16
    again = CaptionWords(encoder, captions)
    assert again.words.filename == words.words.filename
    assert CaptionWords(encoder, captions[:1]).fingerprint != words.fingerprint
    assert torch.equal(words.of(slice(2, None)).take(np.array([0])), words.take(np.array([2])))


def test_the_caption_of_a_step_is_chosen_by_seed_and_step_alone(tmp_path, squares, encoder_folder):
    trainer = Trainer(config_of(tmp_path / "run", squares, encoder_folder, class_dropout_prob=0.5))
    draws = [trainer.step._draw((3, 8, 8)) for _ in range(2)]
    assert torch.equal(draws[0].captions, draws[1].captions) and 0 < draws[0].dropped.sum() < 8
    trainer.state.progress.step += 1
    assert not torch.equal(trainer.step._draw((3, 8, 8)).captions, draws[0].captions)


def test_a_run_exports_what_reads_its_prompts(tmp_path, squares, encoder_folder):
    """And its weights that read words, zero at the start, have learned."""
    trainer = Trainer(config_of(tmp_path / "run", squares, encoder_folder))
    pipeline = load_pipeline(trainer.train())
    prompts = ["a red square", "a blue square"]
    made = pipeline(prompts, seed=[0, 0], output_type="pt").images
    assert made.shape == (2, 3, 8, 8) and not torch.equal(made[0], made[1])
    assert pipeline.unet.words_embed[1].weight.any() and pipeline.unet.down[0].ca.to_out.weight.any()
    index = json.loads((tmp_path / "run/pipeline/model_index.json").read_text())
    assert index["guidance_scale"] > 1 and index["text_encoder"] == ["transformers", "BertModel"]
    assert json.loads((tmp_path / "run/facts.json").read_text())["prompts"] == list(
        dict.fromkeys(trainer.words.prompts)
    )


def test_a_run_goes_on_with_the_same_words_and_no_others(tmp_path, encoder_folder):
    pictures = coloured_squares(tmp_path / "pictures")
    whole = config_of(tmp_path / "whole", pictures, encoder_folder)
    Trainer(whole).train()
    halves = config_of(tmp_path / "halves", pictures, encoder_folder)
    first = Trainer(halves)
    first.start()
    for _ in range(3):
        first.train_step()
    first.save()
    first.on_main.leave()
    Trainer(halves).train()
    weights = [load_pipeline(tmp_path / name / "pipeline").unet.state_dict() for name in ("whole", "halves")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    (pictures / "000.txt").write_text("a blue square")
    with pytest.raises(UserError, match="holds a run on other images"):
        Trainer(halves).train()


def test_a_plan_counts_the_words(tmp_path, squares, encoder_folder):
    from ddpm_hf.training.plan import plan

    trainer = Trainer(config_of(tmp_path / "run", squares, encoder_folder, dry_run=True))
    lines = dict(plan(trainer))
    assert "GFLOP" in lines["compute"] and "GiB" in lines["device memory"] and not (tmp_path / "run").exists()


def test_class_names_become_captions(tmp_path, encoder_folder):
    from PIL import Image

    for name in ("red", "blue"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), name).save(tmp_path / "set" / name / f"{i}.png")
    config = config_of(tmp_path / "run", tmp_path / "set", encoder_folder, caption_template="a {} square")
    data = load_images(str(tmp_path / "set"), sample_size=8)
    assert [texts for (texts,) in captions_of(config, data)] == ["a blue square"] * 3 + ["a red square"] * 3
    assert Trainer(config).train() is not None


def test_captions_may_be_several_in_a_row(tmp_path):
    import datasets
    from PIL import Image

    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    columns = {"image": [Image.new("RGB", (8, 8))] * 3, "text": [["a", "b"], None, ["", "c"]]}
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "set.parquet")
    data = load_images(str(tmp_path / "set.parquet"), sample_size=8)
    assert data.captions == [["a", "b"], "", ["c"]]


def test_captions_that_are_missing_are_one_line(tmp_path, encoder_folder):
    pictures = coloured_squares(tmp_path / "pictures", 6)
    (pictures / "004.txt").unlink()
    config = config_of(tmp_path / "run", pictures, encoder_folder)
    with pytest.raises(UserError, match="image 4 of 6 has no caption; caption_template"):
        Trainer(config)
    skipping = config.model_copy(update={"on_bad_image": "skip"})
    assert captions_of(skipping, load_images(str(pictures), sample_size=8))[4] == []
    for file in pictures.glob("*.txt"):
        file.unlink()
    with pytest.raises(UserError, match="text_encoder needs captions, and the data have none: caption_column"):
        Trainer(config)
    with pytest.raises(UserError, match="caption_template makes captions of class names, and the data have no labels"):
        Trainer(config.model_copy(update={"caption_template": "a {}"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_conditional": True}, "class_conditional or text_encoder"),
        ({"streaming": True}, "use streaming: false"),
        ({"model": "unet2d"}, "model unet2d reads no words"),
        ({"caption_template": "a picture"}, "caption_template needs {}"),
        ({"text_encoder": None, "caption_template": "a {}"}, "caption_template does nothing without text_encoder"),
        ({"text_encoder": None, "sample_prompts": ["red"]}, "sample_prompts does nothing without text_encoder"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:24],
)
def test_settings_that_do_not_go_together_are_one_line(settings, message, squares, encoder_folder, tmp_path):
    with pytest.raises(UserError, match=message):
        config_of(tmp_path / "run", squares, encoder_folder, **settings)


def test_prompts_of_grids_are_checked(squares, encoder_folder, tmp_path):
    with pytest.raises(UserError, match="a prompt of sample_prompts has 2,000 characters"):
        Trainer(config_of(tmp_path / "run", squares, encoder_folder, sample_prompts=["a" * 2000]))
    config = config_of(tmp_path / "run", squares, encoder_folder, sample_prompts=["red", "blue"])
    assert Trainer(config).words.prompts == ["red", "blue"]
    assert Path(tmp_path / "run").exists() is False
