"""Intervals and paired tests against scipy and arithmetic by hand, and how often they cry wolf."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_1samp, ttest_rel

from harness.compare.intervals import differences, holm, mean_interval, ratios

ONE = [0.971, 0.969, 0.975, 0.968, 0.972]
OTHER = [0.968, 0.970, 0.969, 0.966, 0.967]


def test_the_interval_of_a_mean_is_students() -> None:
    interval = mean_interval(ONE)
    low, high = ttest_1samp(ONE, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.estimate == pytest.approx(0.971)
    assert math.isnan(mean_interval([0.9]).low)
    assert math.isnan(mean_interval([0.9, math.nan]).estimate)


def test_a_paired_difference_is_scipys() -> None:
    found, theirs = differences(ONE, OTHER), ttest_rel(ONE, OTHER)
    assert found.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.pairs == 5


def test_a_ratio_is_a_difference_of_logs_and_turns_over_exactly() -> None:
    there, back = ratios([20.0, 22.0, 19.0], [10.0, 10.0, 10.0]), ratios([10.0] * 3, [20, 22, 19])
    assert there.interval.estimate == pytest.approx((20 * 22 * 19) ** (1 / 3) / 10)
    assert there.p == pytest.approx(back.p)
    turned = back.interval.through(-1)
    assert (turned.low, turned.high) == pytest.approx((there.interval.low, there.interval.high))


def test_two_seeds_are_no_test() -> None:
    assert not differences([1.0, 1.0], [2.0, 2.0]).tested
    assert not differences([1.0], [2.0]).tested
    assert differences([], []).pairs == 0


def test_seeds_that_agree_to_the_digit_prove_no_more_than_the_digit_holds() -> None:
    """Three times the same 0.1 points, of a set where one image is 0.1 points, is not p = 0."""
    found = differences([97.1, 97.2, 97.0], [97.0, 97.1, 96.9], grain=0.1)
    assert found.p > 0.05
    assert found.interval.low < 0 < found.interval.high
    assert differences([97.1] * 3, [97.0] * 3).p == 0  # without the guard


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    corrected = holm([math.nan, 0.02, 0.01])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.02, 0.02])


@pytest.mark.parametrize("seeds", [3, 5])
def test_of_a_hundred_studies_of_equals_five_are_called_different(seeds: int) -> None:
    """Noise that seeds share cancels; what is left is judged at the level that is promised."""
    generator = np.random.default_rng(1)
    alarms = covered = 0
    studies = 2000
    for _ in range(studies):
        shared = generator.normal(0, 0.10, seeds)
        one = np.exp(shared + generator.normal(0, 0.03, seeds))
        other = np.exp(shared + generator.normal(math.log(2.0), 0.03, seeds))
        alarms += ratios(one, other / 2).p < 0.05
        interval = ratios(other, one).interval
        covered += interval.low <= 2.0 <= interval.high
    assert 0.04 <= alarms / studies <= 0.06
    assert 0.94 <= covered / studies <= 0.96


def test_three_rivals_together_cry_wolf_no_oftener_than_one() -> None:
    generator = np.random.default_rng(21)
    studies, alarms = 600, 0
    for _ in range(studies):
        base = generator.normal(0, 0.03, 5)
        rivals = [generator.normal(0, 0.03, 5) for _ in range(3)]
        alarms += min(holm([differences(each, base).p for each in rivals])) < 0.05
    assert 0.01 <= alarms / studies <= 0.065


def test_the_interval_agrees_with_one_that_assumes_no_normal_distribution() -> None:
    generator = np.random.default_rng(22)
    values = list(generator.normal(10, 1, 60))
    theirs = bootstrap((values,), np.mean, rng=generator).confidence_interval
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_a_step_that_all_seeds_share_is_not_averaged_out() -> None:
    """A time seen at evaluations only: a hundred seeds that agree know it no better than three."""
    step = 0.1
    halves = [differences([0.2] * n, [0.1] * n, shared=step).interval.half for n in (3, 100)]
    assert halves == pytest.approx([1.96 * step / math.sqrt(6)] * 2)
    assert 2 * halves[0] > step  # an interval is never narrower than the step
    own = [differences([0.2] * n, [0.1] * n, grain=step).interval.half for n in (3, 100)]
    assert own[1] < own[0] / 10


def test_spread_over_seeds_and_a_shared_step_add_as_independent_errors() -> None:
    theirs = ttest_rel(ONE, OTHER).confidence_interval(0.95)
    half = math.hypot((theirs.high - theirs.low) / 2, 1.96 * 0.01 / math.sqrt(6))
    assert differences(ONE, OTHER, shared=0.01).interval.half == pytest.approx(half)


def test_p_is_below_the_level_exactly_where_the_interval_leaves_no_difference_out() -> None:
    generator = np.random.default_rng(3)
    sides = set()
    for _ in range(500):
        one = generator.normal(0.05, 0.03, 4)
        found = differences(one, [0.0] * 4, shared=0.02)
        outside = not found.interval.low <= 0 <= found.interval.high
        assert outside == (found.p < 0.05)
        sides.add(outside)
    assert sides == {True, False}


def test_times_rounded_to_the_same_evaluations_in_every_seed_are_covered_as_promised() -> None:
    """Where rounding is all there is, as where seeds agree, no more studies miss the truth."""
    generator = np.random.default_rng(4)
    studies, covered = 2000, 0
    for _ in range(studies):
        truth = generator.uniform(10, 20, 2)
        one, other = (np.ceil(each + generator.normal(0, 0.02, 3)) - 0.5 for each in truth)
        interval = differences(list(one), list(other), shared=1.0).interval
        covered += interval.low <= truth[0] - truth[1] <= interval.high
    assert covered / studies >= 0.94
