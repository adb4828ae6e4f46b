"""Which classes take part: the positives, and others that a plain program draws the same."""

import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.model.sampling import Draw, Sampler, least_drawn, rows_in_window
from harness.parallel.slices import Slice, slice_of
from tests.alone import CPU
from tests.drawn import drawn


def draw(
    share: float, classes: int, owners: int, own: int, micro_batch: int, labels: list[int]
) -> Draw:
    slices = [slice_of(classes, owners, owner) for owner in range(owners)]
    sampler = Sampler(share, seed=3, slices=slices, own=own)
    return sampler.draw(micro_batch, torch.tensor(labels, dtype=torch.int64))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_draw_is_that_of_a_plain_program(data: st.DataObject) -> None:
    """Of any shape: own positives in, the right number, no duplicates, in order."""
    owners = data.draw(st.integers(1, 5))
    classes = data.draw(st.integers(owners, 60))
    share = data.draw(st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.7, 0.99]))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=40))
    micro_batch = data.draw(st.integers(0, 2**40))
    total = 0
    for owner in range(owners):
        own = slice_of(classes, owners, owner)
        found = draw(share, classes, owners, owner, micro_batch, labels)
        rows = [row + own.start for row in found.rows.tolist()]
        assert rows == drawn(share, 3, micro_batch, own, labels)
        assert {label for label in labels if own.start <= label < own.stop} <= set(rows)
        total += len(rows)
    assert found.total == total


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_replicas_draw_the_same_but_for_their_positives(data: st.DataObject) -> None:
    """What takes part anywhere is one of the first ceil(r K) or a positive there."""
    classes, share = data.draw(st.integers(1, 80)), data.draw(st.sampled_from([0.1, 0.3, 0.6]))
    nodes = data.draw(
        st.lists(st.lists(st.integers(0, classes - 1), max_size=12), min_size=2, max_size=4)
    )
    alone = set(draw(share, classes, 1, 0, 7, []).rows.tolist())
    assert len(alone) == math.ceil(round(share * classes, 6))
    for labels in nodes:
        found = set(draw(share, classes, 1, 0, 7, labels).rows.tolist())
        assert found <= alone | set(labels)
        assert found == set(draw(share, classes, 1, 0, 7, labels[::-1]).rows.tolist())


@pytest.mark.parametrize(
    ("share", "classes", "count"),
    [
        (0.1, 70, 7),
        (0.1, 71, 8),
        (0.001, 5, 1),
        (0.3, 1, 1),
        (0.5, 0, 0),
        (0.999, 10**9, 999 * 10**6),
    ],
)
def test_a_share_is_rounded_up_so_that_no_slice_draws_nothing(
    share: float, classes: int, count: int
) -> None:
    assert least_drawn(share, classes) == count


def test_a_slice_without_classes_draws_none() -> None:
    sampler = Sampler(0.5, 0, [Slice(0, 0), Slice(0, 4)], own=0)
    found = sampler.draw(0, torch.tensor([1, 2, 3]))
    assert (len(found.rows), found.total) == (0, 3)


def test_more_positives_than_the_share_are_all_in_and_nothing_else() -> None:
    labels = [1, 4, 4, 7, 30, 8, 31]
    found = draw(0.1, 40, 2, 0, 0, labels)
    assert found.rows.tolist() == [1, 4, 7, 8]
    assert found.total == 4 + 2


@settings(max_examples=50, deadline=None)
@given(
    share=st.floats(0.01, 0.99),
    classes=st.integers(1, 60),
    owners=st.integers(1, 4),
    passes=st.integers(1, 4),
    window=st.integers(0, 10**6),
)
def test_a_window_s_rows_are_as_many_each_time_and_hold_all_that_are_drawn(
    share: float, classes: int, owners: int, passes: int, window: int
) -> None:
    slices = [slice_of(classes, owners, owner) for owner in range(owners)]
    numbers = range(window * passes, (window + 1) * passes)
    for owner, own in enumerate(slices):
        rows = Sampler(share, 7, slices, owner).rows_of_window(numbers, CPU).tolist()
        assert rows == sorted(set(rows))
        assert len(rows) == rows_in_window(share, own.size, passes)
        found = {own.start + row for row in rows}
        assert found <= set(range(own.start, own.stop))
        for number in numbers:
            assert found >= set(drawn(share, 7, number, own, labels=[]))


