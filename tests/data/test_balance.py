"""Rare classes come as often as asked, their images in turn, in epochs of the same length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data.balance import Balance, balance_of
from harness.data.shares import BatchSplit, Place

COUNTS = (2, 100, 10, 0, 28)
LABELS = torch.arange(5).repeat_interleave(torch.tensor(COUNTS))


def comes(share: float, epochs: int, seed: int = 0) -> torch.Tensor:
    """How often each class comes in an epoch, on average."""
    balance = Balance(LABELS, share, seed)
    seen = torch.cat([LABELS[balance.images(epoch)] for epoch in range(epochs)])
    return seen.bincount(minlength=5) / epochs


def test_all_classes_equally_often():
    assert comes(1.0, 1).tolist() == [35, 35, 35, 0, 35]


def test_half_way():
    roots = torch.tensor([2.0, 100.0, 10.0, 0.0, 28.0]).sqrt()
    expected = roots / roots.sum() * 140
    assert (comes(0.5, 50) - expected).abs().max() < 0.2


def test_fractions_of_a_place_are_settled_by_chance():
    labels = torch.arange(1000)
    labels = torch.cat([labels, labels[:1].expand(3000)])
    balance = Balance(labels, 0.2, seed=1)
    expected = labels.bincount().double().pow(0.8)
    expected *= 4000 / expected.sum()
    seen = torch.stack([labels[balance.images(e)].bincount(minlength=1000) for e in range(40)])
    assert expected[1] % 1 > 0.3
    assert (seen.double().mean(0) - expected).abs().max() < 0.6
    assert seen.sum(1).tolist() == [4000] * 40


def test_images_of_a_class_take_turns():
    balance = Balance(LABELS, 1.0, seed=3)
    epochs = 8
    times = torch.cat([balance.images(epoch) for epoch in range(epochs)]).bincount(minlength=140)
    for label, count in enumerate(COUNTS):
        own = times[label == LABELS]
        assert count == 0 or own.max() - own.min() <= 1


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda each: each[-1] > 0),
    share=st.floats(0.01, 1),
    epoch=st.integers(0, 50),
    seed=st.integers(0, 2**31),
)
def test_an_epoch_has_as_many_images_as_there_are(counts, share, epoch, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    images = Balance(labels, share, seed).images(epoch)
    assert images.shape == labels.shape
    assert images.dtype == torch.int64
    assert 0 <= images.min() <= images.max() < len(labels)
    assert torch.equal(Balance(labels, share, seed).images(epoch), images)


def test_ranks_share_a_balanced_epoch_and_a_resumed_run_goes_on_in_it():
    balance = balance_of(LABELS, 1.0, 7)
    shares = [BatchSplit(140, 5, rank, 4, seed=7, balance=balance) for rank in range(4)]
    epoch = torch.cat([each.indices(t) for t in range(7) for each in shares])
    assert LABELS[epoch].bincount(minlength=5).tolist() == [35, 35, 35, 0, 35]
    resumed = BatchSplit(140, 5, 1, 4, 7, Place(0, 60), balance)
    assert resumed.first == 3
    for t in range(3, 10):
        assert torch.equal(resumed.indices(t), shares[1].indices(t))
    assert not torch.equal(shares[0].indices(0), shares[0].indices(7))


def test_no_balance_is_each_image_once():
    assert balance_of(LABELS, 0.0, 7) is None
    plain = BatchSplit(140, 5, 0, 4, seed=7)
    assert torch.equal(plain.indices(3), BatchSplit(140, 5, 0, 4, 7, balance=None).indices(3))


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds_differ(seed):
    one, other = (Balance(LABELS, 1.0, each).images(0) for each in (seed, seed + 1))
    assert not torch.equal(one, other)
