"""Where images come from: the Hub, a folder, or a parquet, arrow or IDX file, told apart and opened undecoded."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpm_hf.data.idx import IDX_SUFFIXES, idx_splits, read_idx
from ddpm_hf.data.tables import ArrayTable, EncodedTable, Table
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub.retries import LOG_IN, USUAL, again, explained, is_passing, status_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".mpo", ".ppm", ".pgm")
SPLITS = ("train", "test", "validation", "valid", "val")
LIMITS = USUAL  # how long the Hub is asked again
VALIDATION_SPLITS = ("validation", "valid", "val", "test")  # those that "auto" looks for, in this order


@dataclass(frozen=True)
class Source:
    """One data set to read; the fields are those of an entry of the setting ``datasets``.

    dataset: Hub id, image folder, or parquet, arrow or IDX file or folder. weight: share of the draws, of all
    sets or of none; without, it is their share of the images.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_names: Sequence[str] | None = None
    name: str | None = None
    weight: float | None = None

    @property
    def title(self) -> str:
        """What the set is called where class names need it: ``name``, or the last part of its id or path."""
        path = Path(self.dataset).expanduser()
        if self.name or not path.exists():
            return self.name or path.name
        name = path.resolve().name
        for suffix in (*IDX_SUFFIXES, ".parquet", ".arrow"):
            name = name.removesuffix(suffix)
        return name

    @property
    def split_names(self) -> list[str]:
        """The splits it reads, without slices: 'train[:10%]+test' is train and test."""
        return [name.partition("[")[0] for name in _split_parts(self.split)]

    def reads_like(self, other: "Source") -> bool:
        """Whether both are of the same data set, so that a split of one has the images of the other's."""
        return (self.dataset, self.config, self.revision) == (other.dataset, other.config, other.revision)

    def refuse_to_validate_on(self, split: str):
        """Raise a UserError where ``split`` has images that are trained on; two slices are taken to be apart."""
        for trained, name in itertools.product(_split_parts(self.split), _split_parts(split)):
            sliced = "[" in trained and "[" in name
            if trained == name or (trained.partition("[")[0] == name.partition("[")[0] and not sliced):
                raise UserError(
                    f"validation_split {split!r} of data set {self.dataset!r} has images of its split {self.split!r}, "
                    f"which is trained on; another split, or validation_split: auto, would be right."
                )


def _split_parts(split: str) -> list[str]:
    names = [name.strip() for name in split.split("+")]
    return ["test" + name[len("t10k") :] if name.partition("[")[0] == "t10k" else name for name in names]


class Splits:
    """The splits of a source: their names, and what is in them, opened when asked for.

    Args:
        streaming: open them as ``datasets.IterableDataset``, downloading nothing.

    Raises:
        UserError: if there is no such data set, or nothing in it that is known here.
    """

    def __init__(self, source: Source, *, streaming: bool = False):
        self.source, self.streaming = source, streaming
        path = Path(source.dataset).expanduser()
        self._idx = idx_splits(path) if path.exists() else None
        self._openers: dict[str, Callable] = {}
        self._builder = None
        if self._idx is not None:
            if streaming:
                raise UserError(f"data set {source.dataset!r} is of IDX files, which are read whole; not as a stream.")
            return
        with library_errors(source.dataset):
            if path.exists():
                self._openers = _local_splits(path, source.dataset, streaming)
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
        return list(self._openers if self._idx is None else self._idx)

    def open(self, split: str) -> Table:
        """The table of ``split``, or of several, 'train+test', one after the other.

        Raises:
            UserError: naming the split, file or column that is wrong.
        """
        source = self.source
        if self._idx is not None:
            names = ["test" if name == "t10k" else name for name in split.split("+")]
            return ArrayTable(source, split, *read_idx([self._idx[name] for name in self._checked("+".join(names))]))
        with library_errors(source.dataset):
            if self._builder is not None:
                return EncodedTable(source, split, self._builder.as_dataset(split=split))
            from datasets import concatenate_datasets

            return EncodedTable(source, split, concatenate_datasets(self._open_all(split)))

    def streams(self, split: str) -> list:
        """The ``datasets.IterableDataset`` of ``split``, or of each of several, 'train+test'."""
        with library_errors(self.source.dataset):
            return self._open_all(split)

    def num_images(self, split: str) -> int | None:
        """How many images a data set of the Hub says ``split`` to have."""
        told = (self._builder and self._builder.info.splits) or {}
        names = split.split("+")
        return sum(told[name].num_examples for name in names) if all(name in told for name in names) else None

    def _open_all(self, split: str) -> list:
        return [self._openers[name]() for name in self._checked(split)]

    def _checked(self, split: str) -> list[str]:
        names = [name.strip() for name in split.split("+")]
        if wrong := [name for name in names if name not in self.names]:
            raise UserError(
                f"data set {self.source.dataset!r} has no split {wrong[0]!r}; it has {', '.join(self.names)}."
            )
        return names


