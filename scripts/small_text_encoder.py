"""Make a text encoder small: its first layers, a vocabulary of common words, half precision."""

import re
import sys
from pathlib import Path

from ddpm_hf.errors import Parser, UserError, run_command
from ddpm_hf.text_encoders import TextEncoder, load_text_encoder


def smaller(encoder: TextEncoder, layers: int, vocabulary: int) -> TextEncoder:
    """The first ``layers`` of a BERT with WordPiece tokens, which know ``vocabulary`` tokens.

    Kept are the special tokens and all ASCII characters, so that every word can be spelled, and of the other tokens of
    ASCII letters and digits those that come first: BERT's are in the order of their frequency.
    """
    tokenizer, model = encoder
    known = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens)
    always = [token for token, _ in known if token in special or re.fullmatch(r"(##)?[!-~]", token)]
    words = [token for token, _ in known if token not in always and re.fullmatch(r"(##)?[a-z0-9]+", token)]
    kept = {*always, *words[: max(0, vocabulary - len(always))]}
    rows = [number for token, number in known if token in kept]
    vocab = {token: number for number, token in enumerate(token for token, _ in known if token in kept)}

    config = type(model.config)(
        **{**model.config.to_dict(), "num_hidden_layers": layers, "vocab_size": len(vocab), "pad_token_id": 0}
    )
    small = type(model)(config)
    weights = {name: weight for name, weight in model.state_dict().items() if name in small.state_dict()}
    name = "embeddings.word_embeddings.weight"
    small.load_state_dict({**weights, name: weights[name][rows]})
    return TextEncoder(type(tokenizer)(vocab=vocab, model_max_length=tokenizer.model_max_length), small.half())


def main(argv: list[str] | None = None):
    """Make the encoder as ``argv`` says.

    Raises:
        UserError: for an encoder of another kind, or a folder that is there.
    """
    parser = Parser(prog="python -m scripts.small_text_encoder", description=__doc__)
    parser.add_argument("encoder", help="folder or Hub id of a BERT with WordPiece tokens, such as all-MiniLM-L6-v2")
    parser.add_argument("output", type=Path, help="folder for the smaller one")
    parser.add_argument("--layers", type=int, default=3, help="kept, the first ones (default %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=20_000, help="tokens that are kept (default %(default)s)")
    options = parser.parse_args(argv)
    if options.output.exists() and any(options.output.iterdir()):
        raise UserError(f"{options.output} is there already; choose another folder.")
    encoder = load_text_encoder(options.encoder)
    if encoder.text_encoder.config.model_type != "bert":
        raise UserError(f"{options.encoder} is a {encoder.text_encoder.config.model_type}, not a bert.")
    if not 1 <= options.layers <= (layers := encoder.text_encoder.config.num_hidden_layers):
        raise UserError(f"{options.encoder} has {layers} layers; --layers must lie in [1, {layers}].")
    small = smaller(encoder, options.layers, options.vocabulary)
    for part in small:
        part.save_pretrained(options.output)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"wrote {options.output}: {options.layers} layers, {len(small.tokenizer)} tokens, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(run_command(main))
