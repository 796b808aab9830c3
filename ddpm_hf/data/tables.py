"""One split of a source, opened but not decoded: rows with an image each, and their labels."""

import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddpm_hf.errors import UserError, nearest

ROWS_AT_ONCE = 256


class Encoded(NamedTuple):
    """The image of a row as its source has it: the bytes of a file, the path of one, or neither."""

    bytes: bytes | None
    path: str | None


class Table:
    """Rows of one split.

    labels: int64 (N,), or None. names: class names in the order of the labels, or None. identity: text that changes
    when the rows do. where: how messages call it.
    """

    def __init__(self, source, split: str, count: int, labels, names, identity: str):
        self.source, self.split, self.count, self.identity = source, split, count, identity
        self.where = f"data set {source.dataset!r}"
        if not count:
            raise UserError(f"{self.where} has no images in split {split!r}.")
        self.labels, self.names = labels, names

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

    def check_labels(self):
        """Raise a UserError for a label below 0."""
        if self.labels is not None and self.labels.min() < 0:
            row = int(self.labels.argmin())
            raise UserError(f"row {row} of {self.where} has the label {self.labels[row]}; labels count from 0.")


class ArrayTable(Table):
    """Images that are an array already: uint8 (N, H, W), all of one size and gray."""

    def __init__(self, source, split: str, images: np.ndarray, labels, identity: str):
        super().__init__(source, split, len(images), labels, None, identity)
        self.images = images


class EncodedTable(Table):
    """Images in the files that a ``datasets.Dataset`` holds or points to."""

    def __init__(self, source, split: str, table):
        self.column, label_column = image_columns(table.features, source)
        labels, names = (
            label_values(table, label_column, source.dataset) if label_column and len(table) else (None, None)
        )
        super().__init__(source, split, len(table), labels, names, f"{table._fingerprint} {self.column}")
        # as arrow: rows are neither decoded nor made Python objects before they are asked for
        self.table = table.select_columns(self.column).with_format("arrow")

    def files_state(self) -> str:
        """The sizes and times of the files, as a hash: there may be millions."""
        state = hashlib.sha256()
        for chunk in self.table.data.column(self.column).chunks:  # of all rows that lie below: those chosen are of them
            fields = dict(zip((field.name for field in chunk.type), chunk.flatten()))
            for path in fields["path"].filter(fields["bytes"].is_null()).to_pylist():
                state.update(_file_state(path).encode())
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
                yield int(row), image


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


def image_columns(features, source) -> tuple[str, str | None]:
    """The names of the image column and, where there is one, of the label column.

    Raises:
        UserError: if there is no image column, or none of the name that ``source`` gives.
    """
    from datasets import ClassLabel, Image, Value

    where = f"data set {source.dataset!r}"
    image_column = source.image_column or _column_of_type(features, Image)
    if image_column is None:
        raise UserError(f"{where} has no images: its columns are {', '.join(features) or 'none'}.")
    for column in filter(None, (image_column, source.label_column)):
        if column not in features:
            raise UserError(f"{where} has no column {column!r}; {nearest(column, features)}")
    if not isinstance(features[image_column], Image):
        raise UserError(f"column {image_column!r} of {where} does not hold images.")
    label_column = source.label_column or _column_of_type(features, ClassLabel)
    if label_column is None and isinstance(features.get("label"), Value):
        label_column = "label"
    return image_column, label_column


def _column_of_type(features, kind) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)


def label_values(table, column: str, dataset: str) -> tuple[np.ndarray, list[str]]:
    """Labels int64 (N,) and the names of their classes: plain numbers and texts are numbered in their order.

    Raises:
        UserError: if the column holds something else, or nothing in one of its rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import ClassLabel, Value

    feature = table.features[column]
    kind = feature.dtype if isinstance(feature, Value) else ""
    if not isinstance(feature, ClassLabel) and not kind.startswith(("int", "uint", "string", "large_string", "bool")):
        raise UserError(f"column {column!r} holds no labels: whole numbers or names would be right.")
    values = table.with_format("arrow")[column]
    values = values[:] if not hasattr(values, "null_count") else values
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise UserError(f"row {row} of data set {dataset!r} has no label in column {column!r}.")
    if isinstance(feature, ClassLabel):
        return values.to_numpy().astype(np.int64), list(feature.names)
    # numbered in order: a label of 1,000,000 must not make a million classes
    found = sorted(pc.unique(values).to_pylist())
    labels = pc.index_in(values, value_set=pa.array(found, type=values.type)).to_numpy()
    return labels.astype(np.int64), [str(name) for name in found]
