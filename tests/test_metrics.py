"""Scores against closed forms in float64, and as functions of sets: another order changes nothing."""

import numpy as np
import pytest
import torch

from ddpm_hf.evaluation.scores import (
    frechet_distance,
    inception_score,
    kernel_distance,
    nearest_neighbours,
    precision_recall,
    sorted_rows,
)


def rows(count: int, dim: int = 6, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def test_frechet_distance_is_that_of_two_normal_distributions():
    a, b = rows(300).double().numpy() * [1, 2, 3, 1, 1, 1], rows(400, seed=1).double().numpy() + 0.5
    sigma_a, sigma_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    middle = root(root(sigma_a) @ sigma_b @ root(sigma_a))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sigma_a + sigma_b - 2 * middle)
    assert abs(frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) - expected) < 1e-9


def test_frechet_distance_of_a_set_to_itself_is_zero():
    assert frechet_distance(rows(100), rows(100)) < 1e-9


def test_kernel_distance_is_the_unbiased_discrepancy_of_a_cubic_kernel():
    a, b = rows(200), rows(200, seed=1, shift=0.3)
    x, y = a.double().numpy(), b.double().numpy()

    def kernel(p, q):
        return (p @ q.T / 6 + 1) ** 3

    inner = sum((kernel(p, p).sum() - np.trace(kernel(p, p))) / (200 * 199) for p in (x, y))
    mean, std = kernel_distance(a, b)  # one subset is the whole set, so all subsets agree
    assert abs(mean - (inner - 2 * kernel(x, y).mean())) < 1e-5 * inner
    assert std < 1e-6


def test_precision_and_recall_tell_what_is_missing():
    real = rows(400)
    assert precision_recall(real, real) == (1, 1)
    precision, recall = precision_recall(real[real[:, 0] > 0], real)
    assert precision == 1 and recall < 0.8
    precision, recall = precision_recall(rows(400, seed=2, shift=20), real)
    assert (precision, recall) == (0, 0)


def test_precision_and_recall_by_definition():
    a, b = rows(50, 2), rows(60, 2, seed=1)

    def share(points, centres):
        own, between = torch.cdist(centres, centres), torch.cdist(points, centres)
        return (between <= own.sort().values[:, 3]).any(1).double().mean().item()

    precision, recall = precision_recall(a, b)
    assert abs(precision - share(a, b)) < 1e-6 and abs(recall - share(b, a)) < 1e-6


def test_inception_score_counts_the_classes_that_are_sure():
    sure = 50 * torch.eye(5).repeat(200, 1)
    assert inception_score(sure)[0] == pytest.approx(5, rel=0.02)
    assert inception_score(torch.zeros(100, 5))[0] == pytest.approx(1)


@pytest.mark.parametrize("score", [frechet_distance, kernel_distance, precision_recall])
def test_another_order_changes_nothing(score):
    a, b = rows(1500), rows(1300, seed=1)
    mixed = [part[torch.randperm(len(part))] for part in (a, b)]
    assert score(*mixed) == score(a, b)


def test_another_order_of_logits_changes_nothing():
    logits = rows(500)
    assert inception_score(logits[torch.randperm(500)]) == inception_score(logits)


def test_sorted_rows_keep_every_row_whole():
    table = torch.tensor([[2.0, 1.0], [1.0, 9.0], [2.0, 0.0]])
    assert sorted_rows(table).tolist() == [[1, 9], [2, 0], [2, 1]]


def test_the_distance_of_a_single_feature():
    a, b = rows(300, 1).double(), 2 * rows(400, 1, seed=1).double() + 1
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert abs(frechet_distance(a, b) - expected.item()) < 1e-9


def test_neighbours_that_are_nearly_as_far_are_told_apart_in_any_chunk():
    """Differences below what a float32 product of bright images can hold."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(200, 240, (60, 1, 28, 28), dtype=torch.uint8, generator=generator)
    nearly = images.repeat(2, 1, 1, 1).flatten(1)
    nearly[:, :40] += 1
    nearly[60:, 0] -= 1  # the second of two is nearer, by a square of 1 of 40
    others = nearly.reshape(120, 1, 28, 28)
    squares = torch.stack([(others.int() - image.int()).pow(2).flatten(1).sum(1) for image in images])
    for chunk in (7, 60):
        found = nearest_neighbours(images, others, chunk=chunk)
        assert torch.equal(found.indices, squares.argmin(1))
        assert torch.equal(found.distances, ((squares.min(1).values.double() / 784).sqrt() / 255).float())


def test_of_two_that_are_as_near_the_first_is_the_neighbour():
    others = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    assert nearest_neighbours(others[:2] + 1, others).indices.tolist() == [0, 0]
    itself = torch.tensor([[0], [2]])
    assert nearest_neighbours(others[:2] + 1, others, itself=itself).indices.tolist() == [1, 0]


def test_nearest_neighbours_are_the_nearest():
    generator = torch.Generator().manual_seed(0)
    others = torch.randint(0, 256, (300, 1, 5, 4), dtype=torch.uint8, generator=generator)
    images = torch.randint(0, 256, (70, 1, 5, 4), dtype=torch.uint8, generator=generator)
    images[7] = others[123]
    found = nearest_neighbours(images, others, chunk=32)
    distances = torch.cdist(images.flatten(1).double() / 255, others.flatten(1).double() / 255) / 20**0.5
    assert torch.equal(found.indices, distances.argmin(1))
    assert (found.distances - distances.min(1).values).abs().max() < 1e-6
    assert found.distances[7] == 0 and found.indices[7] == 123
