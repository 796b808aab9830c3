"""Data sets whole: opened, numbered, parted into what is trained on and what is validated on, and fitted."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from ddpm_hf.data.arrays import ImageData
from ddpm_hf.data.classes import Classes, distinct_titles
from ddpm_hf.data.fit import Rule, Settings, fit_rows, progress_bar, rule_for
from ddpm_hf.data.folders import validation_names
from ddpm_hf.data.images import FULL
from ddpm_hf.data.order import largest_remainders
from ddpm_hf.data.sources import Splits
from ddpm_hf.data.store import find_images, store_images
from ddpm_hf.data.strips import Strips
from ddpm_hf.data.tables import Table
from ddpm_hf.errors import UserError
from ddpm_hf.source import Source

HELD_OUT = 0.05  # of the images, where a set has no split to validate on
FEWEST_TO_HOLD_OUT = 20
FITTING = ("sample_size", "image_mode", "resize", "random_crop", "pixel_range", "background", "on_bad_image")
ALIKE = 2  # of 256: pictures that differ by no more look the same
COMPARED_IMAGES = 64
MOST_NAMED = 6  # classes that a line names


class Part(NamedTuple):
    """Rows of a table, ascending."""

    table: Table
    rows: np.ndarray


def open_data(sources: Sequence[Source], **settings) -> tuple[ImageData, ImageData | None]:
    """The images to train on and those to validate on, None if there are none.

    Args:
        settings: of ``Settings``; ``seed`` chooses the images that are held out, where a set has no split to validate
            on.

    Raises:
        UserError: naming the data set, split, column or row that is wrong.
    """
    settings = Settings(**settings)
    without = [source.dataset for source in sources if not source.weight]
    if 0 < len(without) < len(sources):
        raise UserError(f"data set {without[0]!r} has no weight, others have; give all a weight, or none.")
    splits = [Splits(source) for source in sources]
    tables = [opened.open(opened.source.split) for opened in splits]
    titles = distinct_titles([source.title for source in sources])
    classes = Classes(tables, titles)
    parts, left_out, notes = [], [], []
    for opened, table, title in zip(splits, tables, titles):
        rows, lines = table.usable_rows(settings.on_bad_image == "skip")
        parts.append(Part(table, _first_rows(table, rows, settings.max_images)))
        beyond = len(rows) - len(parts[-1].rows)
        lines = [*opened.told.left_out, *lines, *([f"{beyond:,} beyond max_images"] if beyond else [])]
        of = f" of {title}" if len(sources) > 1 else ""
        left_out += [line + of for line in lines]
        notes += [line + of for line in opened.told.notes] + [table.note] * bool(table.note)
    shares = _shares(sources, parts)
    validation = _validation_parts(splits, parts, settings, shares)
    for opened in splits:
        alike = [number for number, other in enumerate(sources) if other.reads_like(opened.source)]
        left_out += opened.unused({part.table.split for n in alike for part in (parts[n], validation[n])})
    held = [Part(p.table, v.rows if v.table is p.table else v.rows[:0]) for p, v in zip(parts, validation)]
    kept = [Part(p.table, np.setdiff1d(p.rows, h.rows, assume_unique=True)) for p, h in zip(parts, held)]

    # what is trained on first, then what is held out: two slices of one array
    images, rule, used, skipped = _fit_all([*kept, *held], settings)
    kept, held = used[: len(kept)], used[len(kept) :]
    count = sum(len(part.rows) for part in kept)

    def image_data(images, parts: dict[int, Part], **more) -> ImageData:
        labels = [classes.labels(number, part.table, part.rows) for number, part in parts.items()]
        return ImageData(
            images,
            np.concatenate(labels) if classes.labelled else None,
            classes.names,
            rule.shape or (settings.sample_size, settings.sample_size),
            output_resize=rule.output_resize,
            sizes=tuple(len(part.rows) for part in parts.values()),
            source_names=tuple(titles[number] for number in parts),
            known_classes=len(classes),
            captions=_captions(list(parts.values())),
            **more,
        )

    train = image_data(
        images[:count],
        dict(enumerate(kept)),
        splits=tuple(table.split for table in tables),
        weights=tuple(shares) if len(sources) > 1 and sources[0].weight else None,
        skipped=tuple(skipped),
    )
    if rule.levels != FULL:
        low, high = rule.levels
        notes.append(f"pixel values {low:g} to {high:g} become black to white; pixel_range changes that")
    few = train.images[np.linspace(0, count - 1, min(count, COMPARED_IMAGES)).astype(np.int64)]
    if len(few) > 1 and (few.max(0).astype(int) - few.min(0)).max() <= ALIKE:
        notes.append("all images come out alike; for transparent ones choose another background, for dark pixel_range")
    if train.labels is not None:
        counts = np.bincount(train.labels, minlength=train.num_classes)
        shown = train.label_names or range(train.num_classes)
        if unused := [str(name) for name, found in zip(shown, counts) if not found]:
            notes.append(f"classes without images ({len(unused):,}): {', '.join(unused[:MOST_NAMED])}")
    train = replace(train, left_out=tuple(dict.fromkeys(left_out)), notes=tuple(notes))
    pieces, used, names, skipped, held_images = [], {}, [], [], images[count:]
    for number, (part, own) in enumerate(zip(validation, held)):
        if part.table is own.table:
            part, name = own, f"held out of {own.table.split}"
            piece, held_images = held_images[: len(own.rows)], held_images[len(own.rows) :]
        else:
            name = part.table.split
            piece, (part,), bad = _fit_in_memory([part], settings, _of_centres(rule))
            skipped += bad
        if len(part.rows):
            pieces.append(piece)
            used[number] = part
            names.append(name)
    if not used:
        return train, None
    return train, image_data(np.concatenate(pieces), used, splits=tuple(names), skipped=tuple(skipped))


def _captions(parts: list[Part]) -> list[str | list[str]] | None:
    """The captions of all images, "" for those that have none, or None where no set has any."""
    if all(part.table.captions is None for part in parts):
        return None
    return [part.table.captions[row] if part.table.captions else "" for part in parts for row in part.rows]


def _first_rows(table: Table, rows: np.ndarray, most: int | None) -> np.ndarray:
    """The first ``most`` of ``rows``, or, where these lack a class, as many of all classes."""
    first = rows[:most]
    if table.labels is None or len(first) == len(rows):
        return first
    labels = table.labels[rows]
    if len(np.unique(labels[:most])) == len(found := np.unique(labels)):
        return first
    turns = np.empty(len(rows), np.int64)  # a row's number among those of its class: all first ones go before second
    for label in found:
        turns[labels == label] = np.arange((labels == label).sum())
    return np.sort(rows[np.argsort(turns, kind="stable")[:most]])


def _shares(sources: Sequence[Source], parts: list[Part]) -> list[float]:
    """Each set's share of the draws: its weight, or its share of the images where none has one; together 1."""
    weights = [source.weight or len(part.rows) for source, part in zip(sources, parts)]
    return [weight / sum(weights) for weight in weights]


