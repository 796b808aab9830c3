"""Reading JSON and YAML that others wrote: regular files of bounded size, whose values are bounded too."""

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MEGABYTE = 2**20
LARGEST_JSON, LARGEST_YAML, LARGEST_TEXT = 16 * MEGABYTE, MEGABYTE, 256 * MEGABYTE
DEEPEST = 50  # lists and objects within each other
MOST_VALUES = 1_000_000  # of a file, those that YAML's aliases repeat included
MOST_DIGITS = 1000  # of a whole number
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextlib.contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file to read bytes from. Pipes and devices, which may be endless, are not waited for.

    Raises:
        ValueError: if it is no regular file.
        OSError: if it cannot be opened.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        yield file


def read_text(path: str | Path, largest: int = LARGEST_TEXT, errors: str = "strict") -> str:
    """The text in a regular file of UTF-8.

    Raises:
        ValueError: if it is no such file, or has more than ``largest`` bytes.
        OSError: if it cannot be read.
    """
    content = bytearray()
    with open_regular(path) as file:
        while len(content) <= largest and (block := file.read(MEGABYTE)):  # as large as the file, not as ``largest``
            content += block
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest // MEGABYTE} MiB")
    return content.decode("utf-8", errors)


def read_json(path: str | Path, largest: int = LARGEST_JSON) -> Any:
    """The value in a JSON file. Raises ValueError and OSError as ``read_text`` and ``parse_json``."""
    return parse_json(read_text(path, largest))


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file. Raises ValueError and OSError as ``read_text`` and ``parse_yaml``."""
    return parse_yaml(read_text(path, LARGEST_YAML))


def parse_json(text: str) -> Any:
    """The value that a JSON text holds.

    Raises:
        ValueError: if it is not JSON, or its values are too many, too large or nested too deeply.
    """
    try:
        return _bounded(json.loads(text, parse_int=_whole))
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds, built from plain types.

    Raises:
        ValueError: if it is not YAML, as of ``parse_json``, or for a key that is not text.
    """
    try:
        _check_events(yaml.parse(text, YAML_LOADER))
        value = yaml.load(text, YAML_LOADER)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise ValueError(f"{f'line {mark.line + 1}: ' if mark else ''}it is not YAML: {problem or error}") from None
    except (AttributeError, LookupError) as error:  # of PyYAML, for a value that is not of the type of its tag
        raise ValueError("it has a value that does not fit its tag") from error
    return _bounded(value)


def _check_events(events):
    """Refuse what would be large or deep once it is built, as the loaders copy and recurse: aliases repeat values."""
    collections, sizes = [("", 0)], {}  # (anchor, values) of open collections, outermost first; values by anchor
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            collections.append((event.anchor, 1))
            _refuse_beyond(depth=len(collections) - 1)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = collections.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in collections):
                raise ValueError(f"it has an alias {event.anchor!r} within what it stands for")
            anchor, size = None, sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        else:
            continue
        if anchor:
            sizes[anchor] = size
        outer, before = collections[-1]
        collections[-1] = outer, before + size
        _refuse_beyond(count=before + size)


def _refuse_beyond(count: int = 0, depth: int = 0):
    if count > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of more than {MOST_DIGITS} digits")
    return int(digits)


def _bounded(value):
    """``value``, if a walk through it ends soon."""
    left, count = [(value, 0)], 0
    while left:
        item, depth = left.pop()
        count += 1
        _refuse_beyond(count, depth)
        if isinstance(item, dict):
            if wrong := [key for key in item if not isinstance(key, str)]:
                raise ValueError(f"it has a key {wrong[0]!r}, which is not text")
            left += [(part, depth + 1) for part in item.values()]
        elif isinstance(item, list | tuple | set):
            _refuse_beyond(count + len(left) + len(item))
            left += [(part, depth + 1) for part in item]
        elif isinstance(item, int) and abs(item) >= 10**MOST_DIGITS:
            raise ValueError(f"it has a number of more than {MOST_DIGITS} digits")
    return value


def is_finite(value) -> bool:
    """Whether ``value`` is a number that can be calculated with and shown."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # JSON has whole numbers of any size
        return False
