"""Phrases of a verdict: formatted numbers, and what happened to runs without a result."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from harness.compare.intervals import Interval
from harness.compare.verdict import Finding, Judgement, Verdict, accuracy_grain
from harness.tracking.results import Variant

NO_SPEED = "no speed was measured"
"""Why a variant with results has no speed: no window of its runs was timed."""


def too_few(pairs: int) -> str:
    """Says that this number of seeds is too small for a test."""
    few = "one seed is" if pairs == 1 else f"{pairs} seeds are"
    return f"{few} too few for a test"


def unfinished(variant: Variant) -> str:
    """What happened to the variant's runs that have no result, joined by commas. Those that failed
    or still run are in no count of runs that missed the target; those that diverged are."""
    return ", ".join(
        f"{count} {'' if missed else 'more '}run{'s' * (count > 1)} {what}"
        for count, what, missed in _ends(variant)
    )


def lost_runs(variant: Variant, whose: str) -> list[str]:
    """A clause for each way in which runs of a variant with results ended without one."""
    return [f"{count} of {whose} runs {what}" for count, what, _ in _ends(variant)]


class _End(NamedTuple):
    """A way in which runs of a variant ended without a result."""

    runs: int
    what: str
    missed: bool = False
    """Whether these runs count as ones that missed the target."""


def _ends(variant: Variant) -> list[_End]:
    """How many runs of the variant ended in each way other than well."""
    where = ", ".join(dict.fromkeys(variant.diverged))
    still = f"{'is' if variant.running == 1 else 'are'} still running"
    found = [
        _End(len(variant.diverged), f"diverged ({where})", missed=True),
        _End(variant.failed, "failed"),
        _End(variant.running, still),
    ]
    return [each for each in found if each.runs]


def without_result(variant: Variant) -> str:
    """What happened to a variant of which no run completed."""
    ends = _ends(variant)
    if not ends:
        return "no run was started"
    if len(ends) == 1 and not variant.running:
        ((count, what, _),) = ends
        every = {1: "its only run", 2: "both runs"}.get(count, f"all {count} runs")
        return f"{every} {what}"
    return ", ".join(f"{count} run{'s' * (count > 1)} {what}" for count, what, _ in reversed(ends))


def ratio_range(finding: Finding) -> str:
    """The interval and p of a ratio; a ratio below 1 is turned over, as its text is."""
    interval = finding.interval
    if interval.estimate < 1:
        interval = interval.through(-1)
    return (
        f"95% CI {format_ratio(interval.low)}-{format_ratio(interval.high)}, {format_p(finding.p)}"
    )


def possible_range(finding: Finding) -> str:
    """The differences in time that the interval does not exclude."""
    low, high = finding.interval.low, finding.interval.high
    if finding.judged is Judgement.SAME:
        return f"95% CI within {100 * _furthest(finding.interval):.1f}% either way"
    return f"95% CI {faster_or_slower(low)} to {faster_or_slower(high)}"


def _furthest(interval: Interval) -> float:
    return max(abs(math.log(interval.low)), abs(math.log(interval.high)))


def faster_or_slower(ratio: float) -> str:
    """Formats a ratio of speeds, e.g. "1.16x faster"; below 1 it becomes "1.20x slower"."""
    return f"{times(ratio)} faster" if ratio >= 1 else f"{times(1 / ratio)} slower"


def times(ratio: float) -> str:
    """Formats a factor."""
    return f"{format_ratio(ratio)}x"


def format_ratio(ratio: float) -> str:
    """Formats a ratio with about three digits, which is more than a few seeds determine."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def format_points(verdict: Verdict, points: float) -> str:
    """Formats points of accuracy with as many decimals as the validation images resolve."""
    grain = accuracy_grain([run for each in verdict.variants for run in each.summaries])
    return f"{points:+.{1 if grain >= 0.05 else 2}f}"


def format_seconds(seconds: float) -> str:
    """Formats seconds with their unit."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def format_p(p: float) -> str:
    """Formats a p value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def joined(words: Sequence[str]) -> str:
    """Joins words by commas and a final "and"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
