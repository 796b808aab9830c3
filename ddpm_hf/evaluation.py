"""How good generated images are: scores beside those of real images, nearest neighbours, and what that comes to.

``evaluate`` is the whole of it: images -> features -> ``Report``. Every rank makes and looks at an equal share of the
images; the report is the same for any number of ranks, order of the images and size of the batches.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image

from ddpm_hf.data import ImageData
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.features import FeatureExtractor, Features
from ddpm_hf.metrics import (
    NEIGHBOURS,
    Scores,
    frechet_distance,
    inception_score,
    kernel_distance,
    nearest_neighbours,
    precision_recall,
    sorted_rows,
)
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.sampling import generate

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
NEAR_PERCENTILE = 1  # of the reference's own distances: nearer than that is suspiciously near
COPIES_RATIO, COPIES_SHARE = 0.5, 0.1
FAR_RATIO = 2  # times the distance of unseen real images
FEWEST_OF_A_CLASS = 0.5  # of the images that are generated of it
POOR = 0.5  # of what real images reach
SHOWN_NEIGHBOURS = 12


@dataclass(frozen=True)
class ImageSet:
    """images: uint8 (N, C, H, W). labels: int64 (N,), the classes they are meant to be of, or None."""

    images: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def take(self, indices) -> "ImageSet":
        return ImageSet(self.images[indices], None if self.labels is None else self.labels[indices])


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image, roots of mean squared pixel differences in [0, 1].

    median, reference_median: of the images, and of the reference split's. ratio: of the two; near 0 for copies.
    share_near: of the images, nearer than the nearest hundredth of the reference; 0.01 for real ones.
    """

    median: float
    reference_median: float
    ratio: float
    share_near: float


@dataclass(frozen=True)
class Report:
    """What ``evaluate`` found.

    protocol: everything the numbers depend on, name -> value. scores: of the images. floor: of as many real images,
    which ``protocol`` names. findings: sentences on what is wrong, empty when nothing is.
    neighbours: rows of (image, nearest training image), the nearest first, uint8 (2, C, H, W) each.
    """

    protocol: dict
    scores: Scores
    floor: Scores
    memorisation: Memorisation
    findings: list[str]
    neighbours: list[torch.Tensor]

    def as_json(self) -> str:
        parts = {name: asdict(getattr(self, name)) for name in ("scores", "floor", "memorisation")}
        return json.dumps({"protocol": self.protocol, **parts, "findings": self.findings}, indent=2) + "\n"

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def evaluate(
    images: ImageSet, train: ImageSet, reference: ImageSet | None, extractor: FeatureExtractor, protocol: dict
) -> Report:
    """Score ``images`` against ``reference``. Collective: every rank gives the same sets.

    Args:
        images: what is judged, N of them.
        train: the training images, among which copies are looked for; the floor is the score of N of them, of the
            same classes where there are any.
        reference: other real images; None takes one half of ``train`` for it, and ``train`` is the other half.
        protocol: how the images were made, for the report.

    Raises:
        UserError: if there are too few images for the features, or the sets do not go together.
    """
    refuse_other_shapes(images, train, reference, protocol.get("images", "the images"))
    if reference is None:
        shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        train, reference = train.take(shuffled[::2]), train.take(shuffled[1::2])
    real = _real_images_like(images, train)
    found = [_extract(extractor, part) for part in (images, reference, real)]
    _check_count([len(images), len(reference), len(real)], found[0].features.shape[1], extractor.name)

    scores = _scores(found[0], found[1], _accuracy(found[0], images, extractor))
    floor = _scores(found[2], found[1], _accuracy(found[1], reference, extractor))
    memorisation, neighbours = _memorisation(images, train, reference)
    return Report(
        {
            **protocol,
            "num_images": len(images),
            "reference_images": len(reference),
            "floor_images": len(real),
            "floor": "training images, of the same classes where there are enough; label accuracy of the reference",
            "precision_recall": f"k = {NEIGHBOURS}, {min(len(images), len(reference))} of the reference",
            "size": "x".join(map(str, images.shape)),
            "features": extractor.name,
            "num_features": found[0].features.shape[1],
            "preprocessing": f"8-bit images; {extractor.rule}",
        },
        scores,
        floor,
        memorisation,
        _findings(scores, floor, memorisation),
        neighbours,
    )


# ---- the images


def image_set(data: ImageData, chunk: int = 4096) -> ImageSet:
    """All images of ``data`` at the size that generated ones have."""
    parts = [data.shown(np.arange(i, min(i + chunk, len(data)))) for i in range(0, len(data), chunk)]
    return ImageSet(torch.cat(parts), None if data.labels is None else torch.from_numpy(data.labels))


