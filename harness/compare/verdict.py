"""The verdict of a study: which variant wins and by how much, from tests paired over seeds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

import pandas as pd

from harness.compare.intervals import Difference, Interval, differences, holm, ratios
from harness.compare.waits import wait_percent
from harness.measure.summary import RunSummary
from harness.tracking.results import PRIMARY, Target, Variant

ALPHA = 0.05
"""Significance level."""


class Judgement(StrEnum):
    """The result of a test of one variant against another."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "no difference"
    OPEN = "inconclusive"
    UNTESTED = "too few seeds"


@dataclass(frozen=True)
class Question:
    """A quantity in which two variants are compared."""

    name: str
    unit: str
    """Unit of the estimate."""
    margin: float
    """Differences within the margin do not matter: a fraction for ratios, else in the unit."""
    relative: bool
    """Whether the estimate is a ratio, above 1 if the variant is better, or a difference."""
    sign: int = 1
    """-1 if smaller values are better, else 1."""


SECONDS = Question("seconds_to_target", "x faster", 0.05, True, -1)
THROUGHPUT = Question("images_per_second", "x as many", 0.05, True)
ACCURACY = Question("final_top1", "points", 0.5, False)
WAIT = Question("wait_percent", "points of the step", 2.0, False, -1)
QUESTIONS: tuple[Question, ...] = (SECONDS, THROUGHPUT, ACCURACY, WAIT)
TIMING_GRAIN = 1e-3
"""Resolution of times and speeds, as a fraction: clocks of two runs are not compared below it."""


@dataclass(frozen=True)
class Finding:
    """The answer to one question about one variant against another."""

    question: Question
    variant: str
    against: str
    difference: Difference
    p: float
    """p value, corrected for the number of rivals in the same question."""
    judged: Judgement
    family: int = 1
    """The number of rivals that p is corrected for."""

    @property
    def interval(self) -> Interval:
        return self.difference.interval


@dataclass(frozen=True)
class Reached:
    """In how many of its runs a variant reached the target."""

    runs: int
    """Runs that reached the target."""
    of: int
    """Runs that completed or diverged."""

    @property
    def always(self) -> bool:
        """Whether there are such runs and all of them reached the target."""
        return 0 < self.of == self.runs


@dataclass(frozen=True)
class Verdict:
    """All tests of a study."""

    variants: tuple[Variant, ...]
    baseline: Variant
    target: Target | None
    findings: tuple[Finding, ...]
    """Tests of every rival against the baseline."""
    contest: tuple[Finding, ...]
    """Tests of the first at the target against all others that always reach it, the runner-up
    first; `pairs` is 0 for a pair without common seeds."""
    reached: Mapping[str, Reached]
    """By the variant's name."""

    def of(self, variant: str, question: Question) -> Finding | None:
        """The finding on a rival; None if the question was not asked: times, for example, are not
        compared if some run missed the target."""
        found = [f for f in self.findings if (f.variant, f.question) == (variant, question)]
        return found[0] if found else None

    @property
    def rivals(self) -> tuple[Variant, ...]:
        return tuple(each for each in self.variants if each is not self.baseline)

    @property
    def frame(self) -> pd.DataFrame:
        """A table with a row per test."""
        asked = [("baseline", each) for each in self.findings]
        asked += [("first at the target", each) for each in self.contest]
        return pd.DataFrame([_row(kind, each) for kind, each in asked], columns=list(_COLUMNS))


_COLUMNS = (
    *("compared_with", "variant", "against", "question", "unit", "seeds", "estimate"),
    *("low", "high", "p", "p_corrected", "judgement"),
)


def _row(kind: str, finding: Finding) -> dict[str, object]:
    difference = finding.difference
    return {
        "compared_with": kind,
        "variant": finding.variant,
        "against": finding.against,
        "question": finding.question.name,
        "unit": finding.question.unit,
        "seeds": difference.pairs,
        "estimate": difference.interval.estimate,
        "low": difference.interval.low,
        "high": difference.interval.high,
        "p": difference.p,
        "p_corrected": finding.p,
        "judgement": str(finding.judged),
    }


def judge(
    variants: Sequence[Variant],
    baseline: Variant,
    target: Target | None,
) -> Verdict:
    """Tests every rival against the baseline, and the first at the target against the others."""
    rivals = [each for each in variants if each is not baseline]
    reached = {each.name: reached_in(each, target) for each in variants}
    findings = [
        finding
        for question in QUESTIONS
        for finding in _ask(question, rivals, baseline, target, reached)
    ]
    contest = _contest(variants, target, reached)
    return Verdict(tuple(variants), baseline, target, tuple(findings), contest, reached)


def _ask(
    question: Question,
    rivals: Sequence[Variant],
    baseline: Variant,
    target: Target | None,
    reached: Mapping[str, Reached],
) -> list[Finding]:
    """Asks one question about all rivals. p values are corrected, so that all rivals together raise
    a false alarm no more often than one."""
    if question is SECONDS:
        # Variants that missed the target in a seed are left out: the mean over their other seeds
        # would be biased. Without the baseline there is nothing to compare with.
        rivals = [each for each in (*rivals, baseline) if reached[each.name].always]
        rivals = rivals[:-1] if baseline in rivals else []
    found = [_compare(question, each, baseline, target) for each in rivals]
    corrected = holm([each.difference.p for each in found])
    family = sum(each.difference.tested for each in found)
    return [
        replace(each, p=p, judged=_judged(question, each.difference, p), family=family)
        for each, p in zip(found, corrected, strict=True)
        if each.difference.pairs
    ]


