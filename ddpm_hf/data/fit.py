"""Decoding the rows of a table and bringing all of them to one size and one number of channels."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ddpm_hf.data.images import BadImage, area, crop, decode, file_name, header, is_gray, pad, padding, to_mode
from ddpm_hf.data.tables import ArrayTable, Encoded, Table
from ddpm_hf.errors import UserError

CHUNK = 64  # rows that a thread decodes at a time
ARRAY_CHUNK = 4096
PROBED_IMAGES = 64


@dataclass(frozen=True)
class Fitting:
    """How images become arrays; the settings of those names of ``TrainConfig``."""

    sample_size: int = 32
    image_mode: str = "auto"
    resize: str = "auto"
    on_bad_image: str = "error"


@dataclass(frozen=True)
class Rule:
    """What ``Fitting`` comes to for the images at hand.

    way: "pad", "crop" or "area". shape: (height, width) that all images have, where they are padded, and, of a stream,
    where they are averaged.
    follow: True for images that have to go with what others decided: another mode is converted, another size, unless
    padding was asked for, scaled and cropped to ``shape``.
    """

    channels: int
    way: str
    shape: tuple[int, int] | None = None
    follow: bool = False


class WrongRule(Exception):
    """An image does not go with the rule that was guessed from others. ``rule`` is one that it goes with."""

    def __init__(self, rule: Rule):
        super().__init__()
        self.rule = rule


@dataclass
class Report:
    """What was met: the sizes of images (two of them, if there are more), and the (row, line) of the bad ones."""

    shapes: set[tuple[int, int]] = field(default_factory=set)
    skipped: list[tuple[int, str]] = field(default_factory=list)


def guess_rule(parts: list[tuple[Table, np.ndarray]], fitting: Fitting) -> Rule:
    """The rule for the rows of several tables, from the headers of a few of them, evenly spaced."""
    return rule_of([found for table, rows in parts for found in _probe(table, rows)], fitting)


def rule_of(seen: list[tuple[bool, tuple[int, int]]], fitting: Fitting) -> Rule:
    """The rule for images of which ``header`` told whether they are gray, and their (height, width)."""
    gray = all(gray for gray, _ in seen)
    channels = {"L": 1, "RGB": 3}.get(fitting.image_mode, 1 if gray else 3)
    shapes = {shape for _, shape in seen}
    if fitting.resize == "auto":
        fits = len(shapes) == 1 and all(max(shape) <= fitting.sample_size for shape in shapes)
        return Rule(channels, "pad", shapes.pop()) if fits else Rule(channels, "crop")
    return Rule(channels, fitting.resize, seen[0][1] if fitting.resize == "pad" and seen else None)


def _probe(table: Table, rows: np.ndarray) -> list[tuple[bool, tuple[int, int]]]:
    if isinstance(table, ArrayTable):
        return [(True, table.images.shape[1:])]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), PROBED_IMAGES)).astype(np.int64))
    return [found for _, encoded in table.encoded(rows[chosen]) if (found := header(*encoded))]


def fit_rows(
    table: Table, rows: np.ndarray, fitting: Fitting, rule: Rule, report: Report, progress: tqdm
) -> Iterator[np.ndarray]:
    """The images of ``rows``, ascending, in pieces uint8 (B, C, S, S).

    Raises:
        WrongRule: where an image does not go with a ``rule`` that was only guessed.
        UserError: for an image that cannot be used, unless such are skipped, or of another size than asked for.
    """
    if isinstance(table, ArrayTable):
        pieces = _fit_array(table, rows, fitting, rule, report)
    else:
        pieces = _fit_encoded(table, rows, fitting, rule, report)
    for count, images in pieces:
        progress.update(count)
        yield images


def _fit_array(
    table: ArrayTable, rows, fitting: Fitting, rule: Rule, report: Report
) -> Iterator[tuple[int, np.ndarray]]:
    shape = tuple(table.images.shape[1:])
    if min(shape) < 2:
        raise UserError(f"images of {table.where} are {shape[0]}x{shape[1]} pixels; at least 2x2 would be right.")
    report.shapes.add(shape)
    size, fitter = fitting.sample_size, Fitter(table.where, fitting, rule)
    if rule.way == "pad":
        fitter.check_shape(int(rows[0]), shape)
    for start in range(0, len(rows), ARRAY_CHUNK):
        chosen = rows[start : start + ARRAY_CHUNK]
        if rule.way == "pad" and shape == rule.shape:
            images = np.zeros((len(chosen), rule.channels, size, size), np.uint8)
            images[(slice(None), slice(None), *padding(*shape, size))] = table.images[chosen][:, None]
        else:
            images = np.stack([fitter.fit(int(row), Image.fromarray(table.images[row])) for row in chosen])
        yield len(chosen), images


def _fit_encoded(table, rows, fitting: Fitting, rule: Rule, report: Report) -> Iterator[tuple[int, np.ndarray]]:
    """Decoded by threads: Pillow lets go of the interpreter while it decodes."""
    fitter = Fitter(table.where, fitting, rule)
    with ThreadPoolExecutor(num_threads()) as pool:
        for count, images, shapes, skipped in _in_order(pool, fitter.fit_chunk, chunks(table.encoded(rows))):
            report.shapes |= shapes if len(report.shapes) < 2 else set()
            report.skipped += skipped
            yield count, images


def num_threads() -> int:
    """How many decode at once: the processors this process may use, over the processes of this machine."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def chunks(items: Iterable) -> Iterator[list]:
    """``items`` by ``CHUNK``."""
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _in_order(pool: ThreadPoolExecutor, work, items: Iterable) -> Iterator:
    """``map``, but only a few items ahead: all encoded images at once would not fit in memory."""
    ahead = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * pool._max_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


