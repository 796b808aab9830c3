"""A data set read as it trains, for one that is larger than the disk; it resumes at the very image.

A process reads blocks of ``shuffle_buffer_size`` images, and gives each block's in an order that depends on (seed,
rank, block). Where it is, is four whole numbers: the block, the part and the row it starts at, and how many of its
images were given.
"""

import atexit
import hashlib
import itertools
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ddpm_hf.data.arrays import ImageData
from ddpm_hf.data.fit import Fitter, Fitting, Rule, chunks, num_threads, rule_of
from ddpm_hf.data.images import header
from ddpm_hf.data.order import epoch_order
from ddpm_hf.data.sources import VALIDATION_SPLITS, Source, Splits, library_errors
from ddpm_hf.data.tables import ROWS_AT_ONCE, Encoded, encoded_images, image_columns
from ddpm_hf.errors import UserError, one_line

PROBED_IMAGES = 64
HELD_OUT_EVERY = 20
LONGEST_WAIT = 30  # seconds, for a connection that hangs when the program ends

_STREAMS = weakref.WeakSet()


@atexit.register
def _close_all():
    """Arrow's threads end the process with an error when it goes away while they read."""
    for stream in list(_STREAMS):
        stream.close()


class Position(NamedTuple):
    """Where a process reads on: the number of a part, counted on over the epochs, and a row of it."""

    turn: int
    row: int


class UnknownLabel(UserError):
    """A label that is none of the classes."""


class Parts:
    """The files of a data set's split, or what else the library reads one by one, as rows that are not decoded.

    labels of rows are in [0, len(label_names)), or None where there are no labels to train with.
    """

    def __init__(self, source: Source, split: str, streams: list, max_images: int | None = None):
        from datasets import Image

        self.source, self.split = source, split
        self.where = f"data set {source.dataset!r}"
        if streams[0].features is None:
            raise UserError(f"the columns of {self.where} are not known beforehand; streaming: false would be right.")
        self.column, self.label_column = image_columns(streams[0].features, source)
        self.label_names, self._ids = self._classes(streams[0].features)
        columns = [self.column] + ([self.label_column] if self.label_names else [])
        streams = [s.select_columns(columns).cast_column(self.column, Image(decode=False)) for s in streams]
        if max_images is not None:
            from datasets import concatenate_datasets

            streams = [concatenate_datasets(streams).take(max_images)]
        whole = max_images is not None  # the first images of all cannot be told part by part
        self._parts = [
            (stream, 1 if whole else stream.num_shards, i)
            for stream in streams
            for i in range(1 if whole else stream.num_shards)
        ]
        self.features = str(streams[0].features)

    def __len__(self) -> int:
        return len(self._parts)

    def rows(self, part: int, start: int = 0) -> Iterator[tuple[int, Encoded, int | None]]:
        """The rows of one part from number ``start`` on, each with its number and its label.

        Raises:
            UserError: where the part cannot be read, or for a label that is none of ``label_names``.
        """
        stream, count, index = self._parts[part]
        first = 0
        try:
            stream = stream.shard(count, index) if count > 1 else stream
            for batch in stream.with_format("arrow").iter(ROWS_AT_ONCE):
                if first + len(batch) > start:
                    batch = batch.slice(max(start - first, 0))
                    labels = batch[self.label_column].to_pylist() if self.label_names else [None] * len(batch)
                    row = max(start, first)
                    for encoded, label in zip(encoded_images(batch[self.column]), labels):
                        yield row, _fetched(encoded), self._label(part, row, label)
                        row += 1
                    first = row
                else:
                    first += len(batch)
        except (UserError, GeneratorExit):
            raise
        except Exception as error:  # the library has tried again by then; it raises the HTTP client's types, fsspec's
            raise UserError(
                f"part {part} of {self.where} cannot be read on from row {first}: {one_line(error)}; the same command "
                f"again resumes at the last checkpoint."
            ) from error

    def _classes(self, features) -> tuple[list[str] | None, dict]:
        """The names of the classes, and the label of every value that the column may hold."""
        from datasets import ClassLabel, Value

        if self.label_column is None:
            return None, {}
        feature, names = features[self.label_column], self.source.label_names
        kind = getattr(feature, "dtype", "")
        if isinstance(feature, ClassLabel):
            names = list(names or feature.names)
        elif names is None and self.source.label_column is None:
            return None, {}
        elif names is None or not isinstance(feature, Value) or not kind.startswith(("int", "uint", "string")):
            raise UserError(
                f"column {self.label_column!r} of {self.where} has no class names, and a stream does not tell how many "
                f"there are; label_names, and whole numbers or such names in the column, would be right."
            )
        return list(names), {name if kind == "string" else label: label for label, name in enumerate(names)}

    def _label(self, part: int, row: int, value) -> int | None:
        if self.label_names is None or value in self._ids:
            return self._ids.get(value)
        raise UnknownLabel(
            f"row {row} of part {part} of {self.where} has the label {value!r}, which is none of its "
            f"{len(self.label_names)} classes."
        )


