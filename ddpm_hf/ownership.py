"""Whose files are these? What the project did not write it neither replaces nor deletes.

A folder that the project writes has an index, a file whose content shows who wrote it, and other files of known names.
Where the index is ours, the files of these names are; everything else belongs to somebody and stays.
"""

import fnmatch
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_hf.errors import UserError
from ddpm_hf.reading import read_json, read_yaml

PREPARED = (".*", "README.md", "LICENSE*")  # what a new folder or a clone of a new repository may hold
SOURCE = f"ddpm_hf_*_{'[0-9a-f]' * 12}.py"  # the code of a component; the name holds its hash
WEIGHTS = ("diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model.safetensors.index*.json")
# of a tokenizer and a text encoder, as transformers writes them
OF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
OF_TOKENIZER += ("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model")
OF_TEXT_ENCODER = ("config.json", "model*.safetensors", "model.safetensors.index*.json")
OF_WORDS = (*(f"tokenizer/{name}" for name in OF_TOKENIZER), *(f"text_encoder/{name}" for name in OF_TEXT_ENCODER))
INDEX_ORDER = ("_class_name", "_diffusers_version", "unet", "scheduler")  # keys of model_index.json; see is_our_index
# settings that every run has saved since 0.1.0, and that together no other program has
SETTINGS = {"output_dir", "sample_size", "train_batch_size", "num_train_timesteps", "class_dropout_prob"}
SETTINGS |= {"checkpoints_total_limit", "ema_inv_gamma", "validation_split", "normalize_input"}


@dataclass(frozen=True)
class Layout:
    """A kind of folder that the project writes.

    index: the file that shows whose the folder is. is_ours: whether that file is as the project writes it.
    names: patterns of the project's files, the index included.
    """

    index: str
    is_ours: Callable[[Path], bool]
    names: tuple[str, ...]

    def owns(self, folder: Path) -> bool:
        """Whether ``folder`` is one that the project wrote."""
        return self.is_ours(folder / self.index)

    def collisions(self, folder: Path) -> list[str]:
        """Files, pipes and folders in ``folder`` that have names of this layout, but belong to somebody; empty files do
        not count, for replacing them loses nothing."""
        if self.owns(folder):
            return []
        found = {path for name in self.names for path in folder.glob(name)}
        return sorted(
            path.relative_to(folder).as_posix() for path in found if not (path.is_file() and path.lstat().st_size == 0)
        )


def mapping(read: Callable[[Any], Any], source: Any) -> dict:
    """The mapping that ``read`` finds in a file or a text; {} if there is none."""
    try:
        values = read(source)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_run(path: Path) -> bool:
    return set(mapping(read_yaml, path)) >= SETTINGS


def is_our_index(index: dict) -> bool:
    """Whether a model_index.json is as ``export_pipeline`` writes it: diffusers itself sorts the keys."""
    return tuple(index)[:4] == INDEX_ORDER


def _is_classifier(path: Path) -> bool:
    return mapping(read_json, path).get("_class_name") == "ImageClassifier"


def is_evaluation(path: Path) -> bool:
    """Whether a file is a report of ``evaluate``."""
    return {"protocol", "scores", "memorisation"} <= set(mapping(read_json, path))


RUN = Layout(
    "config.yaml",
    _is_run,
    (
        *("config.yaml", "metrics.jsonl", "facts.json", "report.html", "loss.png", "timesteps.png"),
        *("samples/step-*.png", "checkpoints/step-*", "checkpoints/.step-*", ".push", ".lock"),
    ),
)
PIPELINE = Layout(
    "model_index.json",
    lambda path: is_our_index(mapping(read_json, path)),
    (
        *("model_index.json", SOURCE, "unet/config.json", f"unet/{SOURCE}", *(f"unet/{name}" for name in WEIGHTS)),
        *("scheduler/scheduler_config.json", f"scheduler/{SOURCE}"),
        *OF_WORDS,
    ),
)
WEB = Layout(
    "model.json",
    lambda path: mapping(read_json, path).get("made_by") == "ddpm_hf export-web",
    (
        "model.json",
        "model.onnx",
        "index.html",
        "app.js",
        "sampler.js",
        "style.css",
        "runtime/ort*",
        "runtime/README.txt",
    ),
)
CLASSIFIER = Layout("config.json", _is_classifier, ("config.json", *WEIGHTS))


# ---- folders


def may_replace(folder: Path, layout: Layout) -> bool:
    """Whether ``folder`` can be written as one of ``layout``: it is not there, is ours, or was prepared for it."""
    if not os.path.lexists(folder):
        return True
    if not folder.is_dir() or any(path.is_symlink() and path.is_dir() for path in folder.iterdir()):
        return False
    return layout.owns(folder) or all(_matches(path.name, PREPARED) for path in folder.iterdir())


def replace_folder(folder: Path, new: Path, layout: Layout):
    """Move the folder ``new``, which lies beside ``folder`` in one of ours, to ``folder``.

    The project's files in ``folder`` go, all others stay. Where there are none, ``folder`` is replaced at once; else
    file by file, the index last.
    """
    if not folder.exists() or not others_in(folder, layout.names):
        old = new.parent / "old"
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:  # on Windows, of a file in it that is open
            if old.exists():
                old.rename(folder)
            raise
        return
    fresh = sorted(_files_in(new), key=lambda name: name == layout.index)
    for name in fresh:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, folder / name)
    for name in ours_in(folder, layout.names):
        if name not in fresh:
            (folder / name).unlink()


def ours_in(folder: Path, names: Iterable[str]) -> list[str]:
    """Files in ``folder`` that match one of ``names``."""
    names = tuple(names)
    return [name for name in _files_in(folder) if _matches(name, names)]


def others_in(folder: Path, names: Iterable[str]) -> list[str]:
    """Files in ``folder``, at any depth, that match none of ``names``, and empty folders."""
    empty = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink() and not any(path.iterdir())]
    names = tuple(names)
    others = [name for name in _files_in(folder) if not _matches(name, names)]
    return others + [path.relative_to(folder).as_posix() for path in empty]


def _files_in(folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path with slashes matches a pattern of as many parts."""
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


# ---- single files


def refuse_other_kind(path: Path, what: str = "--output"):
    """Raise a UserError where a file at ``path`` is not of the kind that its suffix tells, and would be replaced."""
    if path.is_file() and path.stat().st_size and not _is_of_kind(path):
        raise UserError(f"{what} {path} exists, and this command did not write it; choose another name.")


def _is_of_kind(path: Path) -> bool:
    if path.suffix == ".json":
        return is_evaluation(path)
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                return {"images.npy"} <= set(archive.namelist()) <= {"images.npy", "labels.npy"}
        except (OSError, zipfile.BadZipFile):
            return False
    with open(path, "rb") as file:
        start = file.read(12)
    return {
        ".png": start.startswith(b"\x89PNG\r\n\x1a\n"),
        ".gif": start.startswith(b"GIF8"),
        ".webp": start[:4] == b"RIFF" and start[8:] == b"WEBP",
        ".mp4": start[4:8] == b"ftyp",
    }[path.suffix]
