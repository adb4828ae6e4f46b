"""The verdict in words: one line on who wins, one per rival, and what the words mean."""

import math
import textwrap
from collections.abc import Sequence
from statistics import fmean

from harness.study.intervals import FEWEST_PAIRS, Interval
from harness.study.results import Variant
from harness.study.verdict import (
    ACCURACY,
    SECONDS,
    THROUGHPUT,
    Finding,
    Judgement,
    Verdict,
    accuracy_grain,
    seconds_to,
)

_B, _W, _S, _O = Judgement.BETTER, Judgement.WORSE, Judgement.SAME, Judgement.OPEN
HEADS = {
    (_B, _B): "better: faster and more accurate",
    (_B, _S): "better: faster and as accurate",
    (_B, _O): "faster; accuracy: cannot tell",
    (_B, _W): "faster but less accurate",
    (_S, _B): "better: as fast and more accurate",
    (_S, _S): "no difference here",
    (_S, _O): "no difference in speed; accuracy: cannot tell",
    (_S, _W): "worse: as fast but less accurate",
    (_O, _B): "more accurate; speed: cannot tell",
    (_O, _S): "no difference in accuracy; speed: cannot tell",
    (_O, _O): "cannot tell",
    (_O, _W): "less accurate; speed: cannot tell",
    (_W, _B): "slower but more accurate",
    (_W, _S): "worse: slower and as accurate",
    (_W, _O): "slower; accuracy: cannot tell",
    (_W, _W): "worse: slower and less accurate",
}
"""What a rival is called, by its speed and its accuracy."""
WIDTH = 118


def sentences(verdict: Verdict) -> list[str]:
    """Who wins, then a sentence per rival."""
    return [overall(verdict), *(_rival(verdict, each) for each in verdict.rivals)]


def as_paragraphs(lines: Sequence[str], width: int = WIDTH) -> str:
    """For a terminal: wrapped, each sentence's further lines set in."""
    return "\n".join(textwrap.fill(line, width, subsequent_indent="    ") for line in lines)


def overall(verdict: Verdict) -> str:
    """The winner by time to accuracy, against the next best and not only the baseline."""
    target = verdict.target
    if target is None:
        return f"No winner: {verdict.baseline.name} learned nothing that others could be timed to."
    made_it = [each for each in verdict.variants if verdict.reached[each.name].always]
    if not made_it:
        return f"No winner: no variant reached {target.top1:.2%} in all of its runs."
    goal = f"by time to {target.top1:.2%}"
    if len(made_it) == 1 and len(verdict.variants) == 1:
        return f"{made_it[0].name} alone was run: nothing to compare it with."
    if len(made_it) == 1:
        (only,) = made_it
        return f"Winner {goal}: {_with_seconds(verdict, only)}; no other reached it in all runs."
    if not verdict.contest:
        return f"No winner {goal}: the variants that reached it have no seed in common."
    return _first_of_all(verdict, goal)


def _first_of_all(verdict: Verdict, goal: str) -> str:
    next_best = verdict.contest[0]
    first = next(each for each in verdict.variants if each.name == next_best.variant)
    told, pairs = _with_seconds(verdict, first), next_best.difference.pairs
    lead = f"{_times(next_best.interval.estimate)} sooner than the next, {next_best.against}"
    if next_best.judged is Judgement.UNTESTED:
        return f"First {goal}: {told}, {lead}; {too_few(pairs)} whether that is chance."
    rest = verdict.contest[1:]
    not_told = [each for each in rest if each.judged is not Judgement.BETTER]
    if next_best.judged is Judgement.BETTER and not not_told:
        return f"Winner {goal}: {told}; {lead} ({_ratio_range(next_best)}).{_price(verdict, first)}"
    level = [each for each in (next_best, *rest) if each.judged is not Judgement.BETTER]
    found = [f"{each.against} ({_hidden(each)})" for each in level]
    if all(each.judged is Judgement.SAME for each in level):
        return f"No difference among the best {goal}: {told}, and {', '.join(found)}."
    return f"No clear winner {goal}: first was {told}, but it cannot be told from {_and(found)}."


