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
    return sum(s >= threshold for s in genuine) + sum(s < threshold for s in impostor)


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


def test_what_is_told_apart_and_what_is_not() -> None:
    same = torch.arange(40_000) < 20_000
    apart = verified(same.float(), same)
    assert apart == Verification(20_000, 20_000, 1.0, 0.0, {1e-3: 1.0, 1e-4: 1.0})
    alike = verified(torch.zeros(40_000), same)
    assert alike.accuracy == 0.5
    assert alike.accept_rates == {1e-3: 0.0, 1e-4: 0.0}
