"""What tables and texts beside pictures say of them: labels and captions, by the names of the files."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ddpm_hf.data.folders import Files, Pictures, Told
from ddpm_hf.errors import UserError, counted, one_line
from ddpm_hf.reading import parse_json
from ddpm_hf.source import split_of

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
CAPTION_SUFFIXES = (".txt", ".caption")
MOST_TABLES = 50
LARGEST_TABLE = 2**30
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "data set", "data_set", "dataset")
NAME_COLUMN = re.compile(r"file|image|img|path|photo|picture|name|^id$|_id$", re.IGNORECASE)


class Annotations(NamedTuple):
    """columns: a list of one value a picture for each name. used: the files that they are from."""

    columns: dict[str, list]
    used: set[PurePosixPath]


def annotate(files: Files, pictures: Pictures, told: Told) -> tuple[Pictures, Annotations]:
    """The pictures of a split that are to be used, and what is said of them.

    The table, a .csv, .tsv or .jsonl with a column of file names, is the one that names most of the pictures, if it
    names half of them; ``metadata`` goes before others. Those that it does not name are left out. Captions are texts
    of the picture's name.

    Raises:
        UserError: for a table called metadata that cannot be read.
    """
    best, named = None, {}
    candidates = sorted(files.named(*TABLE_SUFFIXES)[:MOST_TABLES], key=lambda path: path.stem.lower() != "metadata")
    for path in candidates:
        rows = _rows(files.root / path)
        found = _matched(rows, path.parent, pictures.paths)
        if len(found) > len(named) and 2 * len(found) >= len(pictures.paths):
            best, named = path, found
    columns, used = {}, set()
    if best is not None:
        chosen = [i for i, path in enumerate(pictures.paths) if path in named]
        if missing := len(pictures.paths) - len(chosen):
            told.left_out.append(f"{counted(missing, 'picture')} that {best} does not name")
        classes = pictures.classes and [pictures.classes[i] for i in chosen]
        pictures, used = Pictures([pictures.paths[i] for i in chosen], classes), {best}
        rows = [named[path] for path in pictures.paths]
        columns = {name: _typed([row.get(name) for row in rows]) for name in dict.fromkeys(k for r in rows for k in r)}
    texts, read = _texts(files, pictures.paths)
    if texts is not None and not any(isinstance(text, str) for text in texts):
        told.notes.append("the .txt files beside the pictures hold numbers, not captions, and are not read")
    elif texts is not None and "text" not in columns:
        columns["text"], used = texts, used | read
    return pictures, Annotations(columns, used)


def by_split(pictures: Pictures, columns: dict[str, list]) -> dict[str, tuple[Pictures, dict[str, list]]]:
    """The pictures and columns of each split: those of a column whose every value is a word for one, or train."""
    for name, values in columns.items():
        splits = [split_of(str(value)) for value in values]
        if name.lower() in SPLIT_COLUMNS and "train" in splits and None not in splits:
            break
    else:
        return {"train": (pictures, columns)}
    parts = {}
    for split in [known for known in ("train", "test", "validation") if known in splits]:
        rows = [i for i, found in enumerate(splits) if found == split]
        classes = pictures.classes and [pictures.classes[i] for i in rows]
        chosen = {other: [values[i] for i in rows] for other, values in columns.items() if other != name}
        parts[split] = Pictures([pictures.paths[i] for i in rows], classes), chosen
    return parts


def _rows(path: Path) -> list[dict]:
    try:
        if path.stat().st_size > LARGEST_TABLE:
            return []
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")
        if path.suffix.lower() == ".jsonl":
            rows = [parse_json(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object")
            return rows
        first = text.partition("\n")[0]
        delimiter = max(",;\t|", key=first.count)
        return [
            {(name or "").strip(): value for name, value in row.items() if isinstance(name, str)}
            for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        ]
    except (OSError, ValueError, csv.Error) as error:
        if path.stem.lower() == "metadata":
            raise UserError(f"{path} cannot be read: {one_line(error)}.") from None
        return []


def _matched(rows: list[dict], folder: PurePosixPath, paths: list[PurePosixPath]) -> dict[PurePosixPath, dict]:
    """The row of each picture that a column names: by its path from the table or the root, its name, or its stem."""
    if not rows:
        return {}
    keys = {}
    ambiguous = Counter()
    for path in paths:
        below = str(path.relative_to(folder)) if path.is_relative_to(folder) else None
        for key in {str(path), below, path.name, path.stem} - {None}:
            ambiguous[key] += 1
            keys[key] = path
    exact = {str(path): path for path in paths}
    exact |= {str(path.relative_to(folder)): path for path in paths if path.is_relative_to(folder)}
    keys = {key: path for key, path in keys.items() if ambiguous[key] == 1} | exact
    best = {}
    names = [name for name in rows[0] if NAME_COLUMN.search(name)]
    for name in sorted(names, key=lambda name: name.lower() != "file_name"):
        found = {}
        for row in rows:
            value = row.get(name)
            key = str(value).replace("\\", "/").removeprefix("./") if isinstance(value, (str, int)) else None
            if key in keys:
                found[keys[key]] = {other: entry for other, entry in row.items() if other != name}
        if len(found) > len(best):
            best = found
    return best


def _typed(values: list) -> list:
    """Texts as whole numbers or floats where all are; an empty text is nothing."""
    values = [None if value == "" else value for value in values]
    given = [value for value in values if value is not None]
    if any(isinstance(value, (dict, list)) for value in given):
        return [None if value is None else json.dumps(value) for value in values]
    for kind, pattern in ((int, r"[+-]?\d{1,18}"), (float, r"[+-]?\d*\.?\d+([eE][+-]?\d+)?|nan")):
        if all(re.fullmatch(pattern, str(value).strip()) for value in given):
            return [None if value is None else kind(value) for value in values]
    return [None if value is None else str(value).strip() for value in values]


def _texts(files: Files, paths: list[PurePosixPath]) -> tuple[list | None, set[PurePosixPath]]:
    """The caption of each picture, where half of them have one; numbers alone are boxes, as of YOLO, not words."""
    known = {path.with_suffix(""): path for path in files.named(*CAPTION_SUFFIXES)}
    of = [known.get(path.with_suffix("")) for path in paths]
    if 2 * sum(path is not None for path in of) < len(paths) or not paths:
        return None, set()
    texts = [None if path is None else _text(files.root / path) for path in of]
    return texts, {path for path in of if path is not None}


def _text(path: Path) -> str | None:
    text = " ".join(path.read_text("utf-8-sig", errors="replace").split())
    return text if re.search(r"[^\W\d_]", re.sub(r"\d[eE][+-]?\d", "", text)) else None
