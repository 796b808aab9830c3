"""A split of a data set that is read as it goes: its rows, not decoded, and their labels."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ddpm_hf.data.fit import Fitter, Rule, Seen, Settings, chunks, decoded, levels_of, num_threads, rule_of
from ddpm_hf.data.images import DEEP_MODES, header
from ddpm_hf.data.sources import Splits, library_errors
from ddpm_hf.data.tables import Encoded, as_images, image_columns, located
from ddpm_hf.errors import UserError, one_line

PROBED_IMAGES = 64
NO_LABEL = -1

Item = tuple[int, Encoded, int]  # a row's number, its image and its label, -1 where there are no classes


class UnknownLabel(UserError):
    """A label that is none of the classes."""


class StreamedSplit:
    """A split, or several, 'train+test', one after the other.

    told: of the source. data: its ``datasets.IterableDataset``. label_names: the classes, or None where there are no
    labels to train with.

    Args:
        max_images: only so many; ``split_dataset_by_node`` makes them the first ones of every share.
        trained: the split whose classes the labels are of, matched by name; None for this one's own.

    Raises:
        UserError: naming the split or column that is wrong.
    """

    def __init__(self, splits: Splits, split: str, max_images: int | None = None, trained=None):
        from datasets import concatenate_datasets

        self.source, self.split, self.told = splits.source, split, splits.told
        self.where = f"data set {self.source.dataset!r}"
        with library_errors(self.source.dataset):
            streams = splits.streams(split)
            data = streams[0] if len(streams) == 1 else concatenate_datasets(streams)
        if data.features is None:
            raise UserError(f"the columns of {self.where} are not known in advance; use streaming: false.")
        self.column, self.label_column, _, _ = image_columns(data.features, self.source)
        classes = self._classes(data.features)
        self.label_names = (list(classes.values()) or None) if trained is None else trained.label_names
        ids = {name: label for label, name in enumerate(self.label_names or [])}
        self._labels = {value: ids[name] for value, name in classes.items() if name in ids}
        data = data.select_columns([self.column] + ([self.label_column] if classes else []))
        data = as_images(data, self.column)
        self.data = data if max_images is None else data.take(max_images)

    def items(self, rows: Iterator[dict], count: int | None = None, *, first: int = 0, where: str = "") -> list[Item]:
        """The next ``count`` of ``rows``, or all, numbered from ``first``.

        Raises:
            UserError: where they cannot be read, or for a label that is none of ``label_names``.
        """
        where = where or self.where
        try:
            found = list(itertools.islice(rows, count))
            images = [self._encoded(row[self.column]) for row in found]
        except Exception as error:  # the library has tried again by then; it raises the HTTP client's types, fsspec's
            raise UserError(
                f"{where} cannot be read on from row {first}: {one_line(error)}; the same command again resumes at the "
                f"last checkpoint."
            ) from error
        return [(i, image, self._label(i, row, where)) for i, (image, row) in enumerate(zip(images, found), first)]

    def rule(self, settings: Settings) -> Rule:
        """What the headers of the first images say; the same in every process."""
        items = self.items(iter(self.data.take(PROBED_IMAGES)))
        seen = [(self.where, Seen(row, found)) for row, encoded, _ in items if (found := header(*encoded))]
        if not seen:
            raise UserError(f"none of the first images of {self.where} can be read.")
        rule = rule_of(seen, settings)
        deep = [found.row for _, found in seen if found.header.mode in DEEP_MODES]
        if settings.pixel_range == "auto" and deep:
            by_row = {row: encoded for row, encoded, _ in items}
            rule = replace(rule, levels=levels_of(decoded(by_row[row] for row in deep)))
        return rule

    def _encoded(self, image: dict | None) -> Encoded:
        image = image or {"bytes": None, "path": None}
        if image["bytes"] is not None:
            return Encoded(**image)
        return _fetched(Encoded(None, located(image["path"], self.source)))

    def _classes(self, features) -> dict:
        """The name of the class of every value that the label column may hold, in order; {} without labels."""
        from datasets import ClassLabel, Value

        feature, names = features.get(self.label_column), self.source.label_names
        if feature is None:
            return {}
        if isinstance(feature, ClassLabel):
            return dict(enumerate(names or feature.names))
        if names is None and self.source.label_column is None:
            return {}
        if names is None or not isinstance(feature, Value) or not feature.dtype.startswith(("int", "uint", "string")):
            raise UserError(
                f"column {self.label_column!r} of {self.where} has no class names, and a stream does not tell "
                f"how many classes there are; set label_names, with whole numbers or these names in the column."
            )
        return {name: name for name in names} if feature.dtype == "string" else dict(enumerate(names))

    def _label(self, number: int, row: dict, where: str) -> int:
        value = row.get(self.label_column)
        if self.label_names is None or (value in (None, "", -1) and value not in self._labels):
            return self._labels.get(value, NO_LABEL)
        if value not in self._labels:
            classes = f"the {len(self.label_names)} classes"
            raise UnknownLabel(f"row {number} of {where} has the label {value!r}, which is none of {classes}.")
        return self._labels[value]


def _fetched(encoded: Encoded) -> Encoded:
    """Of an image that is a file somewhere else, its bytes."""
    if encoded.bytes is not None or encoded.path is None or "://" not in encoded.path:
        return encoded
    from datasets.utils.file_utils import xopen

    with xopen(encoded.path, "rb") as file:
        return Encoded(file.read(), encoded.path)


def fit_items(items: list[Item], fitter: Fitter, labelled: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The images uint8 (B, C, S, S) of ``items``, their labels int64 (B,), and a line for every bad one.

    Args:
        labelled: whether an image without a label cannot be used.

    Raises:
        UserError: for a bad image, unless such are skipped.
    """
    unlabelled = {}
    if labelled:
        unlabelled = {row: f"row {row} of {fitter.where} has no label." for row, _, label in items if label == NO_LABEL}
    if unlabelled and fitter.settings.on_bad_image == "error":
        raise UnknownLabel(f"{next(iter(unlabelled.values()))[:-1]}; on_bad_image: skip leaves such images out.")
    items = [item for item in items if item[0] not in unlabelled]
    with ThreadPoolExecutor(num_threads()) as pool:
        pieces = list(pool.map(fitter.fit_chunk, chunks((row, encoded) for row, encoded, _ in items)))
    images = [np.empty((0, fitter.rule.channels, fitter.size, fitter.size), np.uint8)]
    images += [piece.images for _, piece, _ in pieces]
    skipped = dict(pair for *_, bad in pieces for pair in bad)
    labels = np.array([label for row, _, label in items if row not in skipped], np.int64)
    return np.concatenate(images), labels, [*unlabelled.values(), *skipped.values()]
