"""A data set read as it trains, for one that is larger than the disk; it resumes at the very image.

The ``datasets`` library reads: ``split_dataset_by_node`` gives a process its share, ``state_dict`` tells where it is.
Its shuffle buffer forgets its images when it resumes, so a process reads blocks of ``shuffle_buffer_size`` images here,
and gives each block's in an order that depends on (seed, rank, block).
"""

import atexit
import copy
import hashlib
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ddpm_hf.data.arrays import ImageData
from ddpm_hf.data.fit import Fitter, Rule, Settings
from ddpm_hf.data.folders import validation_names
from ddpm_hf.data.order import crop_places
from ddpm_hf.data.sources import Splits, library_errors
from ddpm_hf.data.streamed import StreamedSplit, UnknownLabel, fit_items
from ddpm_hf.data.tables import ROWS_AT_ONCE
from ddpm_hf.errors import UserError
from ddpm_hf.source import Source

HELD_OUT_EVERY = 20  # at most one image of so many is held out
LONGEST_WAIT = 30  # seconds, for a connection that hangs when the program ends

_STREAMS = weakref.WeakSet()


@atexit.register
def _close_all():
    """Arrow's threads end the process with an error when it goes away while they read."""
    for stream in list(_STREAMS):
        stream.close()


class Position(NamedTuple):
    """Where a block starts: its number, how many rows of the epoch were read before, the library's ``state_dict``."""

    block: int
    row: int
    data: dict


@dataclass
class Block:
    """Images uint8 (B, C, S, S) in their new order, their labels int64 (B,); where they start, and the next block."""

    start: Position
    end: Position
    images: np.ndarray
    labels: np.ndarray
    skipped: list[str]


