"""Laws of the ranks' shares: disjoint, equally long, and the same images for any world size."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data.shares import BatchSplit, epoch_order, evaluation_share
from harness.errors import UserError


@st.composite
def worlds(draw):
    """(length, batch size, world size) with at least one micro-batch in an epoch."""
    batch_size, world_size = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    length = draw(st.integers(batch_size * world_size, 200))
    return length, batch_size, world_size


def world_batch(length, batch_size, world_size, seed, t):
    shares = [BatchSplit(length, batch_size, rank, world_size, seed) for rank in range(world_size)]
    return [share.indices(t).tolist() for share in shares]


@given(worlds(), st.integers(0, 3))
def test_ranks_are_disjoint_and_equally_long_and_an_epoch_repeats_nothing(world, seed):
    length, batch_size, world_size = world
    share = BatchSplit(length, batch_size, 0, world_size, seed)
    seen = []
    for t in range(share.micro_batches_per_epoch):
        runs = world_batch(*world, seed, t)
        assert {len(run) for run in runs} == {batch_size}
        seen += chain(*runs)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(length))
    assert len(seen) + share.dropped == length
    assert share.dropped < batch_size * world_size


@given(worlds(), st.integers(0, 3), st.integers(0, 50))
def test_one_process_with_the_whole_batch_sees_the_same_images(world, seed, t):
    length, batch_size, world_size = world
    together = BatchSplit(length, batch_size * world_size, 0, 1, seed).indices(t).tolist()
    assert list(chain(*world_batch(*world, seed, t))) == together


@given(worlds(), st.integers(0, 3))
def test_the_second_epoch_starts_where_the_first_ends(world, seed):
    share = BatchSplit(world[0], world[1], 0, world[2], seed)
    first_of_second = share.indices(share.micro_batches_per_epoch)
    assert torch.equal(first_of_second, epoch_order(world[0], seed, 1)[: world[1]])


def test_epochs_and_seeds_differ():
    orders = [epoch_order(100, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_what_is_dropped_differs_between_epochs():
    share = BatchSplit(10, 4, 0, 2, seed=0)
    assert share.dropped == 2
    dropped = {frozenset(epoch_order(10, 0, epoch)[8:].tolist()) for epoch in range(5)}
    assert len(dropped) > 1


def test_fewer_images_than_one_micro_batch_of_all_ranks():
    with pytest.raises(UserError, match=r"15 training images.* takes 16 \(4 ranks x .*=4\)"):
        BatchSplit(15, 4, 0, 4, seed=0)


@given(st.integers(1, 200), st.integers(1, 6), st.integers(1, 9), st.integers(0, 250))
def test_evaluation_counts_each_image_once_in_equally_many_batches(length, world, batch, limit):
    parts = [evaluation_share(length, rank, world, batch, limit) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    counted = []
    for indices, valid in chain(*parts):
        assert indices.shape == valid.shape == (batch,)
        assert 0 <= int(indices.min()) <= int(indices.max()) < length
        counted += indices[valid].tolist()
    assert len(set(counted)) == len(counted) == (min(limit, length) if limit else length)


def test_a_limited_evaluation_is_spread_over_the_set():
    [(indices, valid)] = evaluation_share(1000, 0, 1, 10, limit=10)
    assert valid.all()
    assert indices.tolist() == list(range(0, 1000, 100))
