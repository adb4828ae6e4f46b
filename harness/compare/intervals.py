"""Means with 95 % intervals, and paired differences between two variants with theirs.

Student's t throughout: seeds are few, and their spread is estimated from them. Times and speeds
are compared on a log scale, so that a difference is a ratio; accuracies in points. `scipy.stats`
has the same and takes a second to import.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit

LEVEL = 0.95
NORMAL = 1.96
"""Standard errors to each side of a 95 % interval where the spread is known, not estimated."""
FEWEST_PAIRS = 3
"""Seeds below which there is no test: two give an interval 13 standard errors wide to each side."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the 95 % interval around it; both ends are NaN for a single value."""

    estimate: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    def through(self, power: float) -> "Interval":
        """Of the `power` of what is estimated: -1 turns a ratio of times into one of speeds."""
        ends = sorted((self.low**power, self.high**power))
        return Interval(self.estimate**power, ends[0], ends[1])


@dataclass(frozen=True)
class Difference:
    """One variant against another over the seeds that both have."""

    interval: Interval
    """A ratio for logs, else a difference in the measure's unit."""
    p: float
    """Two-sided, of no difference at all; NaN where there are too few pairs."""
    pairs: int

    @property
    def tested(self) -> bool:
        return not math.isnan(self.p)


def mean_interval(values: Sequence[float]) -> Interval:
    """Of the mean; a value that is not finite leaves no interval."""
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
    """Mean of `one - other`, value by value.

    Values come in steps, and rounding to a step adds its own spread: seeds that agree to the last
    digit prove no more than the digits hold. `grain`: a step to which each seed is rounded for
    itself, so that more seeds average it out. `shared`: one to which all seeds are rounded alike,
    which stays however many there are.
    """
    found = [a - b for a, b in zip(one, other, strict=True)]
    if not found:
        return Difference(Interval(math.nan, math.nan, math.nan), math.nan, 0)
    mean = fmean(found)
    if len(found) < FEWEST_PAIRS:
        return Difference(Interval(mean, math.nan, math.nan), math.nan, len(found))
    quantile = _quantile(len(found))
    error = max(stdev(found), _rounding(grain)) / math.sqrt(len(found))
    half = math.hypot(quantile * error, NORMAL * _rounding(shared))
    interval = Interval(mean, mean - half, mean + half)
    if half == 0:
        return Difference(interval, 0.0 if mean else 1.0, len(found))
    # Below 0.05 exactly where the interval leaves no difference out.
    p = 2 * float(stdtr(len(found) - 1, -abs(mean) * quantile / half))
    return Difference(interval, p, len(found))


def _rounding(step: float) -> float:
    """Standard deviation of a difference of two values, each uniform within a step."""
    return step / math.sqrt(6)


def ratios(
    one: Sequence[float], other: Sequence[float], grain: float = 0.0, shared: float = 0.0
) -> Difference:
    """Geometric mean of `one / other`, pair by pair. Steps are shares of the values."""
    found = differences([math.log(a) for a in one], [math.log(b) for b in other], grain, shared)
    logs = found.interval
    interval = Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high))
    return Difference(interval, found.p, found.pairs)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction for so many tests at once; NaN is no test and stays."""
    order = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    found, largest = list(ps), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        found[place] = largest
    return found


def _quantile(count: int) -> float:
    return float(stdtrit(count - 1, (1 + LEVEL) / 2))
