"""How good images are: scores beside those of real images, nearest neighbours, and what that comes to.

``evaluate`` turns images into features, and these into an ``EvaluationReport``. Every rank looks at an equal share of
the images; the report is the same for any number of ranks, order of the images and size of the batches.
"""

import math

import torch

from ddpm_hf.devices import processes
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.features import FeatureExtractor, Features
from ddpm_hf.evaluation.report_schema import EvaluationReport, Memorisation, Scores
from ddpm_hf.evaluation.scores import (
    IS_SPLITS,
    KID_SUBSET_SIZE,
    KID_SUBSETS,
    NEIGHBOURS,
    frechet_distance,
    inception_score,
    kernel_distance,
    nearest_neighbours,
    precision_recall,
    refuse_too_few,
    sorted_rows,
)
from ddpm_hf.image_sets import ImageSet, on_all_ranks

SHOWN_NEIGHBOURS = 12
SAMPLE_OF_TRAIN = 2000  # training images whose distance to the others is usual, where no others are at hand
DUPLICATE = 1e-6  # distance up to which two images are the same

# when a report says that something is wrong
NEAR_PERCENTILE = 1  # of real images' own distances: nearer than that is suspiciously near
COPIES_RATIO, COPIES_SHARE = 0.5, 0.1
FAR_RATIO = 2  # times the distance of unseen real images
FAR_FID = 30  # times that of real images
POOR, NOT_GOOD, ONE_SIDED = 0.5, 0.92, 0.6  # of what real images reach


def evaluate(
    images: ImageSet,
    train: ImageSet,
    reference: ImageSet | None,
    extractor: FeatureExtractor,
    protocol: dict,
    *,
    label_names: list[str] | None = None,
    num_classes: int | None = None,
    mirrored: bool = False,
) -> EvaluationReport:
    """Score ``images`` against ``reference``. Collective: every rank gives the same sets.

    Args:
        images: what is judged, N of them.
        train: the training images, among which copies are looked for; N of them are the floor.
        reference: real images that were not trained on; None compares with one half of ``train``, and takes the floor
            from the other.
        protocol: how the images were made, for the report.
        label_names, num_classes: the classes of the labels; accuracy is measured where the extractor knows these.
        mirrored: look for copies among mirrored training images, too.

    Raises:
        UserError: if there are too few images for the features, or the sets do not go together.
    """
    refuse_other_shapes(images.shape, train, reference, protocol.get("images", "the images"))
    shuffled = train.take(torch.randperm(len(train), generator=torch.Generator().manual_seed(0)))
    real, compared = (shuffled, reference) if reference is not None else (shuffled.take(slice(0, None, 2)), None)
    compared = compared or shuffled.take(slice(1, None, 2))
    real = real.take(slice(0, len(images)))
    found, others, usual = (_extract(extractor, part) for part in (images, compared, real))
    for part, what in ((found, "generated or given"), (others, "reference"), (usual, "training")):
        refuse_too_few(len(part.features), part.features.shape[1], what, extractor.name)

    known = extractor.knows(label_names, num_classes)
    scores = _scores(found, others, _accuracy(found, images) if known else None)
    floor = _scores(usual, others, _accuracy(others, compared) if known else None)
    memorisation, neighbours = _memorisation(images, train, reference, mirrored)
    fid_ratio = _fid_of(found, others, len(real), scores) / max(floor.fid, 1e-9)
    facts = {
        "num_images": len(images),
        "reference_images": len(compared),
        "floor": f"{len(real)} training images; label accuracy of the reference",
        "precision_recall": f"k = {NEIGHBOURS}, {min(len(images), len(compared))} of the reference",
        "kid": f"{KID_SUBSETS} subsets of {min(KID_SUBSET_SIZE, len(images), len(compared))}, cubic kernel",
        "inception_score": f"{IS_SPLITS} splits" if scores.inception_score is not None else "none: no logits",
        "size": "x".join(map(str, images.shape)),
        "features": extractor.name,
        "num_features": found.features.shape[1],
        "preprocessing": f"8-bit images; {extractor.rule}",
        "copies": "looked for among mirrored training images, too" if mirrored else "looked for as they are",
    }
    findings = _findings(scores, floor, fid_ratio, memorisation)
    return EvaluationReport(
        protocol={**protocol, **facts},
        scores=scores,
        floor=floor,
        memorisation=memorisation,
        fid_ratio=fid_ratio,
        findings=findings,
        neighbours=neighbours,
    )


def refuse_other_shapes(shape: tuple[int, int, int], train: ImageSet, reference: ImageSet | None, what: str):
    """Raise a UserError unless all are of one size and as many channels; ``what`` has the ``shape`` (C, H, W)."""
    for other in (train, reference):
        if other is not None and shape != other.shape:
            raise UserError(
                f"{what} are {'x'.join(map(str, shape))} (channels, height, width), the real ones "
                f"{'x'.join(map(str, other.shape))}; both need the same size and number of channels."
            )


