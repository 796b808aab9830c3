"""Decoding the rows of a table and bringing all of them to one size and one number of channels."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ddpm_hf.data.images import (
    DEEP_MODES,
    FULL,
    BadImage,
    Header,
    area,
    crop,
    decode,
    file_name,
    header,
    pad,
    padding,
    to_mode,
    whole,
)
from ddpm_hf.data.strips import as_lines
from ddpm_hf.data.tables import ArrayTable, Encoded, Table
from ddpm_hf.errors import UserError

CHUNK = 64  # rows that a thread decodes at a time
ARRAY_CHUNK = 4096
RANGED_IMAGES = 4096


@dataclass(frozen=True)
class Settings:
    """Which images are read and what they become; the settings of those names of ``TrainConfig``.

    cache: keep images that do not fit in memory on the disk for the next start.
    """

    sample_size: int = 32
    image_mode: str = "auto"
    resize: str = "auto"
    random_crop: bool = False
    pixel_range: str | tuple[float, float] = "auto"
    background: str = "white"
    on_bad_image: str = "error"
    max_images: int | None = None
    max_memory_gb: float = 4.0
    validation_split: str | None = "auto"
    validation_images: int = 1000
    seed: int = 0
    cache: bool = True


@dataclass(frozen=True)
class Rule:
    """What the settings come to for the images at hand, whose headers were read first.

    way: "pad", "crop" or "area"; "whole": as for crop, but nothing is cut off. shape: (height, width) that all images
    have, where they are padded or averaged; None where they have several, or are cropped. levels: the values of images
    of more than 8 bits that become black and white. num_lines: of whole images, the sum of the longer sides.
    """

    channels: int
    way: str
    shape: tuple[int, int] | None = None
    levels: tuple[float, float] = FULL
    num_lines: int = 0

    @property
    def output_resize(self) -> bool:
        """Whether generated images are to be scaled to ``shape``."""
        return self.way == "area" and self.shape is not None


class Seen(NamedTuple):
    """The header of the image of a row."""

    row: int
    header: Header


def rule_for(parts: list[tuple[Table, np.ndarray]], settings: Settings) -> Rule:
    """The rule for the rows of several tables.

    Raises:
        UserError: for images that cannot be padded as asked for.
    """
    deep, num_lines = [], 0  # deep: of each part the rows of more than 8 bits

    def seen(progress: tqdm):
        nonlocal num_lines
        for table, rows in parts:
            deep.append((table, []))
            sides = []
            for found in _headers(table, rows, progress):
                height, width = found.header.shape
                sides.append(round(max(height, width) * settings.sample_size / min(height, width)))
                if found.header.mode in DEEP_MODES:
                    deep[-1][1].append(found.row)
                yield table.where, found
            num_lines += round(len(rows) * sum(sides) / max(1, len(sides)))  # an array shows the header of one

    with progress_bar(sum(len(rows) for _, rows in parts), "reading headers") as progress:
        rule = rule_of(seen(progress), settings)
    if settings.random_crop and rule.way == "crop":
        rule = replace(rule, way="whole", num_lines=num_lines)
    if settings.pixel_range != "auto":
        return rule
    images = (image for table, rows in deep if rows for image in _images_of(table, rows))
    return replace(rule, levels=levels_of(images))


def rule_of(seen: Iterable[tuple[str, Seen]], settings: Settings) -> Rule:
    """The rule for images of which the headers were ``seen``, each with the name of its data set.

    Raises:
        UserError: for images that cannot be padded as asked for.
    """
    gray, shapes = True, {}
    for where, found in seen:
        gray &= found.header.gray
        shapes.setdefault(found.header.shape, (where, found.row))
    channels = {"L": 1, "RGB": 3}.get(settings.image_mode, 1 if gray else 3)
    levels = FULL if isinstance(settings.pixel_range, str) else tuple(settings.pixel_range)
    first = next(iter(shapes), None)
    fits = first is not None and max(first) <= settings.sample_size
    if settings.resize == "auto":
        padded = len(shapes) == 1 and fits
        return Rule(channels, "pad" if padded else "crop", first if padded else None, levels)
    if settings.resize == "pad" and first is not None:
        if not fits:
            _cannot_be_padded(first, settings.sample_size)
        for shape, (where, row) in shapes.items():
            refuse_other_shape(row, where, shape, first)
        return Rule(channels, "pad", first, levels)
    return Rule(channels, settings.resize, first if settings.resize == "area" and len(shapes) == 1 else None, levels)


def _headers(table: Table, rows: np.ndarray, progress: tqdm) -> Iterator[Seen]:
    if isinstance(table, ArrayTable):
        image = _array_image(table, rows[0]) if len(rows) else None
        deep = image is not None and image.mode in DEEP_MODES
        for row in rows if deep else rows[:1]:
            yield Seen(int(row), Header(table.images.ndim == 3, table.images.shape[1:3], image.mode))
        return
    for row, encoded in table.encoded(rows):
        progress.update()
        if found := header(*encoded):
            yield Seen(row, found)


def _array_image(table: ArrayTable, row: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(table.images[row]))


def levels_of(images: Iterable[Image.Image]) -> tuple[float, float]:
    """The range of the values of images of more than 8 bits: 0..1, 16 bits where half of them is used, or their own."""
    low, high, whole = np.inf, -np.inf, True
    for image in images:
        pixels = np.asarray(image)
        if image.mode in DEEP_MODES and np.isfinite(pixels).all():
            low, high = min(low, pixels.min()), max(high, pixels.max())
            whole &= image.mode != "F"
    if high <= 1 and low >= 0 and not whole:
        return (0.0, 1.0)
    if low >= high or (whole and low >= 0 and 32768 <= high <= 65535):
        return FULL
    return (float(low), float(high))


def _images_of(table: Table, rows: list[int]) -> Iterator[Image.Image]:
    """The images of ``rows``, at most ``RANGED_IMAGES``, evenly spaced."""
    chosen = np.array(rows)[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), RANGED_IMAGES)).astype(np.int64))]
    if isinstance(table, ArrayTable):
        return (_array_image(table, row) for row in chosen)
    return decoded(encoded for _, encoded in table.encoded(chosen))


def decoded(images: Iterable[Encoded]) -> Iterator[Image.Image]:
    """``images`` without those that cannot be read, which are named where they are fitted."""
    for encoded in images:
        with contextlib.suppress(BadImage):
            yield decode(*encoded)


def _cannot_be_padded(shape: tuple[int, int], size: int):
    raise UserError(f"images of {shape[0]}x{shape[1]} cannot be padded to {size}x{size}; use resize: crop.")


def refuse_other_shape(row: int, where: str, shape: tuple[int, int], common: tuple[int, int]):
    """Raise a UserError for an image of another shape than all others have."""
    if shape != common:
        raise UserError(
            f"row {row} of {where} is {shape[0]}x{shape[1]}, others are {common[0]}x{common[1]}; use resize: crop for "
            f"images of several sizes."
        )


def fit_rows(
    table: Table, rows: np.ndarray, settings: Settings, rule: Rule, skipped: list[tuple[int, str]], progress: tqdm
) -> Iterator["Piece"]:
    """The images of ``rows``, ascending, in pieces; adds the (row, line) of bad ones to ``skipped``.

    Raises:
        UserError: for an image that cannot be used, unless such are skipped, or of another size than asked for.
    """
    fitter = Fitter(table.where, settings, rule)
    if isinstance(table, ArrayTable):
        yield from _fit_array(table, rows, fitter, progress)
        return
    with ThreadPoolExecutor(num_threads()) as pool:  # Pillow lets go of the interpreter while it decodes
        for count, piece, bad in _in_order(pool, fitter.fit_chunk, chunks(table.encoded(rows))):
            skipped += bad
            progress.update(count)
            yield piece


def _fit_array(table: ArrayTable, rows: np.ndarray, fitter: "Fitter", progress: tqdm) -> Iterator["Piece"]:
    shape, size = tuple(table.images.shape[1:3]), fitter.size
    if min(shape) < 2:
        raise UserError(f"images of {table.where} are {shape[0]}x{shape[1]} pixels; it needs at least 2x2.")
    for start in range(0, len(rows), ARRAY_CHUNK):
        chosen = rows[start : start + ARRAY_CHUNK]
        plain = (
            table.images.ndim == 3 and table.images.dtype == np.uint8 and isinstance(fitter.settings.pixel_range, str)
        )
        if plain and fitter.rule.way == "pad" and shape == fitter.rule.shape:
            images = np.zeros((len(chosen), fitter.rule.channels, size, size), np.uint8)
            images[(slice(None), slice(None), *padding(*shape, size))] = table.images[chosen][:, None]
            piece = Piece(images, [])
        else:
            piece = fitter.joined([fitter.fit(int(row), _array_image(table, row)) for row in chosen])
        progress.update(len(chosen))
        yield piece


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


class Piece(NamedTuple):
    """Fitted images uint8 (B, C, S, S), or of whole ones the lines and lengths of ``Strips``."""

    images: np.ndarray
    lengths: list[int]


class Fitter:
    """Fits single images of one source by a rule.

    Args:
        place: where the image of a row is cropped, 0 to 1 along its longer side; None is the centre of all.
    """

    def __init__(self, where: str, settings: Settings, rule: Rule, place: Callable[[int], float] | None = None):
        self.where, self.settings, self.rule, self.place = where, settings, rule, place
        self.size, self.mode = settings.sample_size, "L" if rule.channels == 1 else "RGB"

    def fit_chunk(self, items: list[tuple[int, Encoded]]):
        """How many rows, the piece of their images, and the bad ones' (row, line)."""
        images, skipped = [], []
        for row, encoded in items:
            try:
                images.append(self.fit(row, decode(*encoded)))
            except BadImage as error:
                line = f"row {row} of {self.where}{file_name(encoded.path, self.where)} {error}."
                if self.settings.on_bad_image == "error":
                    raise UserError(f"{line[:-1]}; on_bad_image: skip leaves such images out.") from None
                skipped.append((row, line))
        return len(items), self.joined(images), skipped

    def joined(self, images: list[np.ndarray]) -> Piece:
        """Images that ``fit`` gave, in one array."""
        if self.rule.way == "whole":
            return Piece(*as_lines(images, self.rule.channels, self.size))
        return Piece(np.array(images, np.uint8).reshape(-1, self.rule.channels, self.size, self.size), [])

    def fit(self, row: int, image: Image.Image) -> np.ndarray:
        """One image as uint8 (C, S, S); of another shape than the rule's, one to be padded is scaled and cropped.

        A whole one is (C, H, W), its shorter side S.

        Raises:
            BadImage, UserError: as ``decode`` and ``fit_rows`` do.
        """
        rule, shape = self.rule, (image.height, image.width)
        image = to_mode(
            image,
            self.mode,
            levels=rule.levels,
            stretch=not isinstance(self.settings.pixel_range, str),
            background=self.settings.background,
        )
        if rule.way == "crop":
            return crop(image, self.size, 0.5 if self.place is None else self.place(row))
        if rule.way != "pad":
            return (area if rule.way == "area" else whole)(image, self.size)
        if rule.shape is not None and shape != rule.shape:
            if self.settings.resize == "pad":
                refuse_other_shape(row, self.where, shape, rule.shape)
            image = ImageOps.fit(image, rule.shape[::-1], Image.Resampling.LANCZOS)
        if max(image.size) > self.size:  # only where no header could be read
            _cannot_be_padded((image.height, image.width), self.size)
        return pad(image, self.size)


def progress_bar(total: int, what: str = "reading images") -> tqdm:
    """A bar for reading ``total`` images; of several processes on a machine the first shows it."""
    hidden = total < 2000 or os.environ.get("LOCAL_RANK", "0") != "0"
    return tqdm(total=total, desc=what, unit="image", mininterval=1, disable=hidden, leave=what != "reading headers")