# ---- what to validate on


def _validation_parts(splits: list[Splits], parts: list[Part], settings: Settings, shares: list[float]) -> list[Part]:
    """For every set the rows to validate on: of another split, or held out of its training rows; possibly none."""
    split = settings.validation_split
    if split is None:
        return [Part(part.table, part.rows[:0]) for part in parts]
    sources = [opened.source for opened in splits]
    tables = [_validation_table(opened, part.table, split, sources) for opened, part in zip(splits, parts)]
    quotas = [max(quota, 1) for quota in largest_remainders(settings.validation_images, shares)]
    identities = [part.table.identity for part in parts]
    result = []
    for table, part, quota in zip(tables, parts, quotas):
        if table is None:
            # of a set that is there twice, the same images: none of them is trained on
            quota = max(other for identity, other in zip(identities, quotas) if identity == part.table.identity)
            number = identities.index(part.table.identity)
            result.append(Part(part.table, _held_out(part.rows, quota, (settings.seed, number))))
        else:
            rows, _ = table.usable_rows(settings.on_bad_image == "skip")
            result.append(Part(table, _spread(table, rows, quota)))
    return result


def _validation_table(splits: Splits, own: Table, split: str, sources: list[Source]) -> Table | None:
    """The split to validate on; None where "auto" finds none that is not trained on, and has labels if ``own`` has."""
    alike = [source for source in sources if source.reads_like(splits.source)]
    if split != "auto":
        for source in alike:
            source.refuse_to_validate_on(split)
        return splits.open(split)
    for name in validation_names(splits.names, {name for source in alike for name in source.split_names}):
        table = splits.open(name)
        if own.labels is None or (table.labels is not None and table.labels.min() >= 0):
            return table  # contests keep the labels of a test split
    return None


def _held_out(rows: np.ndarray, most: int, seed: tuple[int, int]) -> np.ndarray:
    if len(rows) < FEWEST_TO_HOLD_OUT:
        return rows[:0]
    count = max(1, min(most, int(len(rows) * HELD_OUT)))
    # the third number tells this choice from the orders of the epochs
    return np.sort(np.random.default_rng((seed[0], seed[1], 2**31)).permutation(rows)[:count])


