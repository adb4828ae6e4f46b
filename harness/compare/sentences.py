"""The verdict as sentences: the winner, a line per rival, and what the terms mean."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from harness.compare.intervals import FEWEST_PAIRS, Interval
from harness.compare.verdict import (
    ACCURACY,
    SECONDS,
    THROUGHPUT,
    Finding,
    Judgement,
    Verdict,
    accuracy_grain,
)
from harness.compare.waits import phase_ms, waits_measured
from harness.compare.winner import overall
from harness.compare.wording import (
    NO_SPEED,
    faster_or_slower,
    format_p,
    format_points,
    format_ratio,
    lost_runs,
    possible_range,
    ratio_range,
    times,
    too_few,
    without_result,
)
from harness.measure.data_bound import bound_by_data
from harness.tracking.results import Variant

_B, _W, _S, _O = Judgement.BETTER, Judgement.WORSE, Judgement.SAME, Judgement.OPEN
HEADS = {
    (_B, _B): "better: faster and more accurate",
    (_B, _S): "better: faster and equally accurate",
    (_B, _O): "faster; accuracy inconclusive",
    (_B, _W): "faster but less accurate",
    (_S, _B): "better: equally fast and more accurate",
    (_S, _S): "no difference",
    (_S, _O): "equally fast; accuracy inconclusive",
    (_S, _W): "worse: equally fast but less accurate",
    (_O, _B): "more accurate; speed inconclusive",
    (_O, _S): "equally accurate; speed inconclusive",
    (_O, _O): "inconclusive",
    (_O, _W): "less accurate; speed inconclusive",
    (_W, _B): "slower but more accurate",
    (_W, _S): "worse: slower and equally accurate",
    (_W, _O): "slower; accuracy inconclusive",
    (_W, _W): "worse: slower and less accurate",
}
"""The headline of a rival, by the judgements of its time to the target and of its accuracy."""
COUNTS = {_B: "more images/s", _S: "equal images/s", _W: "fewer images/s"}
ENDS = {_B: "more accurate", _S: "equally accurate", _W: "less accurate"}
"""Headlines without times to the target, because more images/s alone are not an improvement."""
WIDTH = 118
"""Assumed width of a terminal."""


@dataclass(frozen=True)
class RivalLine:
    """The verdict on one rival."""

    variant: str
    head: str
    """The headline, a few words."""
    why: str = ""
    """A sentence with the numbers behind the headline; empty if there are none."""

    @property
    def text(self) -> str:
        return f"{self.variant}: {self.head}. {self.why}".rstrip()


def sentences(verdict: Verdict) -> list[str]:
    """The winner's sentence, then a line per rival."""
    return [overall(verdict), *(each.text for each in rival_lines(verdict))]


def rival_lines(verdict: Verdict) -> list[RivalLine]:
    """A line for each rival, in the order of the variants."""
    return [_rival(verdict, each) for each in verdict.rivals]


def as_paragraphs(lines: Sequence[str], width: int = WIDTH) -> str:
    """Wraps each line for a terminal, with its continuation lines indented."""
    return "\n".join(textwrap.fill(line, width, subsequent_indent="    ") for line in lines)


def _rival(verdict: Verdict, rival: Variant) -> RivalLine:
    baseline = verdict.baseline
    if not rival.summaries:
        return RivalLine(rival.name, f"no result, {without_result(rival)}")
    if not baseline.summaries:
        return RivalLine(rival.name, f"no comparison, because {baseline.name} {baseline.fate}")
    clauses = [_to_target(verdict, rival), _accuracy(verdict, rival), _throughput(verdict, rival)]
    for variant, whose in ((rival, "its"), (baseline, f"{baseline.name}'s")):
        clauses += lost_runs(variant, whose)
    text = "; ".join(clause for clause in clauses if clause)
    return RivalLine(rival.name, head(verdict, rival.name), f"It {text}.")


def head(verdict: Verdict, rival: str) -> str:
    """The headline of a rival, a few words."""
    throughput, accuracy = verdict.of(rival, THROUGHPUT), verdict.of(rival, ACCURACY)
    speed = verdict.of(rival, SECONDS) or throughput
    if speed is None and accuracy is not None:
        return NO_SPEED
    if speed is None:
        return f"no seed in common with {verdict.baseline.name}"
    if speed.judged is Judgement.UNTESTED:
        return too_few(speed.difference.pairs)
    ends = Judgement.OPEN if accuracy is None else accuracy.judged
    ends = Judgement.OPEN if ends is Judgement.UNTESTED else ends
    found = _by_count(speed.judged, ends) if speed is throughput else HEADS[speed.judged, ends]
    return f"misses the target; {found}" if _misses(verdict, rival) else found


def _by_count(images: Judgement, ends: Judgement) -> str:
    """A headline from images/s and accuracy alone, which do not show who reaches a target first."""
    if images is Judgement.OPEN:
        unknown = "images/s inconclusive"
        return "inconclusive" if ends is Judgement.OPEN else f"{ENDS[ends]}; {unknown}"
    if ends is Judgement.OPEN:
        return f"{COUNTS[images]}; accuracy inconclusive"
    joint = "but" if {images, ends} == {Judgement.BETTER, Judgement.WORSE} else "and"
    return f"{COUNTS[images]} {joint} {ENDS[ends]}"


