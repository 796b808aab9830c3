"""Where images come from: the Hub, a folder or a file of any kind, told apart and opened undecoded."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ddpm_hf.data.annotations import annotate, by_split
from ddpm_hf.data.containers import (
    Arrays,
    cifar_batches,
    extracted,
    is_webdataset,
    read_arrays,
    read_cifar,
)
from ddpm_hf.data.folders import Files, Told, arrange, find_files, left_out
from ddpm_hf.data.idx import idx_splits, read_idx
from ddpm_hf.data.images import image_suffixes
from ddpm_hf.data.tables import ArrayTable, EncodedTable, Table, image_columns
from ddpm_hf.errors import UserError, counted, one_line
from ddpm_hf.hub.retries import LOG_IN, USUAL, again, cut_off, explained, is_passing, status_of
from ddpm_hf.source import FILE_KINDS, Source, matching_split, split_of

LIMITS = USUAL  # how long the Hub is asked again


class Splits:
    """The splits of a source: their names, and what is in them, opened when asked for.

    told: what is left out, and what was read in a way that may surprise.

    Args:
        streaming: open them as ``datasets.IterableDataset``, downloading nothing.

    Raises:
        UserError: if there is no such data set, or nothing in it that is known here.
    """

    def __init__(self, source: Source, *, streaming: bool = False):
        self.source, self.streaming, self.told = source, streaming, Told()
        self._arrays: dict[str, Callable[[], tuple[Arrays, str]]] = {}
        self._openers: dict[str, Callable] = {}
        self._builder = None
        path = Path(source.dataset).expanduser()
        with library_errors(source.dataset):
            if path.exists():
                self._open_local(path)
                if streaming and self._arrays:
                    raise UserError(f"data set {source.dataset!r} is of arrays, which are read whole; not as a stream.")
                return
            self._builder = _hub_builder(source)
            if streaming:
                streams = self._builder.as_streaming_dataset()
                self._openers = {str(name): lambda stream=stream: stream for name, stream in streams.items()}
            else:
                _asked_again(self._builder.download_and_prepare)
                self._openers = dict.fromkeys(map(str, self._builder.info.splits))

    @property
    def names(self) -> list[str]:
        return list(self._openers or self._arrays)

    def open(self, split: str) -> Table:
        """The table of ``split``, or of several, 'train+test', one after the other.

        Raises:
            UserError: naming the split, file or column that is wrong.
        """
        source = self.source
        with library_errors(source.dataset):
            if self._arrays:
                names = self._checked("+".join("test" if n.strip() == "t10k" else n for n in split.split("+")))
                return ArrayTable(source, split, *_joined([self._arrays[name]() for name in names], source))
            if self._builder is not None:
                known = [self._builder_split(name) for name in split.split("+")]
                return EncodedTable(source, split, self._builder.as_dataset(split="+".join(known)))
            from datasets import concatenate_datasets

            return EncodedTable(source, split, concatenate_datasets(self._open_all(split)))

    def _builder_split(self, name: str) -> str:
        """A split of the Hub's by any word for it; slices, and names that it does not have, as they are."""
        return name if "[" in name else matching_split(name.strip(), self.names) or name

    def streams(self, split: str) -> list:
        """The ``datasets.IterableDataset`` of ``split``, or of each of several, 'train+test'."""
        with library_errors(self.source.dataset):
            return self._open_all(split)

    def num_images(self, split: str) -> int | None:
        """How many images a data set of the Hub says ``split`` to have."""
        told = (self._builder and self._builder.info.splits) or {}
        names = split.split("+")
        return sum(told[name].num_examples for name in names) if all(name in told for name in names) else None

    def unused(self, used: Iterable[str]) -> list[str]:
        """What to say of splits that are none of ``used``, 'train+test'."""
        words = [name.partition("[")[0].strip().replace("t10k", "test") for text in used for name in text.split("+")]
        names = {matching_split(word, self.names) for word in words}
        return [f"split {name}" for name in self.names if name not in names]

    def _open_all(self, split: str) -> list:
        return [self._openers[name]() for name in self._checked(split)]

    def _checked(self, split: str) -> list[str]:
        found = {name.strip(): matching_split(name.strip(), self.names) for name in split.split("+")}
        if wrong := [name for name, known in found.items() if known is None]:
            raise UserError(
                f"data set {self.source.dataset!r} has no split {wrong[0]!r}; it has {', '.join(self.names)}."
            )
        return list(found.values())

    # ---- what lies on this machine

    def _open_local(self, path: Path):
        """Find out what a file or folder holds, and how each of its splits is opened."""
        if pairs := idx_splits(path):
            self._arrays = {name: lambda pair=pair: _idx_arrays(pair) for name, pair in pairs.items()}
        elif path.is_file():
            self._open_file(path)
        elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            self._openers = _saved_splits(path, self.streaming)
        else:
            self._open_folder(path)

    def _open_file(self, path: Path):
        for kind, open_files in self._kinds().items():
            if path.name.lower().endswith(FILE_KINDS[kind]):
                return open_files([path], path)
        if path.suffix.lower() in image_suffixes():
            raise UserError(f"data set {path} is a single picture; give the folder of pictures.")
        known = ", ".join(itertools.chain(*FILE_KINDS.values()))
        hint = "; give the folder that it lies in" if path.suffix.lower() in (".csv", ".tsv", ".jsonl") else ""
        raise UserError(f"data set file {path} must end in {known}{hint}.")

    def _kinds(self) -> dict[str, Callable[[list[Path], Path], None]]:
        """For each of ``FILE_KINDS`` what opens files of it that lie below a folder, or one file. Of a folder the first
        kind that is there is opened."""
        return {"table": self._open_tables, "arrays": self._open_arrays, "archive": self._open_archives}

    def _open_folder(self, path: Path):
        files = find_files(path)
        tables = files.named(".parquet") or files.named(".arrow")
        if files.pictures and not self._hold_more(tables, files):
            used = self._open_pictures(files)
        elif files.pictures:
            self._open_tables([path / file for file in tables], path)
            used = set(tables)
            self.told.left_out.append(
                f"{counted(len(files.pictures), 'picture')} beside the tables, which hold more images"
            )
        else:
            batches = {}
            for folder in sorted({file.parent for file in files.others}, key=str):
                batches = batches or cifar_batches(path / folder, [f.name for f in files.others if f.parent == folder])
            if batches:
                self._arrays = {s: lambda chosen=chosen: _cifar_arrays(chosen) for s, chosen in batches.items()}
                return
            for kind, open_files in self._kinds().items():
                if chosen := tables if kind == "table" else files.named(*FILE_KINDS[kind]):
                    open_files([path / file for file in chosen], path)
                    used = set(chosen)
                    break
            else:
                rest = left_out(files, set())
                kinds = f" (left out: {', '.join(rest)})" if rest else ""
                raise UserError(
                    f"data set {self.source.dataset!r} has no images, no parquet, arrow or idx files in it{kinds}."
                )
        self.told.left_out += left_out(files, used)

    def _hold_more(self, tables: list, files: Files) -> bool:
        """Whether ``tables`` are what a folder holds: all of them have images, and no fewer than lie beside them."""
        rows = [_num_images(files.root / file, self.source) for file in tables]
        return bool(rows) and all(rows) and sum(rows) >= len(files.pictures)

    def _open_tables(self, paths: list[Path], root: Path):
        kind = paths[0].suffix[1:].lower()
        self._openers = {
            split: _Opener(kind, [str(path) for path in found], self.streaming)
            for split, found in _files_of_splits(paths, root).items()
        }

    def _open_arrays(self, paths: list[Path], root: Path):
        self._arrays = _array_splits(paths, root)

    def _open_archives(self, paths: list[Path], root: Path):
        if all(is_webdataset(path) for path in paths):
            chosen = _files_of_splits(paths, root)
            self._openers = {
                split: _Opener("webdataset", [str(path) for path in found], self.streaming)
                for split, found in chosen.items()
            }
        else:
            self._open_local(_innermost(extracted(paths)))

    def _open_pictures(self, files: Files) -> set:
        """Open the pictures of a folder; returns the files beside them that are read, too."""
        splits = arrange(files.pictures, self.source.dataset, self.told)
        used = set()
        for name, pictures in splits.items():
            pictures, found = annotate(files, pictures, self.told)
            used |= found.used
            parts = (
                by_split(pictures, found.columns) if list(splits) == ["train"] else {name: (pictures, found.columns)}
            )
            for split, (chosen, columns) in parts.items():
                self._openers[split] = _PictureOpener(self.source, files.root, chosen, columns, self.streaming)
        return used