# ---- features and scores


def _extract(extractor: FeatureExtractor, images: ImageSet) -> Features:
    """Features of all images, every rank doing its share."""
    state = processes()
    share = math.ceil(len(images) / state.num_processes)
    mine = images.images[state.process_index * share : (state.process_index + 1) * share]
    parts = on_all_ranks(lambda: [tuple(extractor(mine))] if len(mine) else [])
    features, logits = zip(*parts)
    return Features(torch.cat(features), None if logits[0] is None else torch.cat(logits))


def _accuracy(found: Features, images: ImageSet) -> float | None:
    if images.labels is None:
        return None
    return (found.logits.argmax(1) == images.labels).double().mean().item()


def _some(rows: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` of the rows, or all, the same whatever their order."""
    return sorted_rows(rows)[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]


def _scores(found: Features, reference: Features, label_accuracy: float | None) -> Scores:
    kid, kid_std = kernel_distance(found.features, reference.features)
    precision, recall = precision_recall(found.features, _some(reference.features, len(found.features)))
    mean, std = (None, None) if found.logits is None else inception_score(found.logits)
    return Scores(
        fid=frechet_distance(found.features, reference.features),
        kid=kid,
        kid_std=kid_std,
        precision=precision,
        recall=recall,
        inception_score=mean,
        inception_score_std=std,
        label_accuracy=label_accuracy,
    )


def _fid_of(found: Features, reference: Features, count: int, scores: Scores) -> float:
    """The distance of ``count`` images: of fewer it is larger, so that only equal numbers compare."""
    if count == len(found.features):
        return scores.fid
    return frechet_distance(_some(found.features, count), reference.features)


def _memorisation(images: ImageSet, train: ImageSet, reference: ImageSet | None, mirrored: bool):
    others = torch.cat((train.images, train.images.flip(-1))) if mirrored else train.images
    near = nearest_neighbours(images.images, others)
    if reference is None:
        rows = torch.linspace(0, len(train) - 1, min(SAMPLE_OF_TRAIN, len(train))).long()
        itself = torch.stack((rows, rows + len(train)) if mirrored else (rows,), 1)
        usual = nearest_neighbours(train.images[rows], others, itself=itself).distances
    else:
        usual = nearest_neighbours(reference.images, others).distances
    usual = usual[usual > DUPLICATE] if (usual > DUPLICATE).any() else usual  # images that a data set has twice
    threshold = torch.quantile(usual, NEAR_PERCENTILE / 100)
    median, real_median = near.distances.median().item(), usual.median().item()
    share_near = (near.distances <= threshold).double().mean().item()
    ratio = median / max(real_median, 1e-9)
    result = Memorisation(median=median, real_median=real_median, ratio=ratio, share_near=share_near)
    nearest = near.distances.argsort(stable=True)[:SHOWN_NEIGHBOURS]
    return result, [torch.stack((images.images[i], others[near.indices[i]])) for i in nearest]


# ---- words


def _findings(scores: Scores, floor: Scores, fid_ratio: float, memorisation: Memorisation) -> list[str]:
    found = []
    # precision alone does not tell: a few real images far from the rest have neighbourhoods that take in anything
    far = fid_ratio > FAR_FID and scores.precision < NOT_GOOD * floor.precision
    if far or scores.precision < POOR * floor.precision or memorisation.ratio > FAR_RATIO:
        found.append(
            f"broken: FID {fid_ratio:.0f} times that of real images, precision {scores.precision:.2f} (real "
            f"{floor.precision:.2f}), recall {scores.recall:.2f} (real {floor.recall:.2f}): many images do not look "
            f"like real ones."
        )
    elif scores.recall < ONE_SIDED * floor.recall:
        found.append(
            f"collapsed: recall {scores.recall:.2f}, real images reach {floor.recall:.2f}: the images lack the variety "
            f"of real ones."
        )
    told = None not in (scores.label_accuracy, floor.label_accuracy)
    if told and scores.label_accuracy < POOR * floor.label_accuracy:
        found.append(
            f"wrong classes: {100 * scores.label_accuracy:.0f} % of the images look like the class they are meant to "
            f"be of, {100 * floor.label_accuracy:.0f} % of real ones do."
        )
    if memorisation.ratio < COPIES_RATIO or memorisation.share_near > COPIES_SHARE:
        found.append(
            f"copies: {100 * memorisation.share_near:.0f} % of the images are nearer to a training image than 99 % of "
            f"real ones are (median distance {memorisation.ratio:.2f} of theirs)."
        )
    return found
