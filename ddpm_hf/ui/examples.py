"""Small real pictures of each class, for the class picker and for the forward process."""

import functools
import io
import json
from pathlib import Path

from PIL import Image

from ddpm_hf.errors import UserError
from ddpm_hf.ui.frames import data_url
from ddpm_hf.ui.models import Model

# What the embedded model was trained on, one file of a few pictures of each class
EMBEDDED_EXAMPLES = Path(__file__).resolve().parent.parent.parent / "data" / "fashion_mnist_tiny.parquet"


def example_images(engine, model: str | None = None) -> list[dict]:
    """{"label", "name", "src"} of a picture of each class, in the order of the labels; [] where there are none."""
    chosen = engine.models.get(model)
    names = chosen.limits.classes
    return [
        {"label": label, "name": None if label is None else names[label], "src": data_url(picture)}
        for label, picture in _examples(chosen)
    ]


def example_picture(model: Model, number) -> Image.Image:
    """The example at place ``number`` of ``example_images``.

    Raises:
        UserError: if there is none.
    """
    examples = _examples(model)
    if not examples:
        raise UserError("this model brings no examples: drop in a picture of your own.")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(examples):
        raise UserError(f"example must be a whole number from 0 to {len(examples) - 1}.")
    return examples[number][1]


def _examples(model: Model) -> list[tuple[int | None, Image.Image]]:
    names, pictures = _embedded_examples()
    return list(pictures) if names == model.limits.classes else []


@functools.cache
def _embedded_examples() -> tuple[tuple[str, ...], tuple[tuple[int, Image.Image], ...]]:
    """Names of the classes, and (label, the first picture) of each."""
    if not EMBEDDED_EXAMPLES.exists():
        return (), ()
    from pyarrow import parquet

    table, found = parquet.read_table(EMBEDDED_EXAMPLES), {}
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    for row in table.to_pylist():
        if row["label"] not in found:
            found[row["label"]] = Image.open(io.BytesIO(row["image"]["bytes"])).copy()
    return tuple(features["label"]["names"]), tuple(sorted(found.items()))
