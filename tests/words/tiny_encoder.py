"""A tiny BERT of random weights and pictures with captions, made by code: nothing is downloaded."""

from pathlib import Path

import numpy as np
import torch
from helpers import tiny_unet
from PIL import Image

WIDTH = 12
WORDS = ["red", "green", "blue", "square", "picture", "a", "of", "small", "##er", "##s"]
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 60), "blue": (40, 60, 220)}


def tiny_encoder(folder: Path, width: int = WIDTH) -> Path:
    """Write tokenizer and encoder into ``folder``."""
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys([*tokens, *WORDS]))}
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=vocab, model_max_length=32).save_pretrained(folder)
    return folder


def coloured_squares(folder: Path, count: int = 24) -> Path:
    """Pictures of 8x8 pixels in three colours, each with its caption in a .txt file beside it."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        name = list(COLOURS)[i % 3]
        noise = generator.integers(-20, 20, (8, 8, 1))
        pixels = (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(f"a {name} square")
    return folder


def words_pipeline(encoder_folder: Path, **settings):
    """A pipeline that reads words; its network's weights are random, those that start at zero too."""
    from ddpm_hf.pipeline import MyDDPMPipeline
    from ddpm_hf.scheduler import MyDDPMScheduler
    from ddpm_hf.text_encoders import load_text_encoder

    encoder = load_text_encoder(encoder_folder)
    unet = tiny_unet(cross_attention_dim=encoder.width, **settings)
    generator = torch.Generator().manual_seed(1)
    for weight in unet.parameters():
        if weight.requires_grad and not weight.any():
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    pipeline = MyDDPMPipeline(unet, MyDDPMScheduler(20), **encoder._asdict())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