def _price(verdict: Verdict, winner: Variant) -> str:
    """Accuracy that winning cost."""
    accuracy = verdict.of(winner.name, ACCURACY)
    if accuracy is None or accuracy.judged is not Judgement.WORSE:
        return ""
    points = _points(verdict, accuracy.interval.estimate)
    return f" It ends less accurate than {verdict.baseline.name}: {points} points."


def _with_seconds(verdict: Verdict, variant: Variant) -> str:
    found = [seconds_to(run, verdict.target) for run in variant.summaries]
    seconds = fmean(each for each in found if each is not None)
    failed = f", {len(variant.failures)} more runs failed" if variant.failures else ""
    return f"{variant.name} ({_seconds(seconds)}{failed})"


def _rival(verdict: Verdict, rival: Variant) -> str:
    if not rival.summaries:
        return f"{rival.name}: no result, all {len(rival.failures)} runs failed."
    if not verdict.baseline.summaries:
        return f"{rival.name}: nothing to compare it with, {verdict.baseline.name} failed."
    clauses = [_to_target(verdict, rival), _accuracy(verdict, rival), _throughput(verdict, rival)]
    if rival.failures:
        clauses.append(f"{len(rival.failures)} of its runs failed")
    if verdict.baseline.failures:
        clauses.append(f"{len(verdict.baseline.failures)} of {verdict.baseline.name}'s runs failed")
    text = "; ".join(clause for clause in clauses if clause)
    return f"{rival.name}: {head(verdict, rival.name)}. It {text}."


def head(verdict: Verdict, rival: str) -> str:
    """What the rival is, in a few words."""
    throughput, accuracy = verdict.of(rival, THROUGHPUT), verdict.of(rival, ACCURACY)
    speed = verdict.of(rival, SECONDS) or throughput
    if speed is None:
        return f"no seed in common with {verdict.baseline.name}"
    if speed.judged is Judgement.UNTESTED:
        return too_few(speed.difference.pairs)
    untested = accuracy is None or accuracy.judged is Judgement.UNTESTED
    found = HEADS[speed.judged, Judgement.OPEN if untested or accuracy is None else accuracy.judged]
    return f"misses the target; {found}" if _misses(verdict, rival) else found


def _misses(verdict: Verdict, rival: str) -> bool:
    """A target that the baseline always reached."""
    return verdict.reached[verdict.baseline.name].always and not verdict.reached[rival].always


def too_few(pairs: int) -> str:
    return "one seed cannot tell" if pairs == 1 else f"{pairs} seeds cannot tell"


def _to_target(verdict: Verdict, rival: Variant) -> str:
    if verdict.target is None:
        return ""
    finding = verdict.of(rival.name, SECONDS)
    goal, baseline = f"{verdict.target.top1:.2%}", verdict.baseline.name
    if finding is None:
        own, other = verdict.reached[rival.name], verdict.reached[baseline]
        return (
            f"reaches {goal} in {own.runs} of {own.of} runs, {baseline} in {other.runs} of "
            f"{other.of}: no time to compare"
        )
    ratio = finding.interval.estimate
    times = f"{_times(max(ratio, 1 / ratio))} {'sooner' if ratio >= 1 else 'later'}"
    if finding.judged is Judgement.OPEN:
        one_side = (finding.interval.low - 1) * (finding.interval.high - 1) > 0
        hidden = _hidden(finding) + _among(verdict, finding, one_side)
        return f"reaches {goal} {hidden} than {baseline}"
    if finding.judged is Judgement.SAME:
        return f"reaches {goal} as soon as {baseline}, {_hidden(finding)}"
    if finding.judged is Judgement.UNTESTED:
        return f"reaches {goal} {times} than {baseline}"
    return f"reaches {goal} {times} than {baseline} ({_ratio_range(finding)})"