def generated_images(
    pipeline: MyDDPMPipeline, num_images: int, *, seed: int = 0, batch_size: int = 64, **options
) -> ImageSet:
    """Images of the seeds seed, seed + 1, ..., of all classes in turn, made by all ranks together.

    Args:
        options: of ``ddpm_hf.sampling.generate``.
    """
    state = PartialState()
    # whole batches: float32 rounds differently in others, which can change a pixel by one of its 256 values
    share = math.ceil(num_images / state.num_processes / batch_size) * batch_size
    start = min(state.process_index * share, num_images)
    count = min(share, num_images - start)
    options |= {"batch_size": batch_size, "progress": state.is_local_main_process}
    parts = gather_object([generate(pipeline, count, seed=seed + start, **options).arrays()] if count else [])
    images = np.concatenate([part["images"] for part in parts])
    labels = torch.from_numpy(np.concatenate([part["labels"] for part in parts])) if "labels" in parts[0] else None
    return ImageSet(_channels_first(images), labels)


def read_images(path: Path, label_names: Sequence[str] | None = None) -> ImageSet:
    """Images of a folder, or of an .npz as ``sample`` writes it.

    An .npz has ``images``, uint8 (N, H, W) or (N, H, W, 3), and perhaps ``labels`` (N,). In a folder, subfolders called
    like classes are the labels.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    return _read_npz(path) if path.suffix == ".npz" else _read_folder(path, list(label_names or ()))


def _read_npz(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays.get("labels")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); an .npz with the array images is wanted."
        ) from None
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))[0])
        raise UserError(f"image {bad} of {path} has pixels that are not numbers.")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise UserError(
            f"images of {path} are {images.dtype} {images.shape}; uint8 (N, H, W) or (N, H, W, 3) would be right."
        )
    if not len(images):
        raise UserError(f"{path} has no images.")
    if labels is not None and labels.shape != (len(images),):
        raise UserError(f"{path} has labels of shape {labels.shape} for {len(images)} images.")
    return ImageSet(_channels_first(images), None if labels is None else torch.from_numpy(labels.astype(np.int64)))


def _read_folder(path: Path, names: list[str]) -> ImageSet:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"folder {path} has no images; files ending in {', '.join(IMAGE_SUFFIXES)} are looked for.")
    arrays = []
    for file in files:
        try:
            with Image.open(file) as image:
                arrays.append(np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{file} is no image: {one_line(error)}.") from None
        if arrays[-1].shape != arrays[0].shape:
            raise UserError(
                f"{file} is {_size_of(arrays[-1])}, {files[0].name} is {_size_of(arrays[0])}; images of one size and "
                f"kind would be right."
            )
    folders = [file.parent.name for file in files]
    labels = torch.tensor([names.index(name) for name in folders]) if names and set(folders) <= set(names) else None
    return ImageSet(_channels_first(np.stack(arrays)), labels)


def _size_of(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]} {'gray' if array.ndim == 2 else 'RGB'}"


def _channels_first(images: np.ndarray) -> torch.Tensor:
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W)."""
    tensor = torch.from_numpy(images)
    return tensor[:, None] if images.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


# ---- checks


def refuse_other_shapes(images: ImageSet, train: ImageSet, reference: ImageSet | None, what: str):
    """Raise a UserError unless all are of one size and as many channels; ``what`` is what ``images`` are called."""
    for other in (train, reference):
        if other is not None and images.shape != other.shape:
            raise UserError(
                f"{what} are {'x'.join(map(str, images.shape))} (channels, height, width), the real ones "
                f"{'x'.join(map(str, other.shape))}; the same size and channels would be right."
            )


def _check_count(counts: list[int], num_features: int, name: str):
    names = ("generated or given", "reference", "training")
    for count, what in zip(counts, names):
        if count <= num_features:
            raise UserError(
                f"{count} {what} images are too few for the {num_features} features of {name}: their covariance needs "
                f"more than {num_features}."
            )


def _real_images_like(images: ImageSet, real: ImageSet) -> ImageSet:
    """As many real images, and of the same classes, as there are in ``images``, or the same share of each class.

    Where a class has too few for that, images of all classes.
    """
    shuffled = real.take(torch.randperm(len(real), generator=torch.Generator().manual_seed(0)))
    if images.labels is None or real.labels is None:
        return shuffled.take(slice(0, len(images)))
    classes = int(max(images.labels.max(), real.labels.max())) + 1
    wanted, there = (labels.bincount(minlength=classes) for labels in (images.labels, real.labels))
    share = min(1.0, (there / wanted)[wanted > 0].min().item())
    if share < FEWEST_OF_A_CLASS:
        return shuffled.take(slice(0, len(images)))
    rows = [torch.where(shuffled.labels == label)[0][: int(share * count)] for label, count in enumerate(wanted)]
    return shuffled.take(torch.cat(rows))


