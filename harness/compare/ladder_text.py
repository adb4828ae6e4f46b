"""A study's ladder as text: its table, a closing sentence, and notes on how to read it."""

import math
from collections.abc import Sequence

from harness.compare.intervals import FEWEST_PAIRS, Difference, Interval
from harness.compare.ladder import Ladder, Rung, Worth
from harness.compare.levers import Lever
from harness.compare.sentences import as_paragraphs
from harness.compare.table import SPREAD, aligned, piped
from harness.compare.wording import format_ratio, joined, too_few

TITLE = "The ladder: what each lever is worth"
HEADS = (
    *("rung", "variant", "images/s", "ratio to rung below (95% CI)", "ratio to baseline (95% CI)"),
    *("seconds to target", "speed-up over rung below (95% CI)"),
    "speed-up over baseline (95% CI)",
)
NOUNS = {
    Lever.HIERARCHICAL: "the hierarchical route",
    Lever.FEWER_BYTES: "fewer bytes",
    Lever.RARER: "rarer exchanges",
    Lever.SLICED: "the sliced classifier",
    Lever.LOCAL_STEPS: "local steps",
    Lever.LATE: "lateness",
}
SINGULAR = (Lever.HIERARCHICAL, Lever.SLICED, Lever.LATE)


def as_text(ladder: Ladder) -> str:
    """The ladder for a terminal: a table of speeds, a table of times to the target, and notes."""
    cells = ladder_cells(ladder)
    speed = [row[:5] for row in cells]
    blocks = [f"{TITLE}\n{aligned(speed)}"]
    if ladder.target is not None:
        blocks.append(aligned([[row[0], *row[5:]] for row in cells]))
    return "\n\n".join([*blocks, as_paragraphs([closing(ladder), *ladder_notes(ladder)])])


def as_markdown(ladder: Ladder) -> str:
    """The ladder as a section of a Markdown page."""
    notes = "\n".join(f"* {note}" for note in ladder_notes(ladder))
    return "\n\n".join([f"## {TITLE}", piped(ladder_cells(ladder)), closing(ladder), notes])


def ladder_cells(ladder: Ladder) -> list[list[str]]:
    """The table's cells: a header row, then one row per rung."""
    rows = [list(HEADS)]
    for number, rung in enumerate(ladder.rungs):
        below, base = rung.over_below, rung.over_baseline
        row = [rung_name(rung, first=number == 0), rung.variant.name]
        row.append(_mean(rung.images_per_second, 0))
        row += [_ratio(each.speed if each else None) for each in (below, base)]
        row.append(_seconds(rung, ladder))
        row += [_ratio(each.time if each else None) for each in (below, base)]
        rows.append(row)
    return rows


def rung_name(rung: Rung, first: bool = False) -> str:
    """The levers that the rung adds, then those that it only pulls further."""
    pulled = " + ".join(rung.pulled)
    if first:
        return f"baseline ({pulled})" if pulled else "baseline"
    return ", ".join([pulled, *rung.pushed])


def closing(ladder: Ladder) -> str:
    """One sentence with the total speed-up and the factor that each lever contributes.

    It speaks of time to the target if all rungs reach it in all of their runs, else of images/s.
    """
    total = _of(ladder, ladder.rungs[-1].over_baseline)
    parts = [(rung, _of(ladder, rung.over_below)) for rung in ladder.rungs[1:]]
    known = [(rung, found) for rung, found in parts if found is not None]
    if total is None or not known:
        return "The rungs have no common seed with a measured speed."
    (first, its), *others = known
    verb = "contributes" if first.pulled[0] in SINGULAR else "contribute"
    parts_text = [f"{_noun(first)} {verb} {_worth(its)}"]
    parts_text += [f"{_noun(rung)} {_worth(found)}" for rung, found in others]
    return f"{_whole(ladder, total.interval)}: {joined(parts_text)}."


def _of(ladder: Ladder, worth: Worth | None) -> Difference | None:
    """The ratio that the closing sentence reports: time to the target, or images/s."""
    if worth is None:
        return None
    return worth.time if ladder.timed else worth.speed


