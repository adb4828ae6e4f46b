"""Means and paired differences with 95 % confidence intervals.

All intervals use Student's t, because seeds are few and their spread is estimated from them. Times
and speeds are compared on a log scale, so that a difference is a ratio; accuracies are compared in
points. `scipy.stats` has the same functions, but takes a second to import.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit

LEVEL = 0.95
NORMAL = 1.96
"""Half width of a 95 % interval in standard errors if the spread is known, not estimated."""
FEWEST_PAIRS = 3
"""Seeds needed for a test. With two, the half width of an interval is 13 standard errors."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; both ends are NaN for a single value."""

    estimate: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    def through(self, power: float) -> "Interval":
        """The interval of the estimate raised to `power`.

        A power of -1 turns a ratio of times into a ratio of speeds; it is decreasing, so the ends
        swap and are sorted again.
        """
        ends = sorted((self.low**power, self.high**power))
        return Interval(self.estimate**power, ends[0], ends[1])


@dataclass(frozen=True)
class Difference:
    """The difference of one variant from another, over the seeds that both have."""

    interval: Interval
    """A ratio if logarithms were compared, else a difference in the measure's unit."""
    p: float
    """Two-sided p value of the hypothesis of no difference; NaN if there are too few pairs."""
    pairs: int
    """Seeds that both variants have."""

    @property
    def tested(self) -> bool:
        return not math.isnan(self.p)


def mean_interval(values: Sequence[float]) -> Interval:
    """The 95 % interval of the mean; its ends are NaN below two values or for non-finite ones."""
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    mean = fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan)
    half = _quantile(len(values)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def differences(
    one: Sequence[float], other: Sequence[float], grain: float = 0.0, shared: float = 0.0
) -> Difference:
    """The mean of the paired differences `one - other`.

    Measured values are rounded to steps, and rounding adds its own spread: seeds that agree to the
    last digit prove no more than the digits resolve. `grain` is a step to which each seed is
    rounded independently, so that more seeds average it out. `shared` is a step to which all seeds
    are rounded in the same way; its error remains however many seeds there are.
    """
    found = [a - b for a, b in zip(one, other, strict=True)]
    if not found:
        return Difference(Interval(math.nan, math.nan, math.nan), math.nan, 0)
    mean = fmean(found)
    if len(found) < FEWEST_PAIRS:
        return Difference(Interval(mean, math.nan, math.nan), math.nan, len(found))
    quantile = _quantile(len(found))
    # half² = (t s / sqrt(n))² + (1.96 r)²: the spread s over seeds, at least the rounding of a
    # seed, shrinks with n; the shared rounding r does not.
    error = max(stdev(found), _rounding(grain)) / math.sqrt(len(found))
    half = math.hypot(quantile * error, NORMAL * _rounding(shared))
    interval = Interval(mean, mean - half, mean + half)
    if half == 0:
        return Difference(interval, 0.0 if mean else 1.0, len(found))
    # Scaled so that |mean| = half gives t = quantile: p < 0.05 exactly if the interval excludes 0.
    p = 2 * float(stdtr(len(found) - 1, -abs(mean) * quantile / half))
    return Difference(interval, p, len(found))


def _rounding(step: float) -> float:
    """Standard deviation of the difference of two values, each uniform within a step."""
    # A uniform value has variance step² / 12; the difference of two has twice that.
    return step / math.sqrt(6)


def ratios(
    one: Sequence[float], other: Sequence[float], grain: float = 0.0, shared: float = 0.0
) -> Difference:
    """The geometric mean of the paired ratios `one / other`; steps are fractions of the values."""
    found = differences([math.log(a) for a in one], [math.log(b) for b in other], grain, shared)
    logs = found.interval
    interval = Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high))
    return Difference(interval, found.p, found.pairs)


def holm(ps: Sequence[float]) -> list[float]:
    """Corrects p values for multiple tests by Holm's method; NaN (no test) stays NaN."""
    # The k-th smallest of m p values is multiplied by m - k + 1, and never below the one before.
    order = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    found, largest = list(ps), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        found[place] = largest
    return found


def _quantile(count: int) -> float:
    """The two-sided quantile of Student's t for `count` values."""
    return float(stdtrit(count - 1, (1 + LEVEL) / 2))
