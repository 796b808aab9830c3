"""Folders of pictures as people have them: found, told apart by split and class, the rest counted."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ddpm_hf.data.images import HEIF_SUFFIXES, header, image_suffixes
from ddpm_hf.errors import UserError, counted
from ddpm_hf.source import matching_split, split_of

JUNK_FOLDERS = ("@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
JUNK_FILES = ("Thumbs.db", "desktop.ini", "Icon\r")
BROKEN = "broken links"
MOST_NAMED = 6  # suffixes or folders that a line names


def validation_names(names, trained) -> list[str]:
    """Those of ``names`` that a run may validate on, which trains on the splits ``trained``: validation before test."""
    used = {matching_split(name, names) for name in trained}
    return [n for split in ("validation", "test") for n in names if split_of(n) == split and n not in used]


@dataclass
class Told:
    """What a run says of how a set was read.

    left_out: what is not used, with its number and the reason. notes: lines on what may surprise.
    """

    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Files:
    """The files below a folder, sorted; paths are relative to it.

    pictures: those that are read. others: all other files that are not junk. unread: files that cannot be used, with
    the reason for each kind.
    """

    root: Path
    pictures: list[PurePosixPath] = field(default_factory=list)
    others: list[PurePosixPath] = field(default_factory=list)
    unread: Counter = field(default_factory=Counter)

    def named(self, *suffixes: str) -> list[PurePosixPath]:
        """Those of ``others`` that end so, in any case."""
        return [path for path in self.others if path.name.lower().endswith(suffixes)]


def find_files(root: Path) -> Files:
    """All files below ``root``. Links to folders are followed, a folder that is reached twice is read once.

    Raises:
        UserError: for a folder that cannot be read.
    """
    found, suffixes = Files(root), image_suffixes()
    for path, kind in _walk(root, PurePosixPath(), set()):
        suffix = path.suffix.lower()
        if kind is not None and not (kind == BROKEN and suffix in suffixes):  # a picture that is missed is an error
            found.unread[kind] += 1
        elif suffix in suffixes or (not suffix and header(None, str(root / path))):
            found.pictures.append(path)
        elif suffix in HEIF_SUFFIXES:
            found.unread[f"{suffix} (pip install pillow-heif reads them)"] += 1
        else:
            found.others.append(path)
    found.pictures.sort(key=str)
    found.others.sort(key=str)
    return found


def _walk(root: Path, folder: PurePosixPath, seen: set) -> Iterator[tuple[PurePosixPath, str | None]]:
    """Files, each with what it is if it is not a regular one: nothing waits for a pipe, or reads an endless device."""
    try:
        state = os.stat(root / folder)
        if (state.st_dev, state.st_ino) in seen:
            return
        seen.add((state.st_dev, state.st_ino))
        entries = sorted(os.scandir(root / folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise UserError(f"folder {root / folder} cannot be read: {error.strerror}.") from None
    for entry in entries:  # links last: a folder that is there itself counts by its own name
        if entry.is_dir():
            if not entry.name.startswith((".", "__")) and entry.name not in JUNK_FOLDERS:
                yield from _walk(root, folder / entry.name, seen)
        elif not entry.name.startswith(".") and entry.name not in JUNK_FILES:
            kind = (
                None if entry.is_file() else BROKEN if not (root / folder / entry.name).exists() else "pipes or devices"
            )
            yield folder / entry.name, kind


@dataclass
class Pictures:
    """The pictures of one split. classes: the name of each one's class, or None where there are no classes."""

    paths: list[PurePosixPath]
    classes: list[str] | None = None