def ladder_notes(ladder: Ladder) -> list[str]:
    """Notes that a reader needs to understand the table."""
    found = ["Each rung keeps the levers of the rung below and adds those that it is named after"]
    if any(len(rung.pulled) + len(rung.pushed) > 1 for rung in ladder.rungs[1:]):
        found.append(
            "A rung with several names changes all of these at once: the study has no variant in "
            "between"
        )
    top = ladder.rungs[-1].levers
    how_far = [setting for lever in top.in_order if (setting := top.setting(lever))]
    if how_far:
        found.append(f"Settings of the top rung: {', '.join(how_far)}")
    if ladder.differs:
        found.append(
            f"Apart from levers, the rungs differ in {', '.join(ladder.differs)}: the ratios "
            f"include the effect of that"
        )
    if not all(math.isnan(rung.images_per_second.half) for rung in ladder.rungs):
        found.append(SPREAD)
    pairs = ladder.fewest_pairs
    if pairs < FEWEST_PAIRS:
        found.append(
            f"{too_few(pairs).capitalize()}: with fewer than {FEWEST_PAIRS} common seeds, ratios "
            f"have no intervals"
        )
    else:
        found.append(f"95% CI: paired seeds ({pairs} or more), Student's t of logarithms")
    if ladder.target is None:
        found.append("There is no target accuracy, so there is no time to it")
    elif not ladder.timed:
        found.append(
            f"'1 of 3' means that 1 of 3 runs reached {ladder.target.top1:.2%}; times are compared "
            f"only if all runs of both rungs reached it"
        )
    return [f"{each}." for each in found]


def ratio_text(interval: Interval) -> str:
    """Formats a ratio with its interval if there is one, e.g. "3.10x (2.90-3.31)"."""
    if math.isnan(interval.low):
        return f"{format_ratio(interval.estimate)}x"
    return f"{format_ratio(interval.estimate)}x ({_range(interval)})"


def _ratio(found: Difference | None) -> str:
    return "-" if found is None else ratio_text(found.interval)


def _range(interval: Interval) -> str:
    return f"{format_ratio(interval.low)}-{format_ratio(interval.high)}"


def _noun(rung: Rung) -> str:
    return " with ".join([*(NOUNS[lever] for lever in rung.pulled), *rung.pushed])


def _worth(found: Difference) -> str:
    interval = found.interval
    if not found.tested:
        return f"{format_ratio(interval.estimate)}x"
    unclear = ", not distinguishable from 1" if interval.low <= 1 <= interval.high else ""
    return f"{format_ratio(interval.estimate)}x ({_range(interval)}{unclear})"


def _whole(ladder: Ladder, interval: Interval) -> str:
    if ladder.target is None or not ladder.timed:
        return f"The top rung has {_times(interval, ' the images/s of the baseline')}"
    reaches = f"The top rung reaches {ladder.target.top1:.2%}"
    if interval.estimate >= 1:
        return f"{reaches} {_times(interval, ' faster than the baseline')}"
    return f"{reaches} {_times(interval.through(-1), ' slower than the baseline')}"


def _times(interval: Interval, what: str) -> str:
    ratio = f"{format_ratio(interval.estimate)}x{what}"
    return ratio if math.isnan(interval.low) else f"{ratio} (95% CI {_range(interval)})"


def _mean(interval: Interval, digits: int) -> str:
    if math.isnan(interval.estimate):
        return "-"
    mean = f"{interval.estimate:,.{digits}f}"
    if math.isnan(interval.half):
        return mean
    return f"{mean}\N{PLUS-MINUS SIGN}{interval.half:,.{digits}f}"


def _seconds(rung: Rung, ladder: Ladder) -> str:
    if ladder.target is not None and not rung.reached.always:
        return f"{rung.reached.runs} of {rung.reached.of}"
    return _mean(rung.seconds, 1)


def labels(rungs: Sequence[Rung]) -> list[str]:
    """Axis labels of a chart: each rung's levers, and its variant on a second line."""
    return [
        f"{rung_name(rung, first=number == 0)}\n{rung.variant.name}"
        for number, rung in enumerate(rungs)
    ]
