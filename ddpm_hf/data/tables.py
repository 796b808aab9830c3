"""One split of a source, opened but not decoded: rows with an image each, and their labels."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_hf.errors import UserError, counted, nearest

ROWS_AT_ONCE = 256


class Encoded(NamedTuple):
    """The image of a row as its source has it: the bytes of a file, the path of one, or neither."""

    bytes: bytes | None
    path: str | None


class Table:
    """Rows of one split.

    labels: int64 (N,), -1 where a row has none, or None. names: class names in the order of the labels, or None.
    captions: a text for each row, "" where it has none, or a list of texts; or None. identity: text that changes when
    the rows do. where: how messages call it. note: what could be the labels, where that is not clear.
    """

    def __init__(self, source, split: str, count: int, labels, names, identity: str, captions: list | None = None):
        self.source, self.split, self.count, self.identity = source, split, count, identity
        self.where = f"data set {source.dataset!r}"
        if not count:
            raise UserError(f"{self.where} has no images in split {split!r}.")
        if labels is not None and labels.max() < 0:  # as contests give the labels of what is to be predicted
            labels = names = None
        self.labels, self.names, self.captions, self.note = labels, names, captions, None

    def __len__(self) -> int:
        return self.count

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.names) if self.names is not None else int(self.labels.max()) + 1

    def files_state(self) -> str:
        """Text that changes when files do that the rows only point to."""
        return ""

    def usable_rows(self, skip: bool) -> tuple[np.ndarray, list[str]]:
        """All rows, or, where others have a label, those with a label, and a line on the rest.

        Raises:
            UserError: for a row without a label where others have one, unless such are to be skipped.
        """
        rows = np.arange(self.count)
        if self.labels is None or self.labels.min() >= 0:
            return rows, []
        missing = np.flatnonzero(self.labels < 0)
        if not skip:
            raise UserError(
                f"row {missing[0]} of {self.where} has no label; on_bad_image: skip leaves such images out."
            )
        return np.setdiff1d(rows, missing), [f"{counted(len(missing), 'image')} without a label"]


class ArrayTable(Table):
    """Images that are an array already: (N, H, W) or (N, H, W, C), all of one size."""

    def __init__(self, source, split: str, images: np.ndarray, labels, names, identity: str):
        super().__init__(source, split, len(images), labels, names, identity)
        self.images = images


class EncodedTable(Table):
    """Images in the files that a ``datasets.Dataset`` holds or points to."""

    def __init__(self, source, split: str, table):
        self.column, label_column, caption_column, note = image_columns(table.features, source, table)
        labels, names = (
            label_values(table, label_column, source.dataset) if label_column and len(table) else (None, None)
        )
        captions = [_captions_of(value) for value in table[caption_column]] if caption_column else None
        identity = f"{table._fingerprint} {self.column}"
        super().__init__(source, split, len(table), labels, names, identity, captions)
        self.note = note
        # as arrow: rows are neither decoded nor made Python objects before they are asked for
        self.table = as_images(table.select_columns(self.column), self.column).with_format("arrow")

    def files_state(self) -> str:
        """The sizes and times of the files, as a hash: there may be millions."""
        state = hashlib.sha256()
        for chunk in self.table.data.column(self.column).chunks:  # of all rows that lie below: those chosen are of them
            fields = dict(zip((field.name for field in chunk.type), chunk.flatten()))
            for path in fields["path"].filter(fields["bytes"].is_null()).to_pylist():
                state.update(_file_state(located(path, self.source)).encode())
        return state.hexdigest()

    def encoded(self, rows: np.ndarray) -> Iterator[tuple[int, Encoded]]:
        """The images of ``rows``, ascending, each with its row."""
        few = len(rows) * 8 < self.count  # picked one by one; otherwise all are read, in pieces without a copy
        wanted = np.zeros(self.count, bool)
        wanted[rows] = True
        batches = (self.table.select(rows) if few else self.table).iter(ROWS_AT_ONCE)
        images = (image for batch in batches for image in encoded_images(batch[self.column]))
        for row, image in zip(rows if few else range(self.count), images):
            if wanted[row]:
                yield int(row), image if image.bytes is not None else Encoded(None, located(image.path, self.source))


def located(path: str | None, source) -> str | None:
    """A path of a table's, which may be relative to the folder of the data set."""
    if path is None or os.path.isabs(path) or "://" in path:
        return path
    root = Path(source.dataset).expanduser()
    return str((root if root.is_dir() else root.parent) / path)


def as_images(table, column: str):
    """``table``, or a stream, with images, undecoded, in ``column``: whatever held the bytes or paths of files."""
    from datasets import Features, Image

    kind = table.features[column]
    if isinstance(kind, dict) and set(kind) != {"bytes", "path"}:  # in another order, or with more fields

        def plain(values):
            return {column: [v and {"bytes": v["bytes"], "path": v.get("path")} for v in values]}

        features = Features({**table.features, column: Image(decode=False)})
        return table.map(plain, batched=True, input_columns=column, features=features)
    return table.cast_column(column, Image(decode=False))


def _file_state(path: str | None) -> str:
    try:
        found = os.stat(path or "")
    except (OSError, ValueError):  # not there, or not on this disk
        return "none "
    return f"{found.st_size} {found.st_mtime_ns} "


def encoded_images(column) -> Iterator[Encoded]:
    """The images of an Arrow column of structs with bytes and path."""
    for chunk in column.chunks:
        fields = dict(zip((field.name for field in chunk.type), chunk.flatten()))
        for image_bytes, path in zip(fields["bytes"], fields["path"]):
            yield Encoded(image_bytes.as_py(), path.as_py())


