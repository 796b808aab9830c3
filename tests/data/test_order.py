"""The order of the images: a function of the seed and the position, every image its turn, weights to the draw."""

import itertools

import numpy as np
import pytest

from ddpm_hf.data import ImageOrder, epoch_order, mixed_seed
from ddpm_hf.data.order import largest_remainders


def test_an_epoch_shows_every_image_once_and_depends_on_seed_and_epoch():
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (10, 10), (3, 8), (1, 5)])
def test_steps_walk_through_the_epochs_without_gap(num_images, batch_size):
    steps = 12
    order = ImageOrder(7, [num_images])
    seen = np.concatenate([order.indices(step * batch_size, batch_size) for step in range(steps)])
    assert len(seen) == steps * batch_size
    for epoch in range(len(seen) // num_images):
        chunk = seen[epoch * num_images : (epoch + 1) * num_images]
        assert np.array_equal(chunk, epoch_order(7, epoch, num_images))


@pytest.mark.parametrize("sizes", [[10], [3, 4, 3]])
def test_without_weights_sets_are_one(sizes):
    indices = np.concatenate([ImageOrder(7, sizes).indices(5 * step, 5) for step in range(4)])
    assert np.array_equal(indices, np.concatenate([epoch_order(7, epoch, 10) for epoch in range(2)]))


def test_a_seed_depends_on_every_part_and_on_how_many_there_are():
    parts = [(), *(part for count in (1, 2, 3, 4) for part in itertools.product((0, 1, 2), repeat=count))]
    seeds = [mixed_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [mixed_seed(*part) for part in parts]


WEIGHTED = [([50, 10, 3], (0.5, 0.3, 0.2)), ([100, 7], (0.01, 0.99)), ([5, 5, 5], (1, 1, 1)), ([4, 90], (0.97, 0.03))]


@pytest.mark.parametrize(("sizes", "weights"), WEIGHTED)
def test_weights_are_kept_to_the_draw(sizes, weights):
    order, total = ImageOrder(3, sizes, weights), sum(sizes)
    source = np.repeat(np.arange(len(sizes)), sizes)
    wanted = largest_remainders(total, weights)
    assert sum(wanted) == total
    assert all(abs(count - total * weight / sum(weights)) < 1 for count, weight in zip(wanted, weights))
    epochs = [np.concatenate([order.indices(step, 1) for step in range(e * total, (e + 1) * total)]) for e in range(3)]
    for epoch in epochs:
        assert np.bincount(source[epoch], minlength=len(sizes)).tolist() == wanted
    assert not np.array_equal(source[epochs[0]], source[epochs[1]])


@pytest.mark.parametrize(("sizes", "weights"), WEIGHTED)
def test_a_set_gives_all_its_images_before_it_gives_one_again(sizes, weights):
    draws = np.concatenate([ImageOrder(3, sizes, weights).indices(64 * step, 64) for step in range(40)])
    firsts = np.cumsum([0, *sizes])
    for first, end in itertools.pairwise(firsts):
        own = draws[(draws >= first) & (draws < end)] - first
        for start in range(0, len(own) - (end - first), end - first):
            assert sorted(own[start : start + end - first]) == list(range(end - first))


def test_a_weighted_order_needs_no_past():
    sizes, weights = WEIGHTED[0]
    walked = ImageOrder(5, sizes, weights)
    walk = [walked.indices(16 * step, 16) for step in range(30)]
    for step in (29, 0, 17):
        assert np.array_equal(ImageOrder(5, sizes, weights).indices(16 * step, 16), walk[step])
    assert not np.array_equal(ImageOrder(6, sizes, weights).indices(0, 16), walk[0])
    assert not walked.__dict__.keys() - {"seed", "sizes", "num_images", "draws", "_epochs"}
