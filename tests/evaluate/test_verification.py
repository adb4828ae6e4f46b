"""Thresholds, folds and accept rates, against their definitions written out."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluate.verification import (
    FOLDS,
    Verification,
    accepted,
    best_threshold,
    verified,
)

SCORES = st.lists(st.integers(-9, 9), min_size=1, max_size=25)


def right(genuine: list[int], impostor: list[int], threshold: float) -> int:
    """The sum of the shares on the right side, times the numbers of both kinds."""
    kept = sum(s >= threshold for s in genuine) * len(impostor)
    return kept + sum(s < threshold for s in impostor) * len(genuine)


@given(SCORES, SCORES)
def test_no_threshold_is_better(genuine: list[int], impostor: list[int]) -> None:
    found = best_threshold(torch.tensor(genuine).float(), torch.tensor(impostor).float())
    scores = sorted({*genuine, *impostor})
    between = [(a + b) / 2 for a, b in pairwise(scores)]
    best = max(right(genuine, impostor, t) for t in (scores[0] - 1, *between, scores[-1] + 1))
    assert right(genuine, impostor, found) == best


@given(SCORES, st.lists(st.integers(-9, 9), min_size=10, max_size=60))
def test_no_more_impostors_are_accepted_than_allowed(
    genuine: list[int], impostor: list[int]
) -> None:
    """And with the next lower threshold there would be more."""
    found = accepted(torch.tensor(genuine).float(), torch.tensor(impostor).float(), 0.1)
    allowed = len(impostor) // 10
    fitting = [t for t in sorted({*impostor}) if sum(score > t for score in impostor) <= allowed]
    assert found == pytest.approx(sum(s > fitting[0] for s in genuine) / len(genuine))


def test_a_rate_that_the_pairs_cannot_show() -> None:
    genuine = torch.ones(5)
    assert accepted(genuine, torch.zeros(999), 1e-3) is None
    assert accepted(genuine, torch.zeros(1000), 1e-3) == 1.0


def by_definition(scores: torch.Tensor, same: torch.Tensor) -> list[float]:
    """The ten folds of a list in which blocks of both kinds alternate."""
    found = []
    blocks = torch.arange(len(scores)) * FOLDS // len(scores)
    for fold in range(FOLDS):
        own = blocks == fold
        threshold = best_threshold(scores[~own & same], scores[~own & ~same])
        found.append(float(((scores[own] >= threshold) == same[own]).double().mean()))
    return found


def test_the_folds_are_those_of_a_list_of_alternating_blocks() -> None:
    generator = torch.Generator().manual_seed(3)
    same = torch.arange(600) // 30 % 2 == 0
    scores = torch.randn(600, generator=generator) + same
    found, expected = verified(scores, same), by_definition(scores, same)
    assert found.accuracy == pytest.approx(sum(expected) / FOLDS)
    assert found.deviation == pytest.approx(float(torch.tensor(expected).std()), rel=1e-6)
    assert 0.6 < found.accuracy < 0.8
    assert (found.same, found.different) == (300, 300)
    assert found.accept_rates == {1e-3: None, 1e-4: None}


def of_many_impostors(times: int) -> Verification:
    """Each impostor comes so many times; half as many are there as are genuine."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(300, generator=generator)
    scores = torch.cat((drawn[:200] + 1, drawn[200:].repeat_interleave(times)))
    return verified(scores, torch.arange(len(scores)) < 200)


def test_how_many_pairs_of_a_kind_there_are_changes_no_accuracy() -> None:
    one, many = of_many_impostors(1), of_many_impostors(60)
    assert (one.different, many.different) == (100, 6000)
    assert many.accuracy == pytest.approx(one.accuracy)
    assert many.deviation == pytest.approx(one.deviation)
    assert 0.6 < one.accuracy < 0.8


def test_what_is_told_apart_and_what_is_not() -> None:
    same = torch.arange(40_000) < 20_000
    apart = verified(same.float(), same)
    assert apart == Verification(20_000, 20_000, 1.0, 0.0, {1e-3: 1.0, 1e-4: 1.0})
    for share in (20_000, 400):
        alike = verified(torch.zeros(40_000), torch.arange(40_000) < share)
        assert alike.accuracy == 0.5
        assert alike.accept_rates == {1e-3: 0.0, 1e-4: 0.0}
