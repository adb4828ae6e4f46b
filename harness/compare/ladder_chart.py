"""The chart of a ladder: one step per lever, in images per second and in time to the target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from harness.compare.colours import VariantStyle, styles_of
from harness.compare.intervals import Difference
from harness.compare.ladder import Ladder, Rung
from harness.compare.ladder_text import as_markdown, labels, ratio_text
from harness.compare.style import MarkdownText, Picture, draw_placeholder, picture, plot_style
from harness.compare.wording import NO_SPEED

RAIL = "#9a9a9a"
"""Colour of the line from the end of one step to the start of the next."""
TALL = 0.5
"""Thickness of a step, as a fraction of the distance between two."""


def describe(ladder: Ladder) -> MarkdownText:
    """The ladder's table and notes as Markdown."""
    return MarkdownText(as_markdown(ladder))


def draw(ladder: Ladder) -> Picture:
    """Draws images/s on the left and time to the target on the right, both on log scales."""
    rungs = ladder.rungs
    found = styles_of(ladder.names)
    beside = [(each, found[each.variant.name], each.over_below) for each in rungs]
    with plot_style():
        figure = picture(13, 1.9 + 0.62 * len(rungs))
        speed, time = figure.subplots(1, 2, sharey=True)
        speed.set_yticks(range(len(rungs)), labels(rungs))
        speed.set_ylim(len(rungs) - 0.4, -0.6)
        speeds = [
            _Step(each, style, each.images_per_second.estimate, below.speed if below else None)
            for each, style, below in beside
        ]
        _draw_steps(speed, speeds)
        speed.set_xlabel("images/s, all ranks")
        speed.set_title("Throughput, and its ratio to the rung below (95% CI)")
        if ladder.target is None:
            draw_placeholder(time, "no target accuracy")
            return figure
        times = [
            _Step(each, style, each.seconds.estimate, below.time if below else None)
            for each, style, below in beside
        ]
        _draw_steps(time, times, falls=True)
        time.set_xlabel("training time to the target, without evaluations (s)")
        time.set_title(f"Time to {ladder.target.top1:.2%}, and the speed-up over the rung below")
    return figure


@dataclass(frozen=True)
class _Step:
    """One rung in one of the two charts."""

    rung: Rung
    style: VariantStyle
    value: float
    ratio: Difference | None
    """Ratio of this rung's value to that of the rung below."""

    @property
    def has_value(self) -> bool:
        return math.isfinite(self.value) and self.value > 0

    def whisker(self, falls: bool) -> list[float]:
        """The values that correspond to both ends of the ratio's interval.

        With the rung below fixed at value / estimate, an end of the ratio gives
        value * end / estimate. `falls`: smaller values are better.
        """
        if self.ratio is None or not self.ratio.tested:
            return []
        interval = self.ratio.interval.through(-1) if falls else self.ratio.interval
        return [self.value * end / interval.estimate for end in (interval.low, interval.high)]


def _draw_steps(axes: Axes, steps: Sequence[_Step], falls: bool = False) -> None:
    """Draws all rungs; `falls`: smaller values are better."""
    drawn = [each.value for each in steps if each.has_value]
    if not drawn:
        draw_placeholder(axes, "not reached by any rung" if falls else NO_SPEED)
        return
    ends = [end for each in steps if each.has_value for end in each.whisker(falls)]
    _scale(axes, min([*drawn, *ends]), max([*drawn, *ends]))
    for row, step in enumerate(steps):
        if not step.has_value:
            _say_why(axes, row, step.rung, falls)
            continue
        edges = [step.value]
        # Without a value of the rung below, a bar would mix the effects of several levers.
        if row and steps[row - 1].has_value:
            edges.append(steps[row - 1].value)
            _draw_rise(axes, row, steps[row - 1].value, step)
        _draw_value(axes, row, step, falls, edges)


def _say_why(axes: Axes, row: int, rung: Rung, falls: bool) -> None:
    """Writes why there is no value, in place of a bar."""
    reached = rung.reached
    why = f"reached in {reached.runs} of {reached.of}" if falls else NO_SPEED
    middle = axes.get_yaxis_transform()
    axes.text(0.5, row, why, transform=middle, ha="center", va="center", color="#444444")


def _draw_rise(axes: Axes, row: int, before: float, step: _Step) -> None:
    """Draws the bar from the value of the rung below to the value of this one."""
    axes.plot([before, before], [row - 1, row], color=RAIL, linewidth=1, zorder=1)
    axes.barh(
        row,
        step.value - before,
        left=before,
        height=TALL,
        facecolor=step.style.colour,
        hatch=step.style.hatch,
        edgecolor="white",
        linewidth=0.5,
    )


def _draw_value(axes: Axes, row: int, step: _Step, falls: bool, edges: Sequence[float]) -> None:
    """Draws the value and its interval, with both as text to the right of the row."""
    own: dict[str, Any] = {
        "color": step.style.colour,
        "marker": step.style.marker,
        "markeredgecolor": "white",
    }
    value = step.value
    axes.plot([value], [row], **own, markersize=8, zorder=5)
    ends = step.whisker(falls)
    if ends:  # a black line with a white outline is visible on light and on dark bars
        axes.plot(ends, [row, row], color="white", linewidth=4, zorder=3)
        axes.plot(ends, [row, row], color="black", linewidth=1.6, zorder=6)
    text = f"{value:,.{0 if value >= 100 else 1}f}"
    text += "" if step.ratio is None else f"   {ratio_text(step.ratio.interval)}"
    edge = max([*edges, *ends])
    axes.annotate(text, (edge, row), xytext=(8, 0), textcoords="offset points", va="center")


def _scale(axes: Axes, low: float, high: float) -> None:
    """Sets a logarithmic scale with room for the text beside the longest step."""
    # Margins are powers of the range, so that they are constant fractions of the log axis.
    span = max(high / low, 1.2)
    axes.set_xscale("log")
    axes.set_xlim(low / span**0.08, high * span**0.55)
    wide = high / low > 3
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if wide else MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", visible=False)
