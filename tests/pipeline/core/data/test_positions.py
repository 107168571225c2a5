from itertools import chain

import numpy as np
import pytest

from pipeline.core.data.positions import PositionSampler, epoch_order
from pipeline.core.errors import UserError


def test_an_epoch_is_a_permutation_of_its_own():
    first, second, other = epoch_order(0, 0, 50), epoch_order(0, 1, 50), epoch_order(1, 0, 50)
    for order in (first, second, other):
        assert sorted(order.indices) == list(range(50))
        assert 10 < order.flips.sum() < 40
    assert not np.array_equal(first.indices, second.indices) and not np.array_equal(first.indices, other.indices)
    assert np.array_equal(first.indices, epoch_order(0, 0, 50).indices)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_processes_share_each_batch_in_contiguous_rows(world_size):
    ranks = [list(PositionSampler(5, 45, 8, rank, world_size)) for rank in range(world_size)]
    joined = [list(chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert joined == [list(range(i, i + 8)) for i in range(5, 45, 8)]
    assert all(len(PositionSampler(5, 45, 8, r, world_size)) == 5 for r in range(world_size))


@pytest.mark.parametrize("n", [1, 2, 50, 70_000, 200_001])
def test_the_order_is_numpys_permutation_in_half_the_memory(n):
    rng = np.random.Generator(np.random.Philox(key=np.array([7, 3], dtype=np.uint64)))
    indices, flips = rng.permutation(n), rng.random(n) < 0.5
    order = epoch_order(7, 3, n)
    assert np.array_equal(order.indices, indices) and np.array_equal(order.flips, flips)
    assert order.indices.nbytes + order.flips.nbytes == 5 * n


def test_restart_continues():
    assert list(PositionSampler(0, 64, 8))[3:] == list(PositionSampler(24, 64, 8))


def test_batches_are_full_and_the_end_is_the_end():
    assert list(PositionSampler(0, 5, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(PositionSampler(0, 5, 4, 1, 2)) == len(list(PositionSampler(0, 5, 4, 1, 2))) == 2
    assert list(PositionSampler(8, 8, 4, 1, 2)) == [] and len(PositionSampler(12, 8, 4)) == 0


@pytest.mark.parametrize("batch_size", [0, 7])
def test_batch_that_processes_cannot_share(batch_size):
    with pytest.raises(UserError, match=f"batch_size: {batch_size}.*multiple of 2"):
        PositionSampler(0, 10, batch_size, 0, 2)