class library_errors:
    """The library raises dozens of types; the user needs the one line."""

    def __init__(self, dataset: str):
        self.dataset = dataset

    def __enter__(self):
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception) and not isinstance(error, UserError):
            here = Path(self.dataset).expanduser().exists()
            why = one_line(error) if here else _of_hub(error, self.dataset)
            raise UserError(f"data set {self.dataset!r} cannot be loaded: {why}") from error


def _of_hub(error: Exception, dataset: str) -> str:
    """Why a data set of the Hub cannot be had, and what would be right."""
    from huggingface_hub import constants

    text = " ".join(str(error).split())  # of the library's own errors the text is all that tells them apart
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
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in (".parquet", ".arrow"):
        raise UserError(f"data set {name!r} does not exist: no such file or folder.")
    return _asked_again(lambda: load_dataset_builder(name, source.config, revision=source.revision))


def _local_splits(path: Path, dataset: str, streaming: bool) -> dict[str, Callable]:
    """What opens each split of a file or folder, by its name."""
    from datasets import Dataset, load_from_disk

    def opener(kind: str, **files) -> Callable:
        return lambda: _load_files(kind, split="train", streaming=streaming, **files)

    if path.is_file():
        return {"train": opener(_file_format(path), data_files=str(path))}
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        saved = load_from_disk(str(path))
        tables = {"train": saved} if isinstance(saved, Dataset) else dict(saved)
        if streaming:
            tables = {name: table.to_iterable_dataset(min(64, len(table))) for name, table in tables.items()}
        return {name: lambda table=table: table for name, table in tables.items()}
    for kind in ("parquet", "arrow"):
        if files := sorted(str(file) for file in path.rglob(f"*.{kind}")):
            return {name: opener(kind, data_files=chosen) for name, chosen in _files_of_splits(files).items()}
    if not _has_images(path):
        raise UserError(f"data set {dataset!r} has no images, no parquet, arrow or idx files in it.")
    return {
        name: lambda folder=folder: opener("imagefolder", data_dir=folder, data_files={"train": _image_files(folder)})()
        for name, folder in _split_folders(path).items()
    }


def _split_folders(path: Path) -> dict[str, str]:
    """The folders of the splits of an image folder: its own ones if all are called like splits, or else itself.

    Raises:
        UserError: where it cannot be told.
    """
    folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith((".", "__"))]
    names = [folder.name for folder in folders if _has_images(folder)]
    splits = {name: str(path / name) for name in SPLITS if name in names}
    if "train" not in splits or len(splits) == 1 < len(names):
        return {"train": str(path)}
    if others := sorted(set(names) - set(splits)):
        raise UserError(
            f"folder {path} has {', '.join(splits)} like splits, but {', '.join(others[:5])} beside them: only folders "
            f"of splits, or only folders of classes, would be right."
        )
    return splits


def _has_images(path: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.rglob("*"))


def _image_files(folder: str):
    """All pictures in a folder, whatever the library would make of a "test" in their names, of archives, metadata."""
    from datasets.data_files import DataFilesList
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    found = DataFilesList.from_patterns(["**"], base_path=folder)
    suffixes = {*IMAGE_SUFFIXES, *ImageFolder.EXTENSIONS}
    kept = [i for i, file in enumerate(found) if Path(file).suffix.lower() in suffixes]
    return DataFilesList([found[i] for i in kept], [found.origin_metadata[i] for i in kept])


def _load_files(kind: str, **options):
    """``load_dataset`` of local files, without the request over the network by which it counts downloads."""
    from datasets import config, load_dataset

    counting, config.HF_UPDATE_DOWNLOAD_COUNTS = config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        return load_dataset(kind, **options)
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = counting


def _files_of_splits(files: list[str]) -> dict[str, list[str]]:
    """``files`` by the split that starts their names, 'train-00000-of-00001.parquet'; all are train where none does."""
    found = {name: [] for name in SPLITS}
    for file in files:
        if match := re.match(r"(train|test|validation|valid|val)(?![a-z])", Path(file).name):
            found[match[1]].append(file)
    return {name: chosen for name, chosen in found.items() if chosen} or {"train": files}


def _file_format(path: Path) -> str:
    suffix = path.suffix.removeprefix(".")
    if suffix not in ("parquet", "arrow"):
        raise UserError(f"data set file {path} must end in .parquet, .arrow or {', '.join(IDX_SUFFIXES)}.")
    return suffix