def arrange(paths: list[PurePosixPath], where: str, told: Told) -> dict[str, Pictures]:
    """``paths`` by split; what is left out or could be misread is added to ``told``.

    Folders called like splits are splits where all folders beside them are. The first level below a split is the
    class, and deeper folders belong to it; a single folder around everything is passed through.

    Raises:
        UserError: where it is not clear which folders are splits.
    """
    depth = _common([path.parts for path in paths], stop=split_of)
    by_name, loose = _by_folder(paths, depth)
    splits = {name: split_of(name) for name in by_name}
    known = [name for name, split in splits.items() if split]
    if "train" in splits.values() and len(set(splits.values())) > 2 and len(known) < len(splits):
        others = sorted(set(splits) - set(known))
        raise UserError(
            f"folder {where} has {', '.join(known)} as splits, but {', '.join(others[:5])} beside them; use only "
            f"folders of splits, or only folders of classes."
        )
    inner = [split_of(path.parts[depth + 1]) if len(path.parts) > depth + 2 else None for path in paths]
    found = {}
    if by_name and len(known) == len(splits):
        if loose:
            told.left_out.append(f"{counted(len(loose), 'picture')} beside the folders of splits")
        for name, chosen in by_name.items():
            found.setdefault(splits[name], []).extend(chosen)
        splits = {split: _classes(chosen, depth + 1, split, told) for split, chosen in _ordered(found)}
        names = set(splits["train"].classes or ()) if "train" in splits else set()
        for pictures in splits.values():  # one folder is no class, but where it is one that is trained with
            folders = [path.parts[depth + 1] for path in pictures.paths]
            if pictures.classes is None and set(folders) <= names:
                pictures.classes = folders
        return splits
    if by_name and not loose and all(inner) and "train" in inner:  # class/split/picture
        for path, split in zip(paths, inner):
            found.setdefault(split, []).append(path)
        names = {split: [path.parts[depth] for path in chosen] for split, chosen in found.items()}
        return {s: Pictures(chosen, names[s] if len(by_name) > 1 else None) for s, chosen in _ordered(found)}
    return {"train": _classes(paths, depth, "train", told)}


def _ordered(splits: dict) -> list[tuple]:
    return [(name, splits[name]) for name in ("train", "test", "validation") if name in splits]


def _common(parts: list[tuple[str, ...]], start: int = 0, stop=lambda name: False) -> int:
    """How many folders, each alone in the one before it, all paths lie in, counted with the first ``start``."""
    while True:
        names = {path[start] for path in parts}
        if len(names) > 1 or min(map(len, parts)) < start + 2 or stop(next(iter(names))):
            return start
        start += 1


def _by_folder(paths: list[PurePosixPath], depth: int) -> tuple[dict[str, list], list]:
    """``paths`` by the name of their folder at ``depth``, and those that lie in none."""
    folders, loose = {}, []
    for path in paths:
        (folders.setdefault(path.parts[depth], []) if len(path.parts) > depth + 1 else loose).append(path)
    return folders, loose


def _classes(paths: list[PurePosixPath], depth: int, split: str, told: Told) -> Pictures:
    """The pictures of a split, whose own folders are the first ``depth``."""
    depth = _common([path.parts for path in paths], depth)
    by_name, loose = _by_folder(paths, depth)
    if len(by_name) < 2:
        return Pictures(paths)
    if len(loose) > len(paths) - len(loose):
        told.notes.append(f"no classes: most pictures of {split} lie beside the folders {_some(sorted(by_name))}")
        return Pictures(paths)
    if loose:
        told.left_out.append(f"{counted(len(loose), 'picture')} of {split} beside the folders of classes")
    kept = [path for path in paths if len(path.parts) > depth + 1]
    return Pictures(kept, [path.parts[depth] for path in kept])


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def left_out(files: Files, used: set[PurePosixPath]) -> list[str]:
    """What is left out of a folder, counted by suffix; the files in ``used`` are not."""
    counts = Counter(path.suffix.lower() or "without suffix" for path in files.others if path not in used)
    parts = [f"{count:,} {name}" for name, count in itertools.chain(files.unread.items(), counts.most_common())]
    more = [f"{len(parts) - MOST_NAMED:,} more kinds of files"] if len(parts) > MOST_NAMED else []
    return parts[:MOST_NAMED] + more
