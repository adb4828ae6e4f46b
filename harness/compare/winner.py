"""The first sentence of a verdict: the winner by time to accuracy, against the runner-up."""

from collections.abc import Sequence
from statistics import fmean

from harness.compare.intervals import FEWEST_PAIRS
from harness.compare.verdict import ACCURACY, Finding, Judgement, Verdict, seconds_to
from harness.compare.wording import (
    faster_or_slower,
    format_points,
    format_seconds,
    joined,
    possible_range,
    ratio_range,
    too_few,
    unfinished,
    without_result,
)
from harness.tracking.results import Variant


def overall(verdict: Verdict) -> str:
    """Names the winner by time to accuracy, compared with the runner-up, or says why none."""
    target = verdict.target
    if target is None and not verdict.baseline.summaries:
        return (
            f"No winner: {verdict.baseline.name} {verdict.baseline.fate}, so there is no target "
            f"accuracy; set one with --target."
        )
    if target is None:
        return (
            f"No winner: {verdict.baseline.name} learned nothing, so there is no target accuracy; "
            f"set one with --target."
        )
    made_it = [each for each in verdict.variants if verdict.reached[each.name].always]
    if not made_it:
        return f"No winner: no variant reached {target.top1:.2%} in all of its runs."
    if len(verdict.variants) == 1:
        return f"No comparison: {made_it[0].name} is the only variant."
    if len(made_it) == 1:
        return _only(verdict, made_it[0], f"{target.top1:.2%}")
    goal = f"by time to {target.top1:.2%}"
    if not any(each.difference.pairs for each in verdict.contest):
        return f"No winner {goal}: the variants that reached it have no common seed."
    return _first_of_all(verdict, goal)


def _only(verdict: Verdict, only: Variant, goal: str) -> str:
    """The sentence if only one variant always reaches the target.

    It does not win: those that missed the target in a seed may have been faster in the others.
    """
    others = [each for each in verdict.variants if each is not only]
    missed = ", ".join(_how_often(verdict, each) for each in others)
    seeds = min(len(each.summaries) for each in verdict.variants if each.summaries)
    chance = f" {too_few(seeds).capitalize()}." * (seeds < FEWEST_PAIRS)
    return (
        f"Only {only.name} reached {goal} in all of its completed runs "
        f"({_seconds_text(verdict, only)}); {missed}.{chance}{_price(verdict, only)}"
    )


def _how_often(verdict: Verdict, variant: Variant) -> str:
    reached = verdict.reached[variant.name]
    if not variant.summaries:
        return f"{variant.name} in none ({without_result(variant)})"
    others = unfinished(variant)
    return f"{variant.name} in {reached.runs} of {reached.of}{f' ({others})' if others else ''}"


def _first_of_all(verdict: Verdict, goal: str) -> str:
    next_best, *rest = verdict.contest
    first = next(each for each in verdict.variants if each.name == next_best.variant)
    name, pairs = f"{first.name} ({_seconds_text(verdict, first)})", next_best.difference.pairs
    lead = f"{faster_or_slower(next_best.interval.estimate)} than the runner-up {next_best.against}"
    contest = {each.judged for each in rest if each.difference.pairs}
    all_paired = all(each.difference.pairs for each in verdict.contest)
    if next_best.judged is Judgement.BETTER and contest <= {Judgement.BETTER} and all_paired:
        return f"Winner {goal}: {name}, {lead} ({ratio_range(next_best)}).{_price(verdict, first)}"
    tested = {next_best.judged, *contest}
    if tested == {Judgement.UNTESTED} and all_paired:
        return f"First {goal}: {name}, {lead}; {too_few(pairs)}."
    level = [each for each in verdict.contest if each.judged is not Judgement.BETTER]
    if all(each.judged is Judgement.SAME for each in level):
        found = [f"{each.against} ({possible_range(each)})" for each in level]
        return f"No difference among the best {goal}: {joined([name, *found])}."
    return f"No clear winner {goal}: {name} was first, but {joined(_doubts(level))}."


def _doubts(level: Sequence[Finding]) -> list[str]:
    """The reasons why the first cannot be called faster than these."""
    found = []
    alike = [each for each in level if each.judged in (Judgement.SAME, Judgement.OPEN)]
    if alike:
        names = [f"{each.against} ({possible_range(each)})" for each in alike]
        found.append(f"it is not distinguishable from {joined(names)}")
    for each in level:
        pairs, ratio = each.difference.pairs, each.interval.estimate
        if not pairs:
            found.append(f"{each.against} has no common seed with it")
        elif each.judged is Judgement.WORSE:
            faster = f"{faster_or_slower(1 / ratio)} over their {pairs} common seeds"
            found.append(f"{each.against} is {faster} ({ratio_range(each)})")
        elif each.judged is Judgement.UNTESTED:
            found.append(f"{too_few(pairs)} against {each.against}")
    return found


def _price(verdict: Verdict, winner: Variant) -> str:
    """A sentence on the accuracy that the winner lost; empty if it did not end less accurate."""
    accuracy = verdict.of(winner.name, ACCURACY)
    if accuracy is None or accuracy.judged is not Judgement.WORSE:
        return ""
    points = format_points(verdict, accuracy.interval.estimate)
    return f" It is less accurate than {verdict.baseline.name}: {points} points."


def _seconds_text(verdict: Verdict, variant: Variant) -> str:
    found = [seconds_to(run, verdict.target) for run in variant.summaries]
    seconds = fmean(each for each in found if each is not None)
    return ", ".join(filter(None, (format_seconds(seconds), unfinished(variant))))