class library_errors:
    """The library raises dozens of types; the user needs the one line."""

    def __init__(self, dataset: str):
        self.dataset = dataset

    def __enter__(self):
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()

    def __exit__(self, kind, error, trace):
        from datasets.exceptions import DatasetGenerationError

        if isinstance(error, Exception) and not isinstance(error, UserError):
            while isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
                error = error.__cause__  # which says what is wrong
            here = Path(self.dataset).expanduser().exists()
            why = one_line(error) if here else _of_hub(error, self.dataset)
            raise UserError(f"data set {self.dataset!r} cannot be loaded: {why}") from error


def _of_hub(error: Exception, dataset: str) -> str:
    """Why a data set of the Hub cannot be loaded, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    text = " ".join(str(error).split())  # of the library's own errors the text is all that tells them apart
    if constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled):
        return "it is not in the cache, and HF_HUB_OFFLINE is set; unset it, or download the data set before."
    if "is a gated dataset" in text:
        return f"it is gated; ask for access on {constants.ENDPOINT}/datasets/{dataset}, and {LOG_IN}."
    if "doesn't exist on the Hub or cannot be accessed" in text:
        return f"no file or folder has that name, nor a data set you can see on the Hub; for a private one, {LOG_IN}."
    if match := re.search(r"Config name is missing.*available configs: \[(.*?)\]", text):
        return f"it has several configurations; give dataset_config one of {match[1]}."
    if match := re.search(r"BuilderConfig (.*) not found. Available: \[(.*?)\]", text):
        return f"it has no configuration {match[1]}; give dataset_config one of {match[2]}."
    if is_passing(error) or status_of(error) is not None:
        return explained(error, LIMITS)
    return one_line(error)


@contextlib.contextmanager
def _offline():
    """Let the libraries look into their caches alone: they would ask for minutes before they do."""
    from datasets import config
    from huggingface_hub import constants

    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = False


def _asked_again(call: Callable):
    """What ``call`` returns, made again where that can help; what the library made of a bad connection is undone."""

    def once():
        try:
            return call()
        except Exception as error:
            if error.__cause__ is not None and is_passing(error.__cause__):
                raise error.__cause__ from None
            raise

    return again(once, LIMITS)


def _hub_builder(source: Source):
    from datasets import load_dataset_builder

    name = source.dataset
    if re.match(r"[a-z][a-z0-9+.-]*://", name):
        raise UserError(f"data set {name!r} is an address; download it first and give the file or folder, or a Hub id.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in (".parquet", ".arrow"):
        raise UserError(f"data set {name!r} does not exist: no such file or folder.")
    if cut_off():
        try:
            with _offline():
                return load_dataset_builder(name, source.config, revision=source.revision)
        except Exception as error:
            raise UserError(
                f"data set {name!r} is no file or folder, and as a data set of the Hub not in the cache; the Hub "
                f"cannot be reached from here: no network. Give a folder or file, or download it where there is one."
            ) from error
    return _asked_again(lambda: load_dataset_builder(name, source.config, revision=source.revision))


# ---- on this machine


def _num_images(path: Path, source: Source) -> int:
    """How many images a parquet or arrow file has; 0 for one that has none, or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Features

    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path)
            schema, rows = file.schema_arrow, file.metadata.num_rows
        else:
            table = Dataset.from_file(str(path)).data
            schema, rows = table.schema, table.num_rows
        image_columns(Features.from_arrow_schema(schema), source)
        return rows
    except (OSError, ValueError, pa.ArrowException):
        return 0