def _fetched(encoded: Encoded) -> Encoded:
    """Of an image that is a file somewhere else, its bytes."""
    if encoded.bytes is not None or encoded.path is None or "://" not in encoded.path:
        return encoded
    from datasets.utils.file_utils import xopen

    with xopen(encoded.path, "rb") as file:
        return Encoded(file.read(), encoded.path)


@dataclass(frozen=True)
class HeldOut:
    """The rows that are not trained on: of every ``every`` rows of a part the last, up to ``most[part]`` of them."""

    every: int
    most: tuple[int, ...]

    def holds(self, part: int, row: int) -> bool:
        return row % self.every == self.every - 1 and row // self.every < self.most[part]

    def rows_to_read(self, part: int) -> int:
        return self.every * self.most[part]


@dataclass
class Block:
    """Images that are shuffled together, in their new order; where they start, and where the next block does."""

    number: int
    start: Position
    end: Position
    images: np.ndarray
    labels: np.ndarray | None
    skipped: list[str]


class ImageStream:
    """Endless images of a data set that is read as it goes.

    Where there are at least as many parts (files) as processes, each part is read by one process an epoch, in an order
    from (seed, epoch); otherwise every process reads all parts and keeps its share of the rows. Every image is seen
    once an epoch, but for the last few of a process, which share a block with the first of the next.

    num_channels, num_classes, label_names, output_size, output_resize: as of ``ImageData``.
    fingerprint: text that changes with the data set's id, split, columns or number of parts.
    skipped: a line for every image so far that could not be used.
    """

    def __init__(
        self,
        parts: Parts,
        fitting: Fitting,
        rule: Rule,
        *,
        held_out: HeldOut | None = None,
        shuffle_buffer_size: int = 4096,
        seed: int = 0,
        rank: int = 0,
        num_processes: int = 1,
    ):
        self.parts, self.fitting, self.rule, self.held_out = parts, fitting, rule, held_out
        self.shuffle_buffer_size, self.seed, self.rank, self.num_processes = (
            shuffle_buffer_size,
            seed,
            rank,
            num_processes,
        )
        self.by_part = len(parts) >= num_processes
        self.label_names, self.num_channels = parts.label_names, rule.channels
        self.num_classes = None if parts.label_names is None else len(parts.label_names)
        self.output_size = rule.shape or (fitting.sample_size, fitting.sample_size)
        self.output_resize = rule.way == "area" and rule.shape is not None
        self.source_names, self.skipped = (parts.source.title,), []
        source = parts.source
        told = repr((source.config, source.revision, parts.split, parts.features, len(parts), parts.label_names))
        self.fingerprint = f"stream:{source.dataset}:{hashlib.sha256(told.encode()).hexdigest()[:16]}"
        self._block, self._offset, self._coming, self._open = None, 0, None, None
        self._reader, self._closed = None, False
        _STREAMS.add(self)

    def next(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next images of this process, uint8 (count, C, S, S), and their labels int64 (count,) or None.

        Raises:
            UserError: where the data set cannot be read on, or has an image that cannot be used.
        """
        pieces = []
        while count:
            if self._block is None or self._offset == len(self._block.images):
                self._turn_to_next_block()
            chosen = slice(self._offset, self._offset + count)
            pieces.append(
                (self._block.images[chosen], None if self.num_classes is None else self._block.labels[chosen])
            )
            self._offset += len(pieces[-1][0])
            count -= len(pieces[-1][0])
        images = torch.from_numpy(np.concatenate([images for images, _ in pieces]))
        if self.num_classes is None:
            return images, None
        return images, torch.from_numpy(np.concatenate([labels for _, labels in pieces]))

    def state_dict(self) -> dict[str, int]:
        """Where this process is; ``load_state_dict`` of a stream of the same settings goes on at the next image."""
        number, start = (0, self._first()) if self._block is None else (self._block.number, self._block.start)
        return {"block": number, "turn": start.turn, "row": start.row, "offset": self._offset, "parts": len(self.parts)}

    def load_state_dict(self, state: dict[str, int]):
        """Go on from a state that ``state_dict`` gave.

        Raises:
            UserError: if the data set had another number of parts then.
        """
        if state["parts"] != len(self.parts):
            raise UserError(
                f"{self.parts.where} had {state['parts']} parts when the run began, now {len(self.parts)}; give the "
                f"revision it was started with."
            )
        self._block, self._offset = None, 0
        self._coming = self._start_reading(state["block"], Position(state["turn"], state["row"]))
        if state["offset"]:
            self._turn_to_next_block()
            self._offset = state["offset"]

    # ---- blocks

    def _turn_to_next_block(self):
        if self._coming is None:
            self._coming = self._start_reading(0, self._first())
        self._block, self._offset = self._coming.result(), 0
        self.skipped += self._block.skipped
        self._coming = self._start_reading(self._block.number + 1, self._block.end)

    def close(self):
        """Stop reading ahead, and wait until that has stopped."""
        self._closed = True
        if self._reader is not None:
            self._reader.join(LONGEST_WAIT)
        self._open = None

    def _start_reading(self, number: int, start: Position) -> Future:
        """Read a block in the background, after the one that is being read."""
        future, before = Future(), self._reader

        def read():
            if before is not None:
                before.join()
            try:
                future.set_result(self._read(number, start))
            except BaseException as error:
                future.set_exception(error)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        return future

    def _first(self) -> Position:
        return Position(self.rank if self.by_part else 0, 0)

    def _part_of(self, turn: int) -> int:
        epoch, place = divmod(turn, len(self.parts))
        return int(epoch_order(self.seed, epoch, len(self.parts))[place])

    def _read(self, number: int, start: Position) -> Block:
        """Block ``number``, which starts at ``start``."""
        size, found, position, skipped, barren = self.shuffle_buffer_size, 0, start, [], 0
        images = np.empty((size, self.num_channels, *(self.fitting.sample_size,) * 2), np.uint8)
        labels = np.empty(size, np.int64)
        with ThreadPoolExecutor(num_threads()) as pool:
            while found < size:
                if self._closed:
                    raise UserError(f"the stream of {self.parts.where} was closed.")
                rows, self._open = self._rows_from(position), None  # open at no known position until all went well
                items = list(itertools.islice(rows, min(size - found, ROWS_AT_ONCE)))
                barren = 0 if items else barren + 1
                if barren > len(self.parts):
                    raise UserError(f"{self.parts.where} has no images in split {self.parts.split!r} to train on.")
                for kept, kept_labels, lines in _fit(pool, self.parts, self._part_of(position.turn), items, self):
                    images[found : found + len(kept)] = kept
                    labels[found : found + len(kept)] = kept_labels
                    found += len(kept)
                    skipped += lines
                position = self._after(position, items)
                self._open = position, rows
        order = np.random.default_rng((self.seed, self.rank, number, 1)).permutation(size)
        return Block(number, start, position, images[order], labels[order], skipped)

    def _after(self, position: Position, items: list) -> Position:
        if items:
            return Position(position.turn, items[-1][0] + 1)
        return Position(position.turn + (self.num_processes if self.by_part else 1), 0)

    def _rows_from(self, position: Position) -> Iterator:
        """The rows of a part that this process trains on; the part is read on where it is open at ``position``."""
        if self._open is not None and self._open[0] == position and position.row:
            return self._open[1]
        part = self._part_of(position.turn)
        return (item for item in self.parts.rows(part, position.row) if self._is_mine(part, item[0]))

    def _is_mine(self, part: int, row: int) -> bool:
        if self.held_out is not None and self.held_out.holds(part, row):
            return False
        return self.by_part or row % self.num_processes == self.rank


def _fit(pool: ThreadPoolExecutor, parts: Parts, part: int, items: list, stream) -> Iterator[tuple]:
    """The images uint8 (B, C, S, S) of rows of a part, their labels (B,), and a line for every bad one."""
    fitter = Fitter(f"part {part} of {parts.where}", stream.fitting, stream.rule)
    pieces = pool.map(fitter.fit_chunk, chunks((row, encoded) for row, encoded, _ in items))
    for chunk, (_, images, _, skipped) in zip(chunks(items), pieces):
        bad = {row for row, _ in skipped}
        labels = [-1 if label is None else label for row, _, label in chunk if row not in bad]
        yield images, np.array(labels, np.int64), [line for _, line in skipped]


# ---- opening


def open_stream(
    source: Source,
    *,
    sample_size: int = 32,
    image_mode: str = "auto",
    resize: str = "auto",
    on_bad_image: str = "error",
    max_images: int | None = None,
    max_memory_gb: float = 4.0,
    validation_split: str | None = "auto",
    validation_images: int = 1000,
    seed: int = 0,
    cache: bool = True,
    shuffle_buffer_size: int = 4096,
    rank: int = 0,
    num_processes: int = 1,
) -> tuple[ImageStream, ImageData | None]:
    """The images to train on as a stream, and those to validate on in memory; settings as in ``TrainConfig``.

    Gray or color, and padded or cropped, is decided by the first images; later ones are brought to the same. Without
    another split to validate on, up to a twentieth of the rows is held out. ``max_memory_gb`` and ``cache``, settings
    of ``open_data``, change nothing here.

    Args:
        rank, num_processes: which of how many processes this is; each has a stream of its own share.

    Raises:
        UserError: naming the data set, split, column or row that is wrong.
    """
    del max_memory_gb, cache
    fitting = Fitting(sample_size, image_mode, resize, on_bad_image)
    splits = Splits(source, streaming=True)
    with library_errors(source.dataset):
        parts = Parts(source, source.split, splits.streams(source.split), max_images)
    rule = _rule(parts, fitting)
    held_out, validation = None, None
    if validation_split is not None:
        validation = _of_another_split(splits, parts, validation_split, validation_images, fitting, rule)
        if validation is None:
            held_out = _held_out(parts, splits.num_images(source.split), max_images, validation_images)
            validation = _validation(parts, parts, held_out, fitting, rule)
    stream = ImageStream(
        parts,
        fitting,
        rule,
        held_out=held_out,
        shuffle_buffer_size=shuffle_buffer_size,
        seed=seed,
        rank=rank,
        num_processes=num_processes,
    )
    return stream, validation


def _rule(parts: Parts, fitting: Fitting) -> Rule:
    """What the headers of the first images say; the same in every process."""
    rows = (encoded for part in range(len(parts)) for _, encoded, _ in parts.rows(part))
    seen = [found for encoded in itertools.islice(rows, PROBED_IMAGES) if (found := header(*encoded))]
    if not seen:
        raise UserError(f"none of the first images of {parts.where} can be read.")
    rule = rule_of(seen, fitting)
    if rule.way == "area" and len({shape for _, shape in seen}) == 1:
        rule = replace(rule, shape=seen[0][1])
    return replace(rule, follow=True)


def _held_out(parts: Parts, known: int | None, max_images: int | None, most: int) -> HeldOut:
    """The first rows of every part where their number is known, so that few are read; else every 20th."""
    every = HELD_OUT_EVERY
    if known is not None:
        most, every = min(most, min(known, max_images or known) // HELD_OUT_EVERY), 1
    return HeldOut(every, _dealt(most, len(parts)))


def _dealt(count: int, parts: int) -> tuple[int, ...]:
    """``count`` in ``parts`` parts that differ by at most 1."""
    return tuple(count // parts + (part < count % parts) for part in range(parts))


def _of_another_split(splits: Splits, trained: Parts, split: str, most: int, fitting, rule) -> ImageData | None:
    names = [name for name in VALIDATION_SPLITS if name in splits.names and name not in trained.source.split_names]
    for name in names if split == "auto" else [split]:
        with library_errors(trained.source.dataset):
            parts = Parts(trained.source, name, splits.streams(name))
        try:
            return _validation(trained, parts, HeldOut(1, _dealt(most, len(parts))), fitting, rule)
        except UnknownLabel:  # contests keep the labels of a test split, as -1
            if split != "auto":
                raise
    return None


def _validation(trained: Parts, parts: Parts, chosen: HeldOut, fitting: Fitting, rule: Rule) -> ImageData | None:
    """The ``chosen`` rows of ``parts``, fitted, with the labels of ``trained``; None if there are none."""
    stream = ImageStream(trained, fitting, rule)
    pieces = []
    with ThreadPoolExecutor(num_threads()) as pool:
        for part in range(len(parts)):
            rows = itertools.takewhile(lambda item, part=part: item[0] < chosen.rows_to_read(part), parts.rows(part))
            items = [item for item in rows if chosen.holds(part, item[0])] if chosen.most[part] else []
            pieces += _fit(pool, parts, part, items, stream)
    if not any(len(images) for images, _, _ in pieces):
        return None
    labels = np.concatenate([labels for _, labels, _ in pieces])
    return ImageData(
        np.concatenate([images for images, _, _ in pieces]),
        None if stream.num_classes is None else _renumbered(labels, trained, parts),
        stream.label_names,
        stream.output_size,
        output_resize=stream.output_resize,
        sizes=(len(labels),),
        source_names=stream.source_names,
        skipped=tuple(line for _, _, lines in pieces for line in lines),
        known_classes=stream.num_classes or 0,
    )


def _renumbered(labels: np.ndarray, trained: Parts, parts: Parts) -> np.ndarray:
    if parts.label_names == trained.label_names:
        return labels
    if parts.label_names is None:
        raise UserError(f"split {parts.split!r} of {parts.where} has no labels, split {trained.split!r} has.")
    ids = {name: label for label, name in enumerate(trained.label_names)}
    for label in np.unique(labels).tolist():
        if parts.label_names[label] not in ids:
            raise UserError(
                f"split {parts.split!r} of {parts.where} has the label {parts.label_names[label]!r}, which its split "
                f"{trained.split!r} does not have; choose another validation_split."
            )
    return np.array([ids.get(name, -1) for name in parts.label_names], np.int64)[labels]