def test_places_of_targets_keep_their_order_beside_the_slice() -> None:
    """Of lower slices negative, of higher ones beyond all: what ties are broken by."""
    found = Draw(torch.tensor([2, 5, 6]), total=9)
    assert found.places(torch.tensor([-4, -1, 2, 6, 5, 9, 30])).tolist() == [-1, -1, 0, 2, 1, 3, 3]


CLASSES, DRAWS, SHARE = 400, 2000, 0.1


def counts(of: range) -> Tensor:
    """How often each class is drawn, [CLASSES], float64."""
    found = torch.zeros(CLASSES, dtype=torch.float64)
    for micro_batch in of:
        found[draw(SHARE, CLASSES, 1, 0, micro_batch, []).rows] += 1
    return found


def test_all_classes_are_drawn_equally_often() -> None:
    """Chi-square over classes. A class is drawn with probability r in each of DRAWS: expected
    r DRAWS, variance r (1 - r) DRAWS. Draws of a fixed number of classes have (CLASSES - 1)
    degrees of freedom; the bounds are five standard deviations of chi-square off."""
    expected, variance = SHARE * DRAWS, SHARE * (1 - SHARE) * DRAWS
    found = float(((counts(range(DRAWS)) - expected) ** 2).sum() / variance)
    freedom = CLASSES - 1
    spread = 5 * math.sqrt(2 * freedom)
    assert freedom - spread < found < freedom + spread


def test_a_class_that_was_drawn_is_not_likelier_in_the_next_micro_batch() -> None:
    """Nor are its neighbours, nor those of another seed."""
    rows = [set(draw(SHARE, CLASSES, 1, 0, number, []).rows.tolist()) for number in range(DRAWS)]
    pairs = {
        "next": list(pairwise(rows)),
        "neighbours": [(a, {each + 1 for each in a}) for a in rows],
    }
    size, drawn_each = CLASSES, int(SHARE * CLASSES)
    mean = drawn_each**2 / size  # of a hypergeometric number of common classes
    deviation = math.sqrt(mean * (1 - SHARE) ** 2 * size / (size - 1) / DRAWS)
    for name, found in pairs.items():
        common = sum(len(a & b) for a, b in found) / len(found)
        assert abs(common - mean) < 5 * deviation, name


def test_seeds_and_micro_batches_draw_differently() -> None:
    slices = [slice_of(CLASSES, 1, 0)]
    nothing = torch.zeros(0, dtype=torch.int64)
    found = {
        tuple(Sampler(SHARE, seed, slices, 0).draw(number, nothing).rows.tolist())
        for seed in range(3)
        for number in random.Random(0).sample(range(10**6), 5)
    }
    assert len(found) == 15


def test_the_rows_of_a_window_are_computed_where_they_are_used() -> None:
    """The meta device has no values: whatever asked for one, as a copy to a card does, fails."""
    sampler = Sampler(0.2, 0, [Slice(0, 40), Slice(40, 90)], own=1)
    found = sampler.rows_of_window(range(6, 8), torch.device("meta"))
    assert found.is_meta
    assert found.shape == (rows_in_window(0.2, 50, 2),)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_a_card_finds_the_rows_that_a_processor_finds() -> None:
    sampler = Sampler(0.1, 3, [Slice(0, 10_000), Slice(10_000, 20_000)], own=1)
    on_card = sampler.rows_of_window(range(6, 9), torch.device("cuda"))
    assert on_card.tolist() == sampler.rows_of_window(range(6, 9), CPU).tolist()
