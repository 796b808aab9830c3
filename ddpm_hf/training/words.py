"""The words that a run trains with: its captions, read once by a frozen text encoder and kept in a mapped file."""

import copy
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ddpm_hf.config import TrainConfig
from ddpm_hf.data import ImageData, store_images
from ddpm_hf.data.fit import progress_bar
from ddpm_hf.errors import UserError
from ddpm_hf.pipeline import LONGEST_PROMPT, check_text, encode_texts, token_ids
from ddpm_hf.text_encoders import TextEncoder, load_text_encoder

ENCODED_AT_ONCE = 4096  # captions


class CaptionWords:
    """The words of each image's captions, and those of no caption.

    Args:
        encoder: reads the captions that it has not read before, and an empty text.
        captions: of each image, those that it has; none are an empty text.
    """

    def __init__(self, encoder: TextEncoder, captions: Sequence[Sequence[str]]):
        texts = list(dict.fromkeys(["", *(text for of_image in captions for text in of_image)]))
        places = {text: place for place, text in enumerate(texts)}
        self.counts = np.array([max(1, len(of_image)) for of_image in captions])
        self.firsts = np.cumsum(self.counts) - self.counts  # in ``chosen``
        self.chosen = np.array([places[text] for of_image in captions for text in of_image or [""]])
        self.fingerprint, self.words, lengths = _encoded(encoder, texts)
        self.starts, self.lengths = np.cumsum(lengths) - lengths, lengths

    def of(self, images: slice) -> "CaptionWords":
        """Those of some of the images alone."""
        part = copy.copy(self)
        part.firsts, part.counts = self.firsts[images], self.counts[images]
        return part

    def take(
        self, images: np.ndarray, places: torch.Tensor | None = None, dropped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Words float32 (B, L, D) of a caption of each image, zeros after the last.

        Args:
            images: (B,), numbers of images.
            places: (B,) in [0, 1), which of an image's captions is taken; None is the first one.
            dropped: bool (B,), whose words give way to those of no caption.
        """
        numbers = np.zeros(len(images)) if places is None else places.double().cpu().numpy()
        texts = self.chosen[self.firsts[images] + (numbers * self.counts[images]).astype(np.int64)]
        if dropped is not None:
            texts = np.where(dropped.cpu().numpy(), 0, texts)
        lengths = self.lengths[texts]
        words = np.zeros((len(images), lengths.max(), self.words.shape[1]), np.float32)
        for row, start, length in zip(words, self.starts[texts], lengths):
            row[:length] = self.words[start : start + length]
        return torch.from_numpy(words)


class RunWords(NamedTuple):
    """What a run that trains with words has of them.

    train, validation: words of the images that are trained and validated on, the latter None where there are none.
    captions: one of each image that is validated on, or trained on where there are none to validate on.
    prompts: of the grids, in turn.
    """

    encoder: TextEncoder
    train: CaptionWords
    validation: CaptionWords | None
    captions: list[str]
    prompts: list[str]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any caption and with the encoder."""
        return self.train.fingerprint[:16]


def words_of_run(config: TrainConfig, data, validation_data, device: torch.device) -> RunWords | None:
    """The words of a run's data; None without a text encoder. Of several processes the first reads the captions.

    Raises:
        UserError: if captions are missing, a prompt is none, or there is no such encoder.
    """
    if config.text_encoder is None:
        return None
    captions = captions_of(config, data)
    held_out = captions_of(config, validation_data) if validation_data else []
    prompts = list(config.sample_prompts or ())
    try:
        for prompt in prompts:
            check_text("a prompt of sample_prompts", prompt)
    except ValueError as error:
        raise UserError(str(error)) from None
    shown = [of_image[0] for of_image in held_out or captions if of_image]
    if not shown:
        raise UserError("text_encoder needs captions, and no image has one.")
    prompts = prompts or [shown[i] for i in np.linspace(0, len(shown) - 1, config.num_samples).astype(int)]
    encoder = load_text_encoder(config.text_encoder, device)
    words = CaptionWords(encoder, [*captions, *held_out])
    count = len(captions)
    return RunWords(encoder, words.of(slice(count)), words.of(slice(count, None)) if held_out else None, shown, prompts)


def captions_of(config: TrainConfig, data: ImageData) -> list[list[str]]:
    """The captions of each image: its own, or, where it has none, ``caption_template`` with the name of its class.

    Raises:
        UserError: if there are none, or an image has none, unless on_bad_image is skip: then such images are trained on
            without words.
    """
    template, skip = config.caption_template, config.on_bad_image == "skip"
    if template is not None and data.labels is None:
        raise UserError("caption_template makes captions of class names, and the data have no labels.")
    if data.captions is None and template is None:
        raise UserError(
            "text_encoder needs captions, and the data have none: caption_column names the column, or caption_template "
            "makes them of class names."
        )
    names = data.label_names or [str(label) for label in range(data.num_classes or 0)]
    found = []
    for number, own in enumerate(data.captions or [""] * len(data)):
        texts = [text for text in ([own] if isinstance(own, str) else own) if text.strip()]
        if not texts and template is not None:
            texts = [template.replace("{}", names[data.labels[number]])]
        if not texts and not skip:
            raise UserError(
                f"image {number} of {len(data):,} has no caption; caption_template makes one of its class, and "
                f"on_bad_image: skip trains on it without words."
            )
        found.append([text[:LONGEST_PROMPT] for text in texts])
    return found


def _encoded(encoder: TextEncoder, texts: list[str]) -> tuple[str, np.ndarray, np.ndarray]:
    """A hash of encoder and texts; the words of all texts float16 (N, D), one text after the other; how many each has.

    They are kept in the cache, under that hash.
    """
    ids = token_ids(encoder.tokenizer, encoder.text_encoder, texts)
    lengths = np.array([len(tokens) for tokens in ids])
    digest = hashlib.sha256(repr(encoder.text_encoder.config).encode())
    for weight in encoder.text_encoder.state_dict().values():
        digest.update(weight.cpu().contiguous().numpy())
    digest.update(np.concatenate([lengths, *ids]).astype("<i8"))

    def make(write) -> dict:
        with progress_bar(len(texts), "captions") as progress:
            for start in range(0, len(texts), ENCODED_AT_ONCE):
                some = texts[start : start + ENCODED_AT_ONCE]
                with torch.inference_mode():
                    write(torch.cat(encode_texts(*encoder, some)).half().cpu().numpy().view(np.uint8))
                progress.update(len(some))
        return {}

    shape = (int(lengths.sum()), 2 * encoder.width)  # of bytes
    stored, _ = store_images(f"words {digest.hexdigest()}", True, shape, make)
    return digest.hexdigest(), stored.view(np.float16), lengths
