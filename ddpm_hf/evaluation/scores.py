"""Scores from features: torch-fidelity's, on rows put into an order of their own.

Subsets are drawn and numbers added in the order of the rows, so that a score would depend on the order in which the
images came. Sorted rows make it a function of the set.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm_hf.errors import UserError

NEIGHBOURS = 3  # k of precision and recall, as Kynkaanniemi et al. 2019 recommend
KID_SUBSETS, KID_SUBSET_SIZE, KID_DECIMALS = 100, 1000, 10
IS_SPLITS = 10
FEWEST = 10  # images: the splits of the inception score want one each
SEED = 2020  # of the subsets
CANDIDATES = 4  # for the nearest neighbour, told apart exactly


def refuse_too_few(count: int, num_features: int, what: str, name: str):
    """Raise a UserError unless ``count`` images are enough for the covariance of so many features of ``name``."""
    if count <= max(num_features, FEWEST - 1):
        raise UserError(
            f"{count} {what} images are too few for the {num_features} features of {name}; it needs at least "
            f"{max(num_features + 1, FEWEST)} generated, reference and training images (where the "
            f"reference split is small, --reference-split train compares with half of the training images)."
        )


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of (N, D) in lexicographic order."""
    array = rows.numpy()
    return rows[torch.from_numpy(np.lexsort(array.T[::-1]))]


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Distance of two normal distributions with the means and covariances of (N, D) and (M, D)."""
    statistics = [fid_features_to_statistics(sorted_rows(rows).double()) for rows in (features, reference)]
    for part in statistics:
        part["sigma"] = np.atleast_2d(part["sigma"])  # numpy's covariance of a single feature is a number
    # rounding can leave the distance of two equal sets a hair below zero
    return max(0.0, fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def kernel_distance(features: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """KID and its standard deviation over subsets, without the digits that differ from call to call.

    The sums of a matrix product come in an order that depends on threads and on where in memory the rows lie.
    """
    size = min(KID_SUBSET_SIZE, len(features), len(reference))
    result = kid_features_to_metric(
        sorted_rows(features).double(),
        sorted_rows(reference).double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        rng_seed=SEED,
        verbose=False,
    )
    names = ("kernel_inception_distance_mean", "kernel_inception_distance_std")
    mean, std = (round(result[name], KID_DECIMALS) for name in names)
    return mean, std


def precision_recall(features: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Improved precision and recall of (N, D) against (M, D)."""
    options = {"prc_neighborhood": NEIGHBOURS, "prc_batch_size": 2000, "save_cpu_ram": True, "verbose": False}
    result = prc_features_to_metric(sorted_rows(features), sorted_rows(reference), **options)
    return result["precision"], result["recall"]


def inception_score(logits: torch.Tensor) -> tuple[float, float]:
    """IS and its standard deviation over ten splits of (N, classes)."""
    result = isc_features_to_metric(sorted_rows(logits), IS_SPLITS, shuffle=True, rng_seed=SEED)
    return result["inception_score_mean"], result["inception_score_std"]


@dataclass(frozen=True)
class Neighbours:
    """The nearest of other images, for every image: distances float32 (N,) and which it is, int64 (N,)."""

    distances: torch.Tensor
    indices: torch.Tensor


def nearest_neighbours(
    images: torch.Tensor, others: torch.Tensor, *, itself: torch.Tensor | None = None, chunk: int = 1000
) -> Neighbours:
    """By the root of the mean squared difference of pixels, in [0, 1].

    Args:
        images, others: uint8 (N, C, H, W) and (M, C, H, W).
        itself: int64 (N, k), which of ``others`` an image is, and are not to be its neighbours.
    """
    pixels = others.flatten(1).float() / 255  # (M, P)
    norms = (pixels**2).sum(1)
    found = []
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        distances = norms - 2 * part.flatten(1).float() / 255 @ pixels.T  # |a - b|^2 less |a|^2
        if itself is not None:
            distances.scatter_(1, itself[start : start + chunk], torch.inf)
        found.append(_nearest(part, others, distances.topk(min(CANDIDATES, len(others)), 1, largest=False)))
    distances, indices = (torch.cat(parts) for parts in zip(*found))
    return Neighbours(distances, indices)


def _nearest(images: torch.Tensor, others: torch.Tensor, candidates) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of the candidates, by exact distances; the first of ``others`` where two are as near.

    The matrix product rounds: it loses the digits of small distances, which are those that matter, and rounds
    differently in a chunk of another size, so that it alone would make the neighbour depend on the images' order.
    """
    order = candidates.indices.argsort(1)
    indices, allowed = candidates.indices.gather(1, order), candidates.values.gather(1, order).isfinite()
    pixels = images.flatten(1).int()
    # columns of whole numbers (B,), one candidate at a time for the memory's sake
    squares = [(pixels - others[column].flatten(1).int()).pow(2).sum(1) for column in indices.T]
    squares = torch.stack(squares, 1).masked_fill(~allowed, torch.iinfo(torch.int64).max)
    nearest = squares.argmin(1, keepdim=True)
    means = squares.gather(1, nearest)[:, 0].double() / pixels.shape[1]
    return (means.sqrt() / 255).float(), indices.gather(1, nearest)[:, 0]