def _contest(
    variants: Sequence[Variant], target: Target | None, reached: Mapping[str, Reached]
) -> tuple[Finding, ...]:
    """Tests the first at the target against all others that always reach it.

    No correction is needed: a winner is named only if every one of these tests is significant.
    """
    made_it = [each for each in variants if reached[each.name].always]
    times = {each.name: seconds_by_seed(each, target) for each in made_it}
    # Ranked on common seeds only: an easy seed that one variant alone ran must not make it first.
    shared = set.intersection(*(set(each) for each in times.values())) if times else set()

    def mean_time(variant: Variant) -> float:
        own = times[variant.name]
        return _geometric_mean(own[seed] for seed in shared or own)

    ranked = sorted(made_it, key=mean_time)
    return tuple(_compare(SECONDS, ranked[0], other, target) for other in ranked[1:])


def _compare(
    question: Question, variant: Variant, other: Variant, target: Target | None
) -> Finding:
    own, others = (_values(question, each, target) for each in (variant, other))
    seeds = sorted(own.keys() & others.keys())
    pairs = [own[seed] for seed in seeds], [others[seed] for seed in seeds]
    grain, shared = _steps(question, (variant, other), target)
    if question.relative:
        # If less is better (times), the ratio is turned over, so that above 1 is always better.
        difference = ratios(*(pairs if question.sign > 0 else pairs[::-1]), grain, shared)
    else:
        difference = differences(*pairs, grain, shared)
    judged = _judged(question, difference, difference.p)
    return Finding(question, variant.name, other.name, difference, difference.p, judged)


def _judged(question: Question, difference: Difference, p: float) -> Judgement:
    if not difference.tested:
        return Judgement.UNTESTED
    interval, margin = difference.interval, question.margin
    low, high = (1 / (1 + margin), 1 + margin) if question.relative else (-margin, margin)
    if low <= interval.low and interval.high <= high:
        return Judgement.SAME
    if p >= ALPHA:
        return Judgement.OPEN
    more = interval.estimate > (1 if question.relative else 0)
    less_wins = question.sign < 0 and not question.relative
    return Judgement.BETTER if more != less_wins else Judgement.WORSE


def _values(question: Question, variant: Variant, target: Target | None) -> dict[int, float]:
    """The values that can be compared, by seed: finite, and above zero for ratios."""
    measures: dict[Question, Callable[[RunSummary], float]] = {
        THROUGHPUT: lambda run: run.images_per_second,
        ACCURACY: lambda run: 100 * run.final.get(PRIMARY, math.nan),
        WAIT: lambda run: wait_percent(variant.config, run),
    }
    if question is SECONDS:
        found = seconds_by_seed(variant, target)
    else:
        found = {run.seed: measures[question](run) for run in variant.summaries}
    return {
        seed: value
        for seed, value in found.items()
        if math.isfinite(value) and (value > 0 or not question.relative)
    }


def seconds_by_seed(variant: Variant, target: Target | None) -> dict[int, float]:
    """Training seconds to the target by seed, of the runs that reached it."""
    found = {run.seed: seconds_to(run, target) for run in variant.summaries}
    return {seed: value for seed, value in found.items() if value is not None}


def seconds_to(run: RunSummary, target: Target | None) -> float | None:
    """Training seconds to the target; None without a target, or if the run missed it."""
    return None if target is None else run.seconds_to(target.top1)


def reached_in(variant: Variant, target: Target | None) -> Reached:
    """In how many of its runs the variant reached the target.

    A run that diverged has missed the target; one that failed is only reported as failed.
    """
    runs = len(variant.summaries) + len(variant.diverged)
    return Reached(len(seconds_by_seed(variant, target)), runs)


def _geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(fmean(logs)) if logs else math.inf


def _steps(
    question: Question, variants: Sequence[Variant], target: Target | None
) -> tuple[float, float]:
    """The resolution of this question's values: `grain` and `shared` of `differences`.

    Reaching the target is seen only at evaluations, which happen at the same windows in every seed,
    so this rounding is shared. Accuracy is rounded to one validation image, but which images a
    training gets right differs, so this rounding is independent for each seed.
    """
    if question is SECONDS:
        # The two variants round independently: their variances, share² / 12 each, are averaged
        # because `differences` assumes one step for both.
        shares = [fmean(_share_between(run, target) for run in v.summaries) for v in variants]
        return 0.0, max(TIMING_GRAIN, math.sqrt(fmean(share**2 for share in shares)))
    if question is ACCURACY:
        return accuracy_grain([run for each in variants for run in each.summaries]), 0.0
    return (TIMING_GRAIN if question is THROUGHPUT else 0.0), 0.0


def _share_between(run: RunSummary, target: Target | None) -> float:
    """Time between the evaluation that saw the target and the one before, as a fraction of the
    time to the target."""
    seconds = seconds_to(run, target)
    if not seconds:
        return 0.0
    times = map(run.seconds_at, run.evaluations)
    return (seconds - max((each for each in times if each < seconds), default=0.0)) / seconds


def accuracy_grain(runs: Sequence[RunSummary]) -> float:
    """Points of accuracy that one image of the primary validation set is worth; 0 if the size of
    the set was not recorded."""
    sizes = [next(iter(run.validation_images.values()), 0) for run in runs]
    return max((100 / size for size in sizes if size), default=0.0)