def _accuracy(verdict: Verdict, rival: Variant) -> str:
    finding = verdict.of(rival.name, ACCURACY)
    if finding is None:
        return ""
    interval = finding.interval
    estimate = f"{_points(verdict, interval.estimate)} points"
    if finding.judged is Judgement.UNTESTED:
        return f"ends {estimate} from {verdict.baseline.name}'s accuracy"
    low, high = (_points(verdict, each) for each in (interval.low, interval.high))
    told = f"95%: {low} .. {high}"
    if finding.judged is Judgement.SAME:
        return f"ends as accurate ({estimate}, {told})"
    if finding.judged is Judgement.OPEN:
        ends = f"ends anything from {low} to {high} points from {verdict.baseline.name}'s accuracy"
        return ends + _among(verdict, finding, interval.low * interval.high > 0)
    word = "more" if finding.judged is Judgement.BETTER else "less"
    return f"ends {word} accurate ({estimate}, {told}, {_p(finding.p)})"


def _among(verdict: Verdict, finding: Finding, one_side: bool) -> str:
    """Why an interval on one side of no difference still decides nothing."""
    return f" ({_p(finding.p)} among {len(verdict.rivals)} rivals)" if one_side else ""


def _throughput(verdict: Verdict, rival: Variant) -> str:
    finding = verdict.of(rival.name, THROUGHPUT)
    if finding is None:
        return ""
    text = f"has {_times(finding.interval.estimate)} the images/s"
    interval = finding.interval
    if finding.judged is not Judgement.UNTESTED:
        text += f" (95%: {_ratio(interval.low)} - {_ratio(interval.high)}"
        decided = finding.judged in (Judgement.BETTER, Judgement.WORSE)
        text += f", {_p(finding.p)})" if decided else ")"
    return text


def _ratio_range(finding: Finding) -> str:
    """Of how many times sooner, or, below 1, later."""
    interval = finding.interval
    if interval.estimate < 1:
        interval = interval.through(-1)
    return f"95%: {_ratio(interval.low)} - {_ratio(interval.high)}, {_p(finding.p)}"


def _hidden(finding: Finding) -> str:
    """What difference in time the interval still leaves room for."""
    low, high = finding.interval.low, finding.interval.high
    if finding.judged is Judgement.SAME:
        return f"within \N{PLUS-MINUS SIGN}{100 * _furthest(finding.interval):.1f}%"
    return f"anything from {_sooner_or_later(low)} to {_sooner_or_later(high)}"


def _furthest(interval: Interval) -> float:
    return max(abs(math.log(interval.low)), abs(math.log(interval.high)))


def _sooner_or_later(ratio: float) -> str:
    return f"{_times(ratio)} sooner" if ratio >= 1 else f"{_times(1 / ratio)} later"


def _times(ratio: float) -> str:
    return f"{_ratio(ratio)} times"


def _ratio(ratio: float) -> str:
    """Three digits are more than seeds can hold."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def _points(verdict: Verdict, points: float) -> str:
    """As many decimals as the validation images can hold."""
    grain = accuracy_grain([run for each in verdict.variants for run in each.summaries])
    return f"{points:+.{1 if grain >= 0.05 else 2}f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def meaning(verdict: Verdict) -> list[str]:
    """What the words stand on: pairing, margins, corrections, and how fine the measures are."""
    found = [
        f"verdict: seeds in pairs, Student's t (times and speeds as logs), 95% intervals, at least "
        f"{FEWEST_PAIRS} seeds. 'No difference' is said only where the whole interval lies within "
        f"{SECONDS.margin:.0%} of time or speed, {ACCURACY.margin:g} points of accuracy"
    ]
    if len(verdict.rivals) > 1:
        found.append(f"p is corrected for {len(verdict.rivals)} rivals (Holm)")
    runs = [run for each in verdict.variants for run in each.summaries]
    grain = accuracy_grain(runs)
    if grain:
        found.append(
            f"accuracy of {100 / grain:,.0f} images: one is {grain:.2g} points. Intervals are over "
            f"seeds, with these images; others would move all accuracies"
        )
    return found
