"""``scripts/small_text_encoder.py``: fewer tokens and layers, and the same words for what is left."""

import pytest
import torch
from tiny_encoder import tiny_encoder

from ddpm_hf.errors import UserError
from ddpm_hf.pipeline import encode_texts, token_ids
from ddpm_hf.text_encoders import load_text_encoder
from scripts.small_text_encoder import main

pytest.importorskip("transformers")  # CI installs it after all others, which would wait for its import


@torch.no_grad()
def test_words_that_are_kept_mean_the_same_and_others_are_spelled(encoder_folder, tmp_path, capsys):
    main([str(encoder_folder), str(tmp_path / "small"), "--layers", "1", "--vocabulary", "196"])
    assert "1 layers, 196 tokens" in capsys.readouterr().out
    large, small = load_text_encoder(encoder_folder), load_text_encoder(tmp_path / "small")
    texts = ["red", "green blue", "r e d !"]
    for before, after in zip(encode_texts(*large, texts), encode_texts(*small, texts)):
        torch.testing.assert_close(after, before, atol=5e-3, rtol=0)  # kept in half precision
    (tokens,) = token_ids(*small, ["square"])
    assert small.tokenizer.convert_ids_to_tokens(tokens) == ["[CLS]", "s", *(f"##{c}" for c in "quare"), "[SEP]"]
    with pytest.raises(UserError, match="is there already"):
        main([str(encoder_folder), str(tmp_path / "small")])


def test_no_layer_is_kept_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="has 1 layers; --layers must lie in"):
        main([str(tiny_encoder(tmp_path / "encoder")), str(tmp_path / "small"), "--layers", "3"])