def _spread(table: Table, rows: np.ndarray, most: int) -> np.ndarray:
    """Up to ``most`` of ``rows``, evenly spaced, and where there are classes evenly among them."""
    if len(rows) <= most:
        return rows
    order = rows if table.labels is None else rows[np.argsort(table.labels[rows], kind="stable")]
    return np.sort(order[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)])


# ---- fitting


Images = np.ndarray | Strips


def _fit_all(parts: list[Part], settings: Settings) -> tuple[Images, Rule, list[Part], list[str]]:
    """The images uint8 (N, C, S, S) of all parts, one after the other, in memory or, where they are too large, mapped.

    Returns them with the rule they were fitted by, the rows of each part that could be used, and a line for each that
    could not.
    """
    identities = [
        (p.table.identity, p.table.files_state(), hashlib.sha256(p.rows.tobytes()).hexdigest()) for p in parts
    ]
    done = {name: getattr(settings, name) for name in FITTING}
    key = json.dumps([identities, done])
    found = find_images(key) if settings.cache else None
    if found is None:
        rule = rule_for(parts, settings)
        shape = _shape(parts, settings, rule)
        if np.prod(shape) <= settings.max_memory_gb * 2**30:
            images, used, skipped = _fit_in_memory(parts, settings, rule)
            return images, rule, used, skipped

        def make(write: Callable) -> dict:
            skipped, lengths = _fit_parts(parts, settings, rule, write)
            return {"rule": asdict(rule), "skipped": skipped, "lengths": lengths}

        found = store_images(key, settings.cache, shape, make)
    images, kept = found
    rule = kept["rule"]
    rule = Rule(**{**rule, "shape": rule["shape"] and tuple(rule["shape"]), "levels": tuple(rule["levels"])})
    return _images(images, rule, kept["lengths"]), rule, *_used(parts, kept["skipped"])


def _fit_in_memory(parts: list[Part], settings: Settings, rule: Rule) -> tuple[Images, list[Part], list[str]]:
    images, filled = np.empty(_shape(parts, settings, rule), np.uint8), 0

    def write(piece: np.ndarray):
        nonlocal images, filled
        if filled + len(piece) > len(images):  # of whole images, one whose header could not be read
            images = np.concatenate([images[:filled], piece])
        images[filled : filled + len(piece)] = piece
        filled += len(piece)

    skipped, lengths = _fit_parts(parts, settings, rule, write)
    return _images(images[:filled], rule, lengths), *_used(parts, skipped)


def _shape(parts: list[Part], settings: Settings, rule: Rule) -> tuple[int, ...]:
    """The shape of the array that holds all images."""
    if rule.way == "whole":
        return (rule.num_lines, rule.channels, settings.sample_size)
    return (sum(len(part.rows) for part in parts), rule.channels, settings.sample_size, settings.sample_size)


def _images(array: np.ndarray, rule: Rule, lengths: list[int]) -> Images:
    return Strips(array, lengths) if rule.way == "whole" else array


def _of_centres(rule: Rule) -> Rule:
    return replace(rule, way="crop") if rule.way == "whole" else rule


def _fit_parts(parts: list[Part], settings: Settings, rule: Rule, write: Callable) -> tuple[list[list], list[int]]:
    """Call ``write`` with the images of all parts; returns the (row, line) of the bad ones of each, and the lengths of
    whole images."""
    skipped, lengths = [[] for _ in parts], []
    with progress_bar(sum(len(part.rows) for part in parts)) as progress:
        for part, bad in zip(parts, skipped):
            if not len(part.rows):
                continue
            for images, sides in fit_rows(part.table, part.rows, settings, rule, bad, progress):
                write(images)
                lengths += sides
            if bad and len(bad) == len(part.rows) == len(part.table):
                raise UserError(f"none of the {len(bad)} images of {part.table.where} can be used: {bad[0][1]}")
    return skipped, lengths


def _used(parts: list[Part], skipped: list[list]) -> tuple[list[Part], list[str]]:
    """The rows of each part without the bad ones, and the lines of these."""
    used = [
        Part(part.table, np.setdiff1d(part.rows, [row for row, _ in bad], assume_unique=True))
        for part, bad in zip(parts, skipped)
    ]
    return used, [line for bad in skipped for _, line in bad]


def load_images(
    dataset: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: tuple[str, ...] | None = None,
    caption_column: str | None = None,
    **settings,
) -> ImageData:
    """All images of one split of one data set; other settings as in ``open_data``."""
    source = Source(dataset, config_name, split, revision, image_column, label_column, label_names, caption_column)
    return open_data([source], validation_split=None, **settings)[0]
