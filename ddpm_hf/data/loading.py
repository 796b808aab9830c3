"""Data sets whole: opened, numbered, fitted, and parted into what is trained on and what is validated on."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np

from ddpm_hf.data.arrays import ImageData, MappedImages
from ddpm_hf.data.classes import Classes, distinct_titles
from ddpm_hf.data.fit import Fitting, Report, Rule, WrongRule, fit_rows, guess_rule, progress_bar
from ddpm_hf.data.order import largest_remainders
from ddpm_hf.data.sources import VALIDATION_SPLITS, Source, Splits
from ddpm_hf.data.store import refuse_full_disk, stored_images
from ddpm_hf.data.tables import Table
from ddpm_hf.errors import UserError

HELD_OUT = 0.05  # of the images, where a set has no split to validate on
FEWEST_TO_HOLD_OUT = 20


class Part(NamedTuple):
    """Rows of a table, ascending."""

    table: Table
    rows: np.ndarray


@dataclass
class Fitted:
    """Images uint8 (N, C, S, S) of several parts, one after the other, and the rows of each that could be used.

    shape: the (height, width) that all had, where generated images can be brought back to it; else None.
    """

    images: np.ndarray | MappedImages
    parts: list[Part]
    rule: Rule
    shape: tuple[int, int] | None
    skipped: list[str]


def open_data(
    sources: Sequence[Source],
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
) -> tuple[ImageData, ImageData | None]:
    """The images to train on and those to validate on, None if there are none; settings as in ``TrainConfig``.

    Args:
        seed: chooses the images that are held out, where a set has no split to validate on.
        cache: keep images that do not fit in memory on the disk for the next start.

    Raises:
        UserError: naming the data set, split, column or row that is wrong.
    """
    fitting = Fitting(sample_size, image_mode, resize, on_bad_image)
    without = [source.dataset for source in sources if not source.weight]
    if 0 < len(without) < len(sources):
        raise UserError(f"data set {without[0]!r} has no weight, others have; give all a weight, or none.")
    splits = [Splits(source) for source in sources]
    tables = [opened.open(opened.source.split) for opened in splits]
    titles = distinct_titles([source.title for source in sources])
    classes = Classes(tables, titles)
    parts = [Part(table, np.arange(min(len(table), max_images or len(table)))) for table in tables]
    shares = _shares(sources, parts)
    validation = _validation_parts(splits, parts, validation_split, validation_images, shares, seed)

    whole = _fit_all(parts, fitting, max_memory_gb, cache)
    held = [np.isin(part.rows, v.rows if v.table is part.table else []) for part, v in zip(whole.parts, validation)]
    weights = tuple(shares) if len(sources) > 1 and sources[0].weight else None

    def image_data(images, parts: dict[int, Part], held_out: bool, **more) -> ImageData:
        labels = [classes.labels(number, part.table, part.rows) for number, part in parts.items()]
        return ImageData(
            images,
            np.concatenate(labels) if classes.labelled else None,
            classes.names,
            whole.shape or (sample_size, sample_size),
            output_resize=whole.rule.way == "area" and whole.shape is not None,
            sizes=tuple(len(part.rows) for part in parts.values()),
            source_names=tuple(titles[number] for number in parts),
            known_classes=len(classes),
            splits=tuple(_split_name(part, tables[number], held_out) for number, part in parts.items()),
            **more,
        )

    held_images = whole.images[np.flatnonzero(np.concatenate(held))]
    kept = {number: Part(p.table, p.rows[~out]) for number, (p, out) in enumerate(zip(whole.parts, held))}
    train = image_data(
        _without(whole.images, np.concatenate(held)), kept, False, weights=weights, skipped=tuple(whole.skipped)
    )
    pieces, used, skipped = [], {}, []
    for number, (part, own, out) in enumerate(zip(validation, whole.parts, held)):
        if part.table is own.table:
            images, held_images = np.split(held_images, [out.sum()])
            part = Part(own.table, own.rows[out])
        elif len(part.rows):
            own = _fit_in_memory([part], fitting, replace(whole.rule, follow=True))
            images, part = own.images, own.parts[0]
            skipped += own.skipped
        if len(part.rows):
            pieces.append(images)
            used[number] = part
    if not used:
        return train, None
    return train, image_data(np.concatenate(pieces), used, True, skipped=tuple(skipped))


def _split_name(part: Part, trained: Table, held_out: bool) -> str:
    return f"held out of {trained.split}" if held_out and part.table is trained else part.table.split


def _shares(sources: Sequence[Source], parts: list[Part]) -> list[float]:
    """Each set's share of the draws: its weight, or its share of the images where none has one; together 1."""
    weights = [source.weight or len(part.rows) for source, part in zip(sources, parts)]
    return [weight / sum(weights) for weight in weights]


# ---- what to validate on


def _validation_parts(splits, parts, split: str | None, most: int, shares, seed: int) -> list[Part]:
    """For every set the rows to validate on: of another split, or held out of its training rows; possibly none."""
    if split is None:
        return [Part(part.table, part.rows[:0]) for part in parts]
    sources = [opened.source for opened in splits]
    tables = [_validation_table(opened, split, sources) for opened in splits]
    quotas = [max(quota, 1) for quota in largest_remainders(most, shares)]
    identities = [part.table.identity for part in parts]
    result = []
    for table, part, quota in zip(tables, parts, quotas):
        if table is None:
            # of a set that is there twice, the same images: none of them is trained on
            quota = max(other for identity, other in zip(identities, quotas) if identity == part.table.identity)
            number = identities.index(part.table.identity)
            result.append(Part(part.table, _held_out(part.rows, quota, (seed, number))))
        else:
            result.append(Part(table, _spread(table, quota)))
    return result