class _Opener:
    """Opens files of one kind as ``datasets`` reads them."""

    def __init__(self, kind: str, paths: list[str], streaming: bool):
        self.args, self.streaming = (kind, paths), streaming

    def __call__(self):
        return _load_files(*self.args, split="train", streaming=self.streaming)


class _PictureOpener:
    """Opens pictures that lie in files, with what is known of them, as a table."""

    def __init__(self, source: Source, root: Path, pictures, columns: dict[str, list], streaming: bool):
        self.source, self.root, self.pictures, self.streaming = source, root, pictures, streaming
        self.columns = dict(columns)

    def __call__(self):
        from datasets import ClassLabel, Dataset, Features, Image, IterableDataset

        table = Dataset.from_dict(self.columns) if self.columns else None
        features = Features(table.features if table else {})
        own = None
        if table is not None and "image" not in features:
            _, own, _, _ = image_columns({**features, "image": Image()}, self.source, table)
        columns = {"image": [str(self.root.absolute() / path) for path in self.pictures.paths]}
        features = {"image": Image(), **{name: kind for name, kind in features.items() if name != "image"}}
        columns |= {name: self.columns[name] for name in features if name != "image"}
        if own is None and self.pictures.classes is not None:
            names = sorted(set(self.pictures.classes))
            ids = {name: number for number, name in enumerate(names)}
            columns["label"] = [ids[name] for name in self.pictures.classes]
            features["label"] = ClassLabel(names=names)
        features = Features(features)
        table = Dataset.from_dict(columns, features=features)
        if not self.streaming:
            return table
        return IterableDataset.from_generator(_rows_of, features=features, gen_kwargs={"columns": columns})


