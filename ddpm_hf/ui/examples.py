"""Small pictures of each class, for the class picker and for the forward process.

Of the embedded model they are real ones. Of another model they are its own: the first row of the newest grid that its
trainer left in ``samples/``, whose columns are classes.
"""

import functools
import io
import re
import weakref
from pathlib import Path

from PIL import Image

from ddpm_hf.errors import UserError
from ddpm_hf.figures import split_grid
from ddpm_hf.hub import fetch_newest_samples
from ddpm_hf.reading import open_regular, parse_json
from ddpm_hf.ui import intake
from ddpm_hf.ui.frames import data_url
from ddpm_hf.ui.models import Model

# What the embedded model was trained on, one file of a few pictures of each class
EMBEDDED_EXAMPLES = Path(__file__).resolve().parent.parent.parent / "data" / "fashion_mnist_tiny.parquet"

MAX_GRID_SIDE = 8192  # pixels
WITHOUT_CLASSES = 8  # pictures of a model that knows no classes

_known: weakref.WeakKeyDictionary[Model, list] = weakref.WeakKeyDictionary()


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
    if names and names == model.limits.classes:
        return list(pictures)
    if model not in _known:
        _known[model] = _of_samples(model)
    return _known[model]


def _of_samples(model: Model) -> list[tuple[int | None, Image.Image]]:
    """(label, picture) of each class, from the newest grid of samples; [] without one, or of another layout."""
    grid = _newest_grid(model)
    rows = [] if grid is None else split_grid(grid, model.image_size)
    if not rows:
        return []
    classes = len(model.limits.classes)
    if not classes:
        return [(None, picture) for picture in rows[0][:WITHOUT_CLASSES]]
    return list(enumerate(rows[0][:classes])) if len(rows[0]) % classes == 0 else []


def _newest_grid(model: Model) -> Image.Image | None:
    """The picture, if there is one and it is a sound one."""
    folder = model.folder
    if folder is None:
        return None
    grids = _grids(folder)
    if not grids and model.is_of_hub:
        fetch_newest_samples(model.source, folder.name, intake.MAX_FILE_BYTES)
        grids = _grids(folder)
    try:
        if not grids or grids[-1].stat().st_size > intake.MAX_FILE_BYTES:
            return None
        with open_regular(grids[-1]) as file:
            return intake.picture(file.read(), max_side=MAX_GRID_SIDE).convert(model.mode)
    except (OSError, ValueError):  # UserErrors too
        return None


def _grids(folder: Path) -> list[Path]:
    return [path for path in sorted((folder / "samples").glob("step-*.png")) if re.fullmatch(r"step-\d+", path.stem)]


@functools.cache
def _embedded_examples() -> tuple[tuple[str, ...], tuple[tuple[int, Image.Image], ...]]:
    """Names of the classes, and (label, the first picture) of each."""
    if not EMBEDDED_EXAMPLES.exists():
        return (), ()
    from pyarrow import parquet

    table, found = parquet.read_table(EMBEDDED_EXAMPLES), {}
    features = parse_json(table.schema.metadata[b"huggingface"].decode())["info"]["features"]
    for row in table.to_pylist():
        if row["label"] not in found:
            found[row["label"]] = Image.open(io.BytesIO(row["image"]["bytes"])).copy()
    return tuple(features["label"]["names"]), tuple(sorted(found.items()))