def _validation_table(splits: Splits, split: str, sources: list[Source]) -> Table | None:
    """The split to validate on; None where "auto" finds none that training leaves alone and whose labels are told."""
    alike = [source for source in sources if source.reads_like(splits.source)]
    if split != "auto":
        for source in alike:
            source.refuse_to_validate_on(split)
        table = splits.open(split)
        table.check_labels()
        return table
    trained = {name for source in alike for name in source.split_names}
    for name in VALIDATION_SPLITS:
        if name in splits.names and name not in trained:
            table = splits.open(name)
            if table.labels is None or table.labels.min() >= 0:  # contests keep the labels of a test split, as -1
                return table
    return None


def _held_out(rows: np.ndarray, most: int, seed: tuple[int, int]) -> np.ndarray:
    if len(rows) < FEWEST_TO_HOLD_OUT:
        return rows[:0]
    count = max(1, min(most, int(len(rows) * HELD_OUT)))
    # the third number tells this choice from the orders of the epochs
    return np.sort(np.random.default_rng((seed[0], seed[1], 2**31)).permutation(rows)[:count])


def _spread(table: Table, most: int) -> np.ndarray:
    """Up to ``most`` rows, evenly spaced, and where there are classes evenly among them."""
    order = np.arange(len(table)) if table.labels is None else np.argsort(table.labels, kind="stable")
    if len(table) <= most:
        return np.arange(len(table))
    return np.sort(order[np.linspace(0, len(table) - 1, most).round().astype(np.int64)])


# ---- fitting


def _fit_all(parts: list[Part], fitting: Fitting, max_memory_gb: float, cache: bool) -> Fitted:
    """Images in memory, or, where they would be too large, in an Arrow file."""
    rule = guess_rule(parts, fitting)
    while True:
        num_bytes = sum(len(part.rows) for part in parts) * rule.channels * fitting.sample_size**2
        try:
            if num_bytes <= max_memory_gb * 2**30:
                return _fit_in_memory(parts, fitting, rule)
            return _fit_in_file(parts, fitting, rule, cache, num_bytes)
        except WrongRule as wrong:  # at most twice: another size, and color
            rule = wrong.rule


def _fit_in_memory(parts: list[Part], fitting: Fitting, rule: Rule) -> Fitted:
    size, total = fitting.sample_size, sum(len(part.rows) for part in parts)
    images, filled = np.empty((total, rule.channels, size, size), np.uint8), 0
    reports = [Report() for _ in parts]
    for piece in _pieces(parts, fitting, rule, reports):
        images[filled : filled + len(piece)] = piece
        filled += len(piece)
    return _fitted(images[:filled], parts, rule, _one_shape(rule, reports), [report.skipped for report in reports])


def _fit_in_file(parts: list[Part], fitting: Fitting, rule: Rule, cache: bool, num_bytes: int) -> Fitted:
    def make(writer) -> dict:
        refuse_full_disk(num_bytes)
        reports = [Report() for _ in parts]
        for piece in _pieces(parts, fitting, rule, reports):
            writer.write(piece)
        skipped = [report.skipped for report in reports]
        return {"rule": asdict(rule), "shape": _one_shape(rule, reports), "skipped": skipped}

    identities = [(part.table.identity, part.table.files_state(), len(part.rows)) for part in parts]
    key = json.dumps([identities, asdict(fitting)])
    images, told = stored_images(key, cache, make)
    shape = None if told["shape"] is None else tuple(told["shape"])
    rule = Rule(**{**told["rule"], "shape": told["rule"]["shape"] and tuple(told["rule"]["shape"])})
    return _fitted(images, parts, rule, shape, told["skipped"])


def _pieces(parts: list[Part], fitting: Fitting, rule: Rule, reports: list[Report]) -> Iterator[np.ndarray]:
    with progress_bar(sum(len(part.rows) for part in parts)) as progress:
        for part, report in zip(parts, reports):
            yield from fit_rows(part.table, part.rows, fitting, rule, report, progress)
            if len(report.skipped) == len(part.rows):
                raise UserError(
                    f"none of the {len(part.rows)} images of {part.table.where} can be used: {report.skipped[0][1]}"
                )


def _one_shape(rule: Rule, reports: list[Report]) -> tuple[int, int] | None:
    if rule.way == "pad":
        return rule.shape
    shapes = set().union(*(report.shapes for report in reports))
    return shapes.pop() if rule.way == "area" and len(shapes) == 1 else None


def _fitted(images, parts: list[Part], rule: Rule, shape, skipped: list[list]) -> Fitted:
    kept = [
        Part(part.table, np.setdiff1d(part.rows, [row for row, _ in bad], assume_unique=True) if bad else part.rows)
        for part, bad in zip(parts, skipped)
    ]
    return Fitted(images, kept, rule, shape, [line for bad in skipped for _, line in bad])


def _without(images: np.ndarray | MappedImages, held: np.ndarray) -> np.ndarray | MappedImages:
    """The images that are not ``held``, without a second copy of them."""
    if not held.any():
        return images
    kept = np.flatnonzero(~held)
    if isinstance(images, MappedImages):
        return images.subset(kept)
    for start in range(0, len(kept), 4096):  # to the front, where only images lie that have been moved or are held
        moved = kept[start : start + 4096]
        images[start : start + len(moved)] = images[moved]
    return images[: len(kept)]


def load_images(
    dataset: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: tuple[str, ...] | None = None,
    **settings,
) -> ImageData:
    """All images of one split of one data set; other settings as in ``open_data``."""
    source = Source(dataset, config_name, split, revision, image_column, label_column, label_names)
    return open_data([source], validation_split=None, **settings)[0]
