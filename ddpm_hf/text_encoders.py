"""Text encoders of transformers, which is imported only where words are used."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.memory import refuse_beyond_memory


class TextEncoder(NamedTuple):
    """A tokenizer and an encoder that fit each other, as components of ``MyDDPMPipeline``."""

    tokenizer: object
    text_encoder: torch.nn.Module

    @property
    def width(self) -> int:
        """Numbers that each word becomes."""
        return self.text_encoder.config.hidden_size


def load_text_encoder(
    name: str | Path, device: torch.device | str = "cpu", *, variant: str | None = None
) -> TextEncoder:
    """A frozen text encoder in float32, from safetensors, without code that came with it.

    Args:
        name: Hub id or folder of a CLIP text model, a BERT-like encoder or a T5; or folder of a pipeline, with
            ``tokenizer`` and ``text_encoder`` in it.
        variant: of the weights, such as fp16.

    Raises:
        UserError: if transformers is not installed, or there is no such encoder.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("words are read by the package transformers: pip install transformers.")
    import transformers

    folder = Path(name).expanduser()
    of_tokenizer, of_encoder = (
        folder / part if (folder / part).is_dir() else name for part in ("tokenizer", "text_encoder")
    )
    options = {"trust_remote_code": False, "local_files_only": folder.is_dir()}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(of_tokenizer, **options)
        config = transformers.AutoConfig.from_pretrained(of_encoder, **options)
        config = config.text_config if config.model_type == "clip" else config
        with torch.device("meta"):
            made = transformers.AutoModelForTextEncoding.from_config(config)
        refuse_beyond_memory(4 * sum(weight.numel() for weight in made.parameters()), "its weights")
        encoder, info = type(made).from_pretrained(
            of_encoder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            variant=variant,
            output_loading_info=True,
            **options,
        )
        # what sums a text up to one vector is not used, and many have none
        if missing := sorted(weight for weight in info["missing_keys"] if "pooler" not in weight):
            raise ValueError(f"its weights lack {missing[0]}")
    except Exception as error:  # the library's, the Hub client's, the system's
        raise UserError(f"text encoder {name} cannot be loaded: {one_line(error)}") from error
    return TextEncoder(tokenizer, encoder.requires_grad_(False).eval().to(device))