def _rows_of(columns: dict[str, list]):
    for values in zip(*columns.values()):
        yield dict(zip(columns, values))


def _idx_arrays(pair) -> tuple[Arrays, str]:
    images, labels, identity = read_idx([pair])
    return Arrays(images, labels, None), identity


def _cifar_arrays(paths: list[Path]) -> tuple[Arrays, str]:
    return read_cifar(paths), _state(paths)


def _state(paths: list[Path]) -> str:
    return repr([(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths])


def _array_splits(paths: list[Path], root: Path) -> dict[str, Callable]:
    """The splits of array files: those that their keys name, or that the names of several files do."""
    if len(paths) == 1:
        found = read_arrays(paths[0])
        return {split: lambda arrays=arrays: (arrays, _state(paths)) for split, arrays in found.items()}

    def opener(chosen: list[Path]) -> Callable:
        return lambda: (_concatenated([one for path in chosen for one in read_arrays(path).values()]), _state(chosen))

    return {split: opener(chosen) for split, chosen in _files_of_splits(paths, root).items()}


def _concatenated(parts: list[Arrays]) -> Arrays:
    if len({part.images.shape[1:] for part in parts}) > 1 or len({part.labels is None for part in parts}) > 1:
        raise UserError("its arrays have several sizes, or only some have labels; give them as several data sets.")
    labels = None if parts[0].labels is None else np.concatenate([part.labels for part in parts])
    return Arrays(np.concatenate([part.images for part in parts]), labels, parts[0].names)


def _joined(parts: list[tuple[Arrays, str]], source: Source):
    """The images, labels, names and identity of several splits, one after the other."""
    try:
        arrays = parts[0][0] if len(parts) == 1 else _concatenated([arrays for arrays, _ in parts])
    except UserError as error:
        raise UserError(f"data set {source.dataset!r}: {error}") from None
    return (*arrays, parts[0][1] if len(parts) == 1 else repr([identity for _, identity in parts]))


def _innermost(folder: Path) -> Path:
    """The first folder below ``folder`` that has something else than one folder in it."""
    while True:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
        if len(entries) != 1 or not entries[0].is_dir() or split_of(entries[0].name):
            return folder
        folder = entries[0]


def _saved_splits(path: Path, streaming: bool) -> dict[str, Callable]:
    """The splits of a folder that ``save_to_disk`` wrote."""
    from datasets import Dataset, load_from_disk

    saved = load_from_disk(str(path))
    tables = {"train": saved} if isinstance(saved, Dataset) else dict(saved)
    if streaming:
        tables = {name: table.to_iterable_dataset(min(64, len(table))) for name, table in tables.items()}
    return {name: lambda table=table: table for name, table in tables.items()}


def _load_files(kind: str, paths: list[str], **options):
    """``load_dataset`` of local files, without the request over the network by which it counts downloads."""
    from datasets import config, load_dataset

    counting, config.HF_UPDATE_DOWNLOAD_COUNTS = config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        return load_dataset(kind, data_files=paths, **options)
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = counting


def _files_of_splits(paths: list[Path], root: Path) -> dict[str, list[Path]]:
    """``paths`` by the split that their names, or those of their folders below ``root``, say; train where none does.

    A single file is its own ``root``, and of train whatever its name is.
    """
    found = {}
    for path in paths:
        *folders, name = path.relative_to(root).parts or [""]
        names = [name.partition(".")[0], *reversed(folders)]
        found.setdefault(next((split for name in names if (split := split_of(name))), None), []).append(path)
    known = {name: found[name] for name in ("train", "test", "validation") if name in found}
    return known or {"train": paths}