class Fitter:
    """Fits single images of one source by a rule."""

    def __init__(self, where: str, fitting: Fitting, rule: Rule):
        self.where, self.fitting, self.rule = where, fitting, rule
        self.size, self.mode = fitting.sample_size, "L" if rule.channels == 1 else "RGB"

    def fit_chunk(self, items: list[tuple[int, Encoded]]):
        """How many rows, their images uint8 (B, C, S, S), up to two of their sizes, and the bad ones' (row, line)."""
        images = np.empty((len(items), self.rule.channels, self.size, self.size), np.uint8)
        shapes, skipped, filled = set(), [], 0
        for row, encoded in items:
            try:
                image = decode(*encoded)
                images[filled] = self.fit(row, image)
            except BadImage as error:
                line = f"row {row} of {self.where}{file_name(encoded.path, self.where)} {error}."
                if self.fitting.on_bad_image == "error":
                    raise UserError(f"{line[:-1]}; on_bad_image: skip leaves such images out.") from None
                skipped.append((row, line))
                continue
            filled += 1
            if len(shapes) < 2:
                shapes.add((image.height, image.width))
        return len(items), images[:filled], shapes, skipped

    def fit(self, row: int, image: Image.Image) -> np.ndarray:
        """One image as uint8 (C, S, S).

        Raises:
            BadImage, WrongRule, UserError: as ``decode`` and ``fit_rows`` do.
        """
        rule, shape = self.rule, (image.height, image.width)
        if rule.channels == 1 and self.fitting.image_mode == "auto" and not rule.follow and not is_gray(image):
            raise WrongRule(replace(rule, channels=3))
        image = to_mode(image, self.mode)
        if rule.way == "area":
            return area(image, self.size)
        if rule.way == "crop":
            return crop(image, self.size)
        if shape != rule.shape and rule.follow and self.fitting.resize == "auto":
            image = ImageOps.fit(image, rule.shape[::-1], Image.Resampling.LANCZOS)
        else:
            self.check_shape(row, shape)
        return pad(image, self.size)

    def check_shape(self, row: int, shape: tuple[int, int]):
        """Whether an image of ``shape`` can be padded like all others."""
        rule = self.rule
        if rule.shape is None:  # no header could be read
            raise WrongRule(replace(rule, shape=shape))
        if shape != rule.shape and self.fitting.resize == "auto" and not rule.follow:
            raise WrongRule(replace(rule, way="crop", shape=None))
        if max(rule.shape) > self.size:
            raise UserError(
                f"images of {rule.shape[0]}x{rule.shape[1]} cannot be padded to {self.size}x{self.size}; use resize: "
                f"crop."
            )
        if shape != rule.shape and self.fitting.resize == "pad":
            raise UserError(
                f"row {row} of {self.where} is {shape[0]}x{shape[1]}, others are {rule.shape[0]}x{rule.shape[1]}; use "
                f"resize: crop for images of several sizes."
            )


def progress_bar(total: int) -> tqdm:
    """A bar for reading ``total`` images; of several processes on a machine the first shows it."""
    hidden = total < 2000 or os.environ.get("LOCAL_RANK", "0") != "0"
    return tqdm(total=total, desc="reading images", unit="image", mininterval=1, disable=hidden)
