"""The forest plot of a verdict: each rival's difference from the baseline, with its interval."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from harness.compare.colours import styles_of
from harness.compare.verdict import ACCURACY, SECONDS, THROUGHPUT, Finding, Question, Verdict
from harness.tracking.results import Variant

BAND = "#e8e8e8"
"""Colour of the band of differences that do not matter."""


def forest_figure(verdict: Verdict) -> Figure:
    """Draws speed on the left and accuracy on the right, with one row per rival.

    Within the grey band a difference does not matter.
    """
    figure = Figure(figsize=(7.2, 1.5 + 0.42 * len(verdict.rivals)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    timed = any(verdict.of(each.name, SECONDS) for each in verdict.rivals)
    speed = SECONDS if timed else THROUGHPUT
    _draw(left, verdict, speed, 1.0)
    _draw(right, verdict, ACCURACY, 0.0)
    left.set_xlabel("speed-up in time to the target" if timed else "ratio of images/s")
    right.set_xlabel("difference in final accuracy (points)")
    left.set_title(f"Against {verdict.baseline.name}: speed", fontsize=10)
    right.set_title("Accuracy", fontsize=10)
    rivals = [each.name for each in verdict.rivals]
    left.set_yticks(range(len(rivals)), rivals)
    left.set_ylim(len(rivals) - 0.5, -0.5)
    return figure


def _draw(axes: Axes, verdict: Verdict, question: Question, none: float) -> None:
    margin = question.margin
    band = (1 / (1 + margin), 1 + margin) if question.relative else (-margin, margin)
    axes.axvspan(*band, color=BAND, zorder=0)
    axes.axvline(none, color="#888888", linewidth=1, zorder=1)
    reach, found = list(band), styles_of(each.name for each in verdict.variants)
    for row, rival in enumerate(verdict.rivals):
        finding = verdict.of(rival.name, question)
        if finding is None:
            _write(axes, row, _why_not(verdict, question, rival))
            continue
        reach += _draw_row(axes, finding, row, found[rival.name].colour)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if question.relative:
        _scale(axes, min(reach), max(reach))


def _draw_row(axes: Axes, finding: Finding, row: int, colour: str) -> Sequence[float]:
    """Draws one rival's estimate and interval. Returns the finite x values that it covers."""
    interval = finding.interval
    whole = [interval.low, interval.high]
    if finding.difference.tested:
        axes.plot(whole, [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
    face = colour if finding.difference.tested else "white"
    axes.plot([interval.estimate], [row], "o", color=colour, markerfacecolor=face, markersize=7)
    return [each for each in (*whole, interval.estimate) if math.isfinite(each)]


def _why_not(verdict: Verdict, question: Question, rival: Variant) -> str:
    """Why the rival was not compared in this question."""
    for each in (rival, verdict.baseline):
        if not each.summaries:
            return each.fate if each is rival else f"{each.name} {each.fate}"
    if question is SECONDS:
        for each in (rival, verdict.baseline):
            reached = verdict.reached[each.name]
            if not reached.always:
                how_often = f"reached in {reached.runs} of {reached.of}"
                return how_often if each is rival else f"{each.name}: {how_often}"
    return "not compared"


def _write(axes: Axes, row: int, text: str) -> None:
    middle = axes.get_yaxis_transform()
    axes.text(0.5, row, text, transform=middle, ha="center", va="center", color="#444444")


def _scale(axes: Axes, low: float, high: float) -> None:
    """Sets a logarithmic scale with plain numbers as labels, even below one decade."""
    # A margin of 8 % of the range in log space, at least 1 % of the value.
    room = max((high / low) ** 0.08, 1.01)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    wide = high / low > 2.5
    locator = LogLocator(subs=(1.0, 2.0, 5.0)) if wide else MaxNLocator(4)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