# ---- features and scores


def _extract(extractor: FeatureExtractor, images: ImageSet) -> Features:
    """Features of all images, every rank doing its share."""
    state = PartialState()
    share = math.ceil(len(images) / state.num_processes)
    mine = images.images[state.process_index * share : (state.process_index + 1) * share]
    parts = [part for part in gather_object([extractor(mine) if len(mine) else None]) if part is not None]
    logits = None if parts[0].logits is None else torch.cat([part.logits for part in parts])
    return Features(torch.cat([part.features for part in parts]), logits)


def _accuracy(found: Features, images: ImageSet, extractor: FeatureExtractor) -> float | None:
    if images.labels is None or found.logits is None or extractor.num_classes is None:
        return None
    return (found.logits.argmax(1) == images.labels).double().mean().item()


def _scores(found: Features, reference: Features, label_accuracy: float | None) -> Scores:
    kid, kid_std = kernel_distance(found.features, reference.features)
    evenly = torch.linspace(0, len(reference.features) - 1, min(len(found.features), len(reference.features))).long()
    precision, recall = precision_recall(found.features, sorted_rows(reference.features)[evenly])
    scores = Scores(
        frechet_distance(found.features, reference.features), kid, kid_std, precision, recall,
        label_accuracy=label_accuracy,
    )  # fmt: skip
    if found.logits is None:
        return scores
    mean, std = inception_score(found.logits)
    return replace(scores, inception_score=mean, inception_score_std=std)


def _memorisation(images: ImageSet, train: ImageSet, reference: ImageSet) -> tuple[Memorisation, list[torch.Tensor]]:
    near = nearest_neighbours(images.images, train.images)
    usual = nearest_neighbours(reference.images, train.images).distances
    threshold = torch.quantile(usual, NEAR_PERCENTILE / 100)
    median, reference_median = near.distances.median().item(), usual.median().item()
    result = Memorisation(
        median,
        reference_median,
        median / max(reference_median, 1e-9),
        (near.distances < threshold).double().mean().item(),
    )
    nearest = near.distances.argsort(stable=True)[:SHOWN_NEIGHBOURS]
    return result, [torch.stack((images.images[i], train.images[near.indices[i]])) for i in nearest]


# ---- words


def _findings(scores: Scores, floor: Scores, memorisation: Memorisation) -> list[str]:
    found = []
    # a few real images far from the rest have neighbourhoods that take in nearly anything: pixels tell, too
    if scores.precision < POOR * floor.precision or memorisation.ratio > FAR_RATIO:
        found.append(
            f"broken: precision {scores.precision:.2f}, real images reach {floor.precision:.2f}; the nearest real one "
            f"is {memorisation.ratio:.1f} times as far as usual: the images do not look like real ones."
        )
    elif scores.recall < POOR * floor.recall:
        found.append(
            f"collapsed: recall {scores.recall:.2f}, real images reach {floor.recall:.2f}: the images lack the variety "
            f"of real ones."
        )
    if memorisation.ratio < COPIES_RATIO or memorisation.share_near > COPIES_SHARE:
        found.append(
            f"copies: {100 * memorisation.share_near:.0f} % of the images are nearer to a training image than 99 % of "
            f"unseen real ones are (median distance {memorisation.ratio:.2f} of theirs)."
        )
    return found


def _lines(report: Report) -> list[str]:
    scores, floor, copies = report.scores, report.floor, report.memorisation
    protocol = report.protocol
    rows = [
        ("FID", scores.fid, floor.fid, ".3f"),
        ("KID x 1000", 1000 * scores.kid, 1000 * floor.kid, ".3f"),
        ("precision", scores.precision, floor.precision, ".3f"),
        ("recall", scores.recall, floor.recall, ".3f"),
        ("inception score", scores.inception_score, floor.inception_score, ".3f"),
        ("label accuracy", scores.label_accuracy, floor.label_accuracy, ".4f"),
    ]
    lines = [
        f"{protocol['num_images']:,} images against {protocol['reference_images']:,} of the reference, "
        f"{protocol['num_features']} features of {protocol['features']}",
        f"{'':18}{'images':>10}{'real':>10}",
    ]
    lines += [
        f"{name:18}{value:10{style}}" + (f"{real:10{style}}" if real is not None else "")
        for name, value, real, style in rows
        if value is not None
    ]
    lines.append(f"FID is {scores.fid / max(floor.fid, 1e-9):.1f} times that of real images")
    lines.append(
        f"nearest training image: {copies.ratio:.2f} of the distance of unseen real images; "
        f"{100 * copies.share_near:.1f} % are nearer than 99 % of those"
    )
    return lines + [f"finding: {finding}" for finding in report.findings]
