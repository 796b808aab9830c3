"""The report of ``evaluate``: what it holds, how its numbers are called and written, and how a file of it is read.

Used by all that write, read or show one: the command, the model card, the page and the README. No torch.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator, with_config
from typing_extensions import Required, TypedDict

from ddpm_hf.reading import is_finite, parse_json, read_json

WEIGHTS_DIGEST = "weights_sha256"  # of the protocol: which weights the report is of (ddpm_hf.run.weights_digest)


class Title(NamedTuple):
    """How a score is shown: its title, the factor of its number; and the type of its metric on the Hub."""

    title: str
    factor: int
    hub_type: str

    @property
    def metric(self) -> str:
        """The title of the number itself."""
        return self.title.split(" x ")[0]


# what a printed report says of its protocol, a line each
PRINTED = (
    ("images", "sampler", "steps", "guidance_scale", "guidance_interval", "seed", "dtype", "weights"),
    ("dataset", "split", "reference_split"),
    ("size", "resizing", "preprocessing"),
)


def _shown(value):
    """None for a number that is not finite, or too large to calculate with: it cannot be shown."""
    return None if isinstance(value, int | float) and not isinstance(value, bool) and not is_finite(value) else value


Number = Annotated[Annotated[float, Field(strict=True)] | None, BeforeValidator(_shown)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**12)]


@with_config(ConfigDict(extra="allow", strict=True))
class Protocol(TypedDict, total=False):
    """Everything the numbers depend on, name -> value; these are checked."""

    num_images: Required[Count]
    reference_images: Required[Count]
    features: Required[str]
    dataset: str
    sampler: str
    command: str
    weights_sha256: str


class Scores(BaseModel):
    """How far a set of images is from a reference set; None is not known.

    fid: Frechet distance of their features (Heusel et al. 2017, equation 6), >= 0.
    kid, kid_std: squared maximum mean discrepancy, cubic kernel, of 100 subsets (Binkowski et al. 2018, section 4).
    precision, recall: share of the images within the reference's k-NN manifold, and of the reference within the
        images' (Kynkaanniemi et al. 2019, equation 2), in [0, 1]; as many of the reference as there are images.
    inception_score, inception_score_std: exp of the mean divergence of the classes' probabilities from their mean
        (Salimans et al. 2016), >= 1; None without logits.
    label_accuracy: share of the images that the classifier finds in the class they are meant to be of.
    """

    model_config = ConfigDict(frozen=True)

    fid: Annotated[Number, Title("FID", 1, "fid")] = None
    kid: Annotated[Number, Title("KID x 1000", 1000, "kid")] = None
    kid_std: Number = None
    precision: Annotated[Number, Title("Precision", 1, "precision")] = None
    recall: Annotated[Number, Title("Recall", 1, "recall")] = None
    inception_score: Annotated[Number, Title("Inception score", 1, "inception_score")] = None
    inception_score_std: Number = None
    label_accuracy: Annotated[Number, Title("Label accuracy", 1, "accuracy")] = None


# of the scores that are shown, by name: in reports, cards, the page and the README
TITLES = {
    name: title for name, field in Scores.model_fields.items() for title in field.metadata if isinstance(title, Title)
}


class Memorisation(BaseModel):
    """Distances to the nearest training image, roots of mean squared pixel differences in [0, 1].

    median, real_median: of the images, and of unseen real ones (or of training images to the other ones). ratio: of
    the two; near 0 for copies. share_near: of the images, nearer than the nearest hundredth of the real ones.
    """

    model_config = ConfigDict(frozen=True)

    median: Number = None
    real_median: Number = None
    ratio: Number = None
    share_near: Number = None


class Row(NamedTuple):
    """A score as it is shown. real: that of as many real images, "" where it is not known."""

    name: str
    title: str
    value: str
    real: str


class EvaluationReport(BaseModel):
    """What ``evaluate`` found.

    scores: of the images. floor: of as many real images. fid_ratio: of the images to as many real ones. findings:
    sentences on what is wrong, empty when nothing is. neighbours: (image, nearest training image), the nearest first,
    uint8 (2, C, H, W) each; not in the file.
    """

    protocol: Annotated[Protocol, WrapValidator(lambda value, check: check(value) and value)]  # in its own order
    scores: Scores
    floor: Scores = Scores()
    memorisation: Memorisation = Memorisation()
    fid_ratio: Number = None
    findings: list[str] = []
    neighbours: list[Any] = Field([], exclude=True, repr=False)

    def as_json(self) -> str:
        return json.dumps(self.model_dump(), indent=2, allow_nan=False) + "\n"

    def rows(self) -> Iterator[Row]:
        """The scores that are known, as they are shown."""
        for name, (title, factor, _) in TITLES.items():
            texts = [
                "" if value is None else f"{factor * value:.3f}"
                for value in (getattr(self.scores, name), getattr(self.floor, name))
            ]
            if texts[0]:
                yield Row(name, title, *texts)

    def __str__(self) -> str:
        protocol, copies = self.protocol, self.memorisation
        lines = [
            ", ".join(f"{name.replace('_', ' ')}: {protocol[name]}" for name in names if name in protocol)
            for names in PRINTED
        ]
        lines = [line for line in lines if line]
        lines += [
            f"{protocol['num_images']:,} images against {protocol['reference_images']:,} of the reference, "
            f"{protocol['num_features']} features of {protocol['features']}; real: {protocol['floor']}",
            f"{'':18}{'images':>10}{'real':>10}",
            *(f"{row.title:18}{row.value:>10}{row.real:>10}".rstrip() for row in self.rows()),
            f"FID is {self.fid_ratio:.1f} times that of as many real images",
            f"nearest training image: {copies.ratio:.2f} of the distance of real images; "
            f"{100 * copies.share_near:.1f} % are nearer than 99 % of those",
        ]
        return "\n".join(lines + [f"finding: {finding}" for finding in self.findings])


def read_report(file: Path | str) -> EvaluationReport:
    """The report in a file, or in a text.

    Raises:
        ValueError: if it is none, in one line: what is wrong with it.
        OSError: if the file cannot be read.
    """
    try:
        values = parse_json(file) if isinstance(file, str) else read_json(file)
    except ValueError:
        raise ValueError("it is not JSON") from None
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    try:
        return EvaluationReport.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"] if part not in ("float", "int"))
        raise ValueError(f"{place}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from None
