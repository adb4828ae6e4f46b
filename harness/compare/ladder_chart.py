"""The ladder: a step per lever, in images per second and in time to the target."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from harness.compare.colours import Look, looks
from harness.compare.folder import variants_in
from harness.compare.intervals import Difference
from harness.compare.ladder import Ladder, Rung
from harness.compare.ladder_text import as_markdown, labels, ratio_told
from harness.compare.style import Picture, Said, dressed, picture, say_nothing
from harness.errors import UserError
from harness.tracking.results import baseline_of, target_of

RAIL = "#9a9a9a"
"""From the end of a step to the beginning of the next."""
TALL = 0.5
"""Thickness of a step, of the distance between two."""


def read(folder: str) -> Ladder:
    """Of the runs of a study's folder, up to the accuracy that its comparison was made for.

    Raises UserError where they are no rungs.
    """
    variants = variants_in(Path(folder))
    baseline = baseline_of(variants)
    found = Ladder.of(variants, baseline, target_of(baseline, None))
    if found is None:
        raise UserError(f"the variants in {folder} are no rungs of one ladder")
    return found


def say(ladder: Ladder) -> Said:
    return Said(as_markdown(ladder))


def draw(ladder: Ladder) -> Picture:
    """Images/s on the left, time to the target on the right, both on logarithmic scales."""
    rungs = ladder.rungs
    found = looks(ladder.names)
    with dressed():
        figure = picture(13, 1.9 + 0.62 * len(rungs))
        speed, time = figure.subplots(1, 2, sharey=True)
        speed.set_yticks(range(len(rungs)), labels(rungs))
        speed.set_ylim(len(rungs) - 0.4, -0.6)
        speeds = [each.images_per_second.estimate for each in rungs]
        told = [each.over_below.speed if each.over_below else None for each in rungs]
        _draw_steps(speed, rungs, speeds, told, found)
        speed.set_xlabel("images/s, all ranks")
        speed.set_title("Throughput; beside each step, times the rung below (95% CI)")
        if ladder.target is None:
            say_nothing(time, "no target accuracy")
            return figure
        seconds = [each.seconds.estimate for each in rungs]
        told = [each.over_below.time if each.over_below else None for each in rungs]
        _draw_steps(time, rungs, seconds, told, found, falls=True)
        time.set_xlabel("training time to the target, evaluations left out (s)")
        time.set_title(f"Time to {ladder.target.top1:.2%}; times faster than the rung below")
    return figure


def _draw_steps(
    axes: Axes,
    rungs: Sequence[Rung],
    values: Sequence[float],
    told: Sequence[Difference | None],
    found: dict[str, Look],
    falls: bool = False,
) -> None:
    """`told`: each against the rung below. `falls`: less is faster."""
    drawn = [value for value in values if math.isfinite(value) and value > 0]
    if not drawn:
        say_nothing(axes, "not reached by any rung" if falls else "no speed was measured")
        return
    _scale(axes, min(drawn), max(drawn))
    middle = axes.get_yaxis_transform()
    before, above = math.nan, -1
    for row, (rung, value, ratio) in enumerate(zip(rungs, values, told, strict=True)):
        if not (math.isfinite(value) and value > 0):
            runs = len(rung.variant.summaries)
            why = f"reached in {rung.reached} of {runs}" if falls else "no speed was measured"
            axes.text(0.5, row, why, transform=middle, ha="center", va="center", color="#444444")
            continue
        look = found[rung.variant.name]
        edges = [value]
        # Over a rung without a value lie more levers than this one's.
        if above == row - 1 and row:
            edges.append(before)
            axes.plot([before, before], [above, row], color=RAIL, linewidth=1, zorder=1)
            axes.barh(
                row,
                value - before,
                left=before,
                height=TALL,
                facecolor=look.colour,
                hatch=look.hatch,
                edgecolor="white",
                linewidth=0.5,
            )
        own: dict[str, Any] = {
            "color": look.colour,
            "marker": look.marker,
            "markeredgecolor": "white",
        }
        axes.plot([value], [row], **own, markersize=8, zorder=5)
        ends = _whisker(value, ratio, falls)
        if ends:  # seen on light bars and on dark ones
            axes.plot(ends, [row, row], color="white", linewidth=4, zorder=3)
            axes.plot(ends, [row, row], color="black", linewidth=1.6, zorder=6)
        text = f"{value:,.{0 if value >= 100 else 1}f}"
        text += "" if ratio is None else f"   {ratio_told(ratio.interval)}"
        edge = max([*edges, *ends])
        axes.annotate(text, (edge, row), xytext=(8, 0), textcoords="offset points", va="center")
        before, above = value, row


def _whisker(value: float, ratio: Difference | None, falls: bool) -> list[float]:
    """Where the value would lie at both ends of the ratio's interval."""
    if ratio is None or not ratio.tested:
        return []
    interval = ratio.interval.through(-1) if falls else ratio.interval
    return [value * end / interval.estimate for end in (interval.low, interval.high)]


def _scale(axes: Axes, low: float, high: float) -> None:
    """Logarithmic, with room for what stands beside the longest step."""
    span = max(high / low, 1.2)
    axes.set_xscale("log")
    axes.set_xlim(low / span**0.08, high * span**0.55)
    wide = high / low > 3
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if wide else MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", visible=False)