class ImageStream:
    """Endless images of one process's share of a data set that is read as it goes.

    The share is that of ``split_dataset_by_node``: where the number of files divides by that of the processes, every
    process reads files of its own; otherwise all read all files, and each keeps every n-th row. Every image is seen
    once an epoch by one process; an epoch of a process ends with its share. A block may span an epoch's end. The files
    follow each other as ``set_epoch`` has them: datasets 5.2 gives them a new order every epoch, but for ``max_images``
    and held-out images; 4.0 does not.

    num_channels, num_classes, label_names, output_size, output_resize, splits: as of ``ImageData``. labels: None.
    fingerprint: text that changes with the data set's id, split, columns or number of files.
    left_out, notes: as of ``ImageData``, as far as it is known beforehand.
    skipped: a line for every image so far that could not be used.

    Args:
        share: the ``datasets.IterableDataset`` of this process, of the rows of ``split``.
    """

    def __init__(
        self,
        split: StreamedSplit,
        share,
        settings: Settings,
        rule: Rule,
        *,
        shuffle_buffer_size: int = 4096,
        rank: int = 0,
    ):
        self.split, self.settings, self.rule = split, settings, rule
        self.shuffle_buffer_size, self.rank = shuffle_buffer_size, rank
        self.label_names, self.num_channels = split.label_names, rule.channels
        self.num_classes = None if split.label_names is None else len(split.label_names)
        self.output_size = rule.shape or (settings.sample_size, settings.sample_size)
        self.output_resize = rule.output_resize
        self.source_names, self.skipped = (split.source.title,), []
        self.splits, self.labels = (split.split,), None
        self.left_out, self.notes = tuple(split.told.left_out), tuple(split.told.notes)
        source, data = split.source, split.data
        told = repr(
            (source.config, source.revision, split.split, str(data.features), data.num_shards, split.label_names)
        )
        self.fingerprint = f"stream:{source.dataset}:{hashlib.sha256(told.encode()).hexdigest()[:16]}"
        self._share, self._rows = share, None
        self._next, self._block, self._offset = Position(0, 0, share.state_dict()), None, 0
        self._coming, self._closed = None, False
        _STREAMS.add(self)

    def next(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next images of this process, uint8 (count, C, S, S), and their labels int64 (count,) or None.

        Raises:
            UserError: where the data set cannot be read on, or has an image that cannot be used.
        """
        images, labels = [], []
        while count:
            if self._block is None or self._offset == len(self._block.images):
                self._turn_to_next_block()
            chosen = slice(self._offset, self._offset + count)
            images.append(self._block.images[chosen])
            labels.append(self._block.labels[chosen])
            self._offset += len(images[-1])
            count -= len(images[-1])
        labels = None if self.num_classes is None else torch.from_numpy(np.concatenate(labels))
        return torch.from_numpy(np.concatenate(images)), labels

    def state_dict(self) -> dict:
        """Where this process is, JSON-able; ``load_state_dict`` of a stream of the same settings goes on from there."""
        start = self._next if self._block is None else self._block.start
        return {**start._asdict(), "offset": self._offset, "shards": self.split.data.num_shards}

    def load_state_dict(self, state: dict):
        """Go on from a state that ``state_dict`` gave.

        Raises:
            UserError: if the data set had another number of files then.
        """
        if state["shards"] != self.split.data.num_shards:
            raise UserError(
                f"{self.split.where} had {state['shards']} files when the run began, now {self.split.data.num_shards}; "
                f"give the revision it was started with."
            )
        self.close()
        self._closed, self._block, self._offset = False, None, 0
        self._next = Position(state["block"], state["row"], state["data"])
        if state["offset"]:
            self._turn_to_next_block()
            self._offset = state["offset"]

    def close(self):
        """Stop reading ahead, and wait until that has stopped."""
        self._closed = True
        if self._coming is not None:
            wait([self._coming], LONGEST_WAIT)
        self._coming = self._rows = None

    # ---- blocks

    def _turn_to_next_block(self):
        future, self._coming = self._coming or self._read_aside(self._next), None
        self._block, self._offset = future.result(), 0
        self.skipped += self._block.skipped
        self._next = self._block.end
        self._coming = self._read_aside(self._next)

    def _read_aside(self, start: Position) -> Future:
        """The block at ``start``, read by a thread, which does not keep the program from ending."""
        future = Future()

        def read():
            try:
                future.set_result(self._read(start))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        return future

    def _read(self, start: Position) -> Block:
        rows, self._rows = self._rows or self._rows_from(start), None  # read anew from ``start`` after an error
        size, found, skipped, row, ends = self.shuffle_buffer_size, 0, [], start.row, 0
        images = np.empty((size, self.num_channels, *(self.settings.sample_size,) * 2), np.uint8)
        labels = np.empty(size, np.int64)
        while found < size:
            self._refuse_to_go_on(found, ends)
            where = f"{self.split.where} (read by process {self.rank} in epoch {self._share.epoch})"
            items = self.split.items(rows, min(size - found, ROWS_AT_ONCE), first=row, where=where)
            fitter = Fitter(where, self.settings, self.rule, self._place if self.settings.random_crop else None)
            kept, kept_labels, lines = fit_items(items, fitter, self.label_names is not None)
            images[found : found + len(kept)] = kept
            labels[found : found + len(kept)] = kept_labels
            found, row, skipped = found + len(kept), row + len(items), skipped + lines
            if not items:
                self._share.set_epoch(self._share.epoch + 1)
                rows, row, ends = iter(self._share), 0, ends + 1
        self._rows = rows
        order = np.random.default_rng((self.settings.seed, self.rank, start.block, 1)).permutation(size)
        end = Position(start.block + 1, row, self._share.state_dict())
        return Block(start, end, images[order], labels[order], skipped)

    def _place(self, row: int) -> float:
        """Where the image of a row of this epoch is cropped."""
        return crop_places(self.settings.seed, row, 1, self.rank, self._share.epoch)[0]

    def _rows_from(self, start: Position) -> Iterator[dict]:
        """The rows one by one: datasets 4.0 loses some of a larger batch when it resumes a second time."""
        self._share.set_epoch(start.data["epoch"])
        self._share.load_state_dict(copy.deepcopy(start.data))
        return iter(self._share)

    def _refuse_to_go_on(self, found: int, ends: int):
        if self._closed:
            raise UserError(f"the stream of {self.split.where} was closed.")
        if ends > 1 and not found:
            raise UserError(f"{self.split.where} has no images in split {self.split.split!r} to train on.")


# ---- opening


def open_stream(
    source: Source, *, shuffle_buffer_size: int = 4096, rank: int = 0, num_processes: int = 1, **settings
) -> tuple[ImageStream, ImageData | None]:
    """The images to train on as a stream, and those to validate on in memory.

    Gray or color, and padded or cropped, is decided by the first images; later ones are brought to the same. Without
    another split to validate on, up to a twentieth of the images is held out: the first ones of every process's share.
    ``max_images`` are the first ones of the shares, too. ``max_memory_gb`` and ``cache`` change nothing here.

    Args:
        settings: of ``Settings``.
        rank, num_processes: which of how many processes this is; each has a stream of its own share.

    Raises:
        UserError: naming the data set, split, column or row that is wrong.
    """
    from datasets.distributed import split_dataset_by_node

    settings = Settings(**settings)
    splits = Splits(source, streaming=True)
    split = StreamedSplit(splits, source.split, settings.max_images)
    rule, data, validation = split.rule(settings), split.data, None
    if settings.validation_split is not None:
        if settings.validation_split != "auto":
            source.refuse_to_validate_on(settings.validation_split)
        validation = _of_another_split(splits, split, settings, rule)
        if validation is None:
            count = _num_held_out(split, splits.num_images(source.split), settings)
            # the library deals out the first n of all and the rest alike: together they are every share, once
            held = [split_dataset_by_node(data.take(count), i, num_processes) for i in range(num_processes)]
            data, validation = data.skip(count), _validation(split, held if count else [], settings, rule)
            validation = validation and replace(validation, splits=(f"held out of {split.split}",))
    if settings.max_images is not None and split.label_names is not None:
        split.told.notes.append("max_images takes the first images of a stream, not evenly from all classes")
    split.told.left_out += splits.unused([source.split, *(validation.splits if validation else ())])
    share = split_dataset_by_node(data, rank, num_processes)
    return ImageStream(split, share, settings, rule, shuffle_buffer_size=shuffle_buffer_size, rank=rank), validation


def _of_another_split(splits: Splits, trained: StreamedSplit, settings: Settings, rule: Rule) -> ImageData | None:
    split = settings.validation_split
    for name in validation_names(splits.names, trained.source.split_names) if split == "auto" else [split]:
        other = StreamedSplit(splits, name, trained=trained)
        try:
            return _validation(other, [other.data.take(settings.validation_images)], settings, rule)
        except UnknownLabel:  # contests keep the labels of a test split, as -1
            if split != "auto":
                raise
    return None


def _num_held_out(split: StreamedSplit, told: int | None, settings: Settings) -> int:
    """Where the Hub does not tell how many images there are, as many are counted as it takes."""
    most = settings.validation_images
    if told is None:
        with library_errors(split.source.dataset):
            told = sum(1 for _ in split.data.take(most * HELD_OUT_EVERY))
    return min(most, min(told, settings.max_images or told) // HELD_OUT_EVERY)


def _validation(split: StreamedSplit, shares: list, settings: Settings, rule: Rule) -> ImageData | None:
    """All images of ``shares`` of ``split``, fitted; None if there are none."""
    items = []
    for share in shares:
        items += split.items(iter(share), first=len(items))
    images, labels, skipped = fit_items(items, Fitter(split.where, settings, rule), split.label_names is not None)
    if not len(images):
        return None
    return ImageData(
        images,
        None if split.label_names is None else labels,
        split.label_names,
        rule.shape or (settings.sample_size, settings.sample_size),
        output_resize=rule.output_resize,
        sizes=(len(images),),
        source_names=(split.source.title,),
        splits=(split.split,),
        skipped=tuple(skipped),
        known_classes=len(split.label_names or ()),
    )