# ---- columns


IMAGE_NAMES = (
    "image",
    "img",
    "picture",
    "photo",
    "png",
    "jpg",
    "jpeg",
    "webp",
    "pixels",
    "images",
    "file_name",
    "path",
)
LABEL_NAMES = ("label", "labels", "class", "cls", "category", "target", "class_name", "label_name")
CAPTION_NAMES = ("text", "caption", "captions", "txt", "prompt", "description")
MOST_CLASSES = 0.5  # of the rows: a column with more different values names rows, not classes
MOST_ROWS = 100_000  # that are looked at


def image_columns(features, source, table=None) -> tuple[str, str | None, str | None, str | None]:
    """The names of the image, label and caption columns, and a line where several columns could be the labels.

    Args:
        table: the rows, where they are at hand: a column that is not called like labels can be told by them.

    Raises:
        UserError: if there is no image column, or none of the name that ``source`` gives.
    """
    from datasets import ClassLabel, Image, Value

    where = f"data set {source.dataset!r}"
    named = (source.image_column, source.label_column, source.caption_column)
    for column in filter(None, named):
        if column not in features:
            raise UserError(f"{where} has no column {column!r}; {nearest(column, features)}")
    holds = {name for name, kind in features.items() if isinstance(kind, Image) or _may_hold_images(kind)}
    image_column = source.image_column or _column_of_type(features, Image) or _named(holds, IMAGE_NAMES)
    if image_column is None:
        kinds = [name for name in holds if not _is_text(features[name])]
        image_column = kinds[0] if len(kinds) == 1 else None
    if image_column is None:
        raise UserError(f"{where} has no images: its columns are {', '.join(features) or 'none'}.")
    if image_column not in holds:
        raise UserError(f"column {image_column!r} of {where} does not hold images.")
    texts = {name for name, kind in features.items() if _holds_texts(kind) and name not in named[:2]}
    caption_column = source.caption_column or _named(texts, CAPTION_NAMES)
    if caption_column and not _holds_texts(features[caption_column]):
        raise UserError(f"column {caption_column!r} of {where} does not hold texts.")
    label_column = source.label_column or _column_of_type(features, ClassLabel)
    plain = {name for name, kind in features.items() if isinstance(kind, Value)} - {image_column, caption_column}
    label_column = label_column or _named(plain, LABEL_NAMES)
    if label_column or table is None:
        return image_column, label_column, caption_column, None
    likely = [name for name in features if name in plain and _looks_like_labels(table, name)]
    if len(likely) == 1:
        return image_column, likely[0], caption_column, None
    note = f"columns {', '.join(likely)} of {where} could be labels: label_column names the one" if likely else None
    return image_column, None, caption_column, note


def _named(columns: set[str], names: tuple[str, ...]) -> str | None:
    """The column of the first of ``names`` that there is, in any case."""
    by_name = {column.lower(): column for column in sorted(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _is_text(kind) -> bool:
    from datasets import Value

    return isinstance(kind, Value) and kind.dtype in ("string", "large_string")


def _holds_texts(kind) -> bool:
    """A text in each row, or a list of some."""
    from datasets import LargeList, List

    return _is_text(kind.feature if isinstance(kind, List | LargeList) else kind)


def _captions_of(value: str | list | None) -> str | list[str]:
    """The captions of a row: of several, those that say something."""
    return [text for text in value if text] if isinstance(value, list) else value or ""


def _may_hold_images(kind) -> bool:
    from datasets import Value

    if isinstance(kind, dict):
        return {"binary", "large_binary", "null"} & {getattr(kind.get("bytes"), "dtype", None)} != set()
    return isinstance(kind, Value) and kind.dtype in ("binary", "large_binary", "string", "large_string")


def _looks_like_labels(table, column: str) -> bool:
    """Whether a column has few different whole numbers or texts."""
    if not table.features[column].dtype.startswith(("int", "uint", "string", "large_string", "bool")):
        return False
    if column.lower() in ("id", "index", "idx", "__key__", "__url__", "width", "height", "size", "split", "subset"):
        return False
    values = table.with_format("arrow")[column][:MOST_ROWS]
    return 2 <= len(values.unique()) <= MOST_CLASSES * len(values) and not values.null_count


def _column_of_type(features, kind) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)


def label_values(table, column: str, dataset: str) -> tuple[np.ndarray, list[str]]:
    """Labels int64 (N,), -1 for none, and the names of their classes: plain numbers and texts in their order.

    Raises:
        UserError: if the column holds something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import ClassLabel, Value

    feature = table.features[column]
    kind = feature.dtype if isinstance(feature, Value) else ""
    if not isinstance(feature, ClassLabel) and not kind.startswith(("int", "uint", "string", "large_string", "bool")):
        raise UserError(f"column {column!r} of data set {dataset!r} holds no labels; expected whole numbers or names.")
    values = table.with_format("arrow")[column]
    values = values[:] if not hasattr(values, "null_count") else values
    if isinstance(feature, ClassLabel):
        return values.fill_null(-1).to_numpy().astype(np.int64), list(feature.names)
    # numbered in order: a label of 1,000,000 must not make a million classes; nothing, "" and below 0 are no label
    found = sorted(value for value in pc.unique(values).to_pylist() if value is not None and value != "")
    found = [value for value in found if isinstance(value, str) or value >= 0]
    labels = pc.index_in(values, value_set=pa.array(found, type=values.type)).fill_null(-1).to_numpy()
    return labels.astype(np.int64), [str(name) for name in found]
