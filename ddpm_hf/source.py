"""One data set of a run: the only description of it, for settings, for the data package and from Python."""

import itertools
import re
from pathlib import Path

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from ddpm_hf.errors import UserError

# how the names of files end that hold many pictures; ddpm_hf.data.sources opens each kind
FILE_KINDS = {
    "table": (".parquet", ".arrow"),
    "arrays": (".npz", ".npy"),
    "archive": (".zip", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar", ".tgz"),
    "idx": ("-ubyte.gz", "-ubyte", ".idx.gz"),
}

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def split_of(name: str) -> str | None:
    """The split, train, validation or test, that a folder or file of this name holds; None for any other name.

    The names are those that ``datasets`` knows, in any case: its first or last word counts, 'Training', 'test_set',
    'train2017', 'flowers-val'.
    """
    words = re.findall(r"[a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in (*words[:1], *words[-1:]) if word in SPLIT_WORDS), None)


def matching_split(name: str, names) -> str | None:
    """The one of ``names`` that the split ``name`` means: itself, or the first that is another word for it."""
    return name if name in names else next((n for n in names if split_of(name) and split_of(n) == split_of(name)), None)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=4096))
class Source:
    """One data set to read; an entry of the setting ``datasets``.

    ``dataset`` is a Hub id, a folder or a file. ``weight`` is its share of the draws: all sets of a run have one, or
    none, and then their share is that of their images.
    """

    dataset: str = Field(min_length=1, description="as the setting of that name; so are the next seven")
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_names: tuple[str, ...] | None = None
    caption_column: str | None = None
    name: str | None = Field(None, description="what the set is called where class names need it; from its id if null")
    weight: float | None = Field(
        None,
        gt=0,
        le=1e12,
        description="share of the images drawn from it, for all sets or none; by their sizes if null",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value):
        return {"dataset": value} if isinstance(value, str) else value

    @property
    def title(self) -> str:
        """What the set is called where class names need it: ``name``, or the last part of its id or path."""
        path = Path(self.dataset).expanduser()
        if self.name or not path.exists():
            return self.name or path.name
        name = path.resolve().name
        for suffix in itertools.chain(*FILE_KINDS.values()):
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
                    f"which is trained on; use another split, or validation_split: auto."
                )


def _split_parts(split: str) -> list[str]:
    """The names in 'train[:10%]+test', each by the usual word for it."""
    parts = [name.strip().partition("[") for name in split.split("+")]
    return [(split_of(name) or name.replace("t10k", "test")) + bracket + rest for name, bracket, rest in parts]