def _misses(verdict: Verdict, rival: str) -> bool:
    """Whether the rival missed, at least once, a target that the baseline always reached."""
    return verdict.reached[verdict.baseline.name].always and not verdict.reached[rival].always


def _to_target(verdict: Verdict, rival: Variant) -> str:
    if verdict.target is None:
        return ""
    finding = verdict.of(rival.name, SECONDS)
    goal, baseline = f"{verdict.target.top1:.2%}", verdict.baseline.name
    if finding is None:
        own, other = verdict.reached[rival.name], verdict.reached[baseline]
        return (
            f"reaches {goal} in {own.runs} of {own.of} runs, {baseline} in {other.runs} of "
            f"{other.of}, so times are not compared"
        )
    apart = faster_or_slower(finding.interval.estimate)
    if finding.judged is Judgement.OPEN:
        among = _among(finding, _excludes_one(finding.interval))
        hidden = possible_range(finding) + among
        return f"reaches {goal} at a time not distinguishable from {baseline}'s ({hidden})"
    if finding.judged is Judgement.SAME:
        return f"reaches {goal} as fast as {baseline} ({possible_range(finding)})"
    if finding.judged is Judgement.UNTESTED:
        return f"reaches {goal} {apart} than {baseline}"
    return f"reaches {goal} {apart} than {baseline} ({ratio_range(finding)})"


def _accuracy(verdict: Verdict, rival: Variant) -> str:
    finding = verdict.of(rival.name, ACCURACY)
    if finding is None:
        return ""
    interval = finding.interval
    estimate = f"{format_points(verdict, interval.estimate)} points"
    differs = f"has a final accuracy that differs from {verdict.baseline.name}'s by"
    if finding.judged is Judgement.UNTESTED:
        return f"{differs} {estimate}"
    low, high = (format_points(verdict, each) for each in (interval.low, interval.high))
    spread = f"95% CI {low} to {high}"
    if finding.judged is Judgement.SAME:
        return f"is equally accurate ({estimate}, {spread})"
    if finding.judged is Judgement.OPEN:
        among = _among(finding, interval.low * interval.high > 0)
        return f"{differs} {low} to {high} points (95% CI{among})"
    word = "more" if finding.judged is Judgement.BETTER else "less"
    return f"is {word} accurate ({estimate}, {spread}, {format_p(finding.p)})"


def _among(finding: Finding, one_side: bool) -> str:
    """Why an interval that excludes "no difference" is still not significant: the correction."""
    if not one_side:
        return ""
    return f", not significant: {format_p(finding.p)} corrected for {finding.family} rivals"


def _excludes_one(interval: Interval) -> bool:
    return (interval.low - 1) * (interval.high - 1) > 0


def _throughput(verdict: Verdict, rival: Variant) -> str:
    finding = verdict.of(rival.name, THROUGHPUT)
    if finding is None:
        return ""
    interval = finding.interval
    text = f"has {times(interval.estimate)} the images/s"
    if finding.judged is Judgement.UNTESTED:
        return text
    spread = f"95% CI {format_ratio(interval.low)}-{format_ratio(interval.high)}"
    if finding.judged in (Judgement.BETTER, Judgement.WORSE):
        spread += f", {format_p(finding.p)}"
    if finding.judged is Judgement.OPEN:
        spread += _among(finding, _excludes_one(interval))
    return f"{text} ({spread})"


def _bound_by_data(variant: Variant) -> str:
    """As `bound_by_data` says of the mean over the runs of a variant whose waits are measured."""
    if not variant.timed or not waits_measured(variant.config):
        return ""
    names = {name for run in variant.timed for name in run.phases_ms}
    return bound_by_data(
        {name: fmean(phase_ms(run, name) for run in variant.timed) for name in names}
    )


def meaning(verdict: Verdict) -> list[str]:
    """Notes on the tests: pairing, margins, correction, who waits for images, and the resolution of
    accuracy."""
    found = [
        f"verdict: paired seeds, Student's t (of logarithms for times and speeds), 95% confidence "
        f"intervals, at least {FEWEST_PAIRS} seeds. 'No difference' and 'equally' mean that the "
        f"whole interval is within {SECONDS.margin:.0%} of time or speed, or within "
        f"{ACCURACY.margin:g} points of accuracy"
    ]
    if len(verdict.rivals) > 1:
        found.append(
            f"p of a comparison with {verdict.baseline.name} is corrected for all rivals that the "
            f"same question compares with it (Holm). Its interval is not, so p may be above 0.05 "
            f"where the interval excludes equality. A winner's p needs no correction, because a "
            f"winner must be ahead of every other variant with p below 0.05"
        )
    found += [
        f"{each.name} is bound by data: {shares}. Its images/s say more of how it reads than of "
        f"how nodes agree; see harness pack"
        for each in verdict.variants
        if (shares := _bound_by_data(each))
    ]
    found += [
        f"the runs of {each.name} chose different values of {', '.join(each.mixed)}: its means are "
        f"over all of them, and its settings are shown as its first run had them"
        for each in verdict.variants
        if each.mixed
    ]
    runs = [run for each in verdict.variants for run in each.summaries]
    grain = accuracy_grain(runs)
    if grain:
        found.append(
            f"accuracy is measured on {100 / grain:,.0f} images: one is {grain:.2g} points. "
            f"Intervals cover the variation over seeds; other images would shift all accuracies"
        )
    return found
