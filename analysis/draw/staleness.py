"""Staleness: learning rate, delay and momentum against the stability limit, and the losses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from harness.compare.colours import VariantStyle, styles_of
from harness.compare.style import (
    MarkdownText,
    Picture,
    draw_placeholder,
    legend_below,
    line,
    picture,
    plot_style,
    sparse_markers,
)
from harness.tracking.failure import diverged_at
from harness.tracking.recorded import RecordedRun
from harness.tracking.study import Study
from harness.train.stability import Dynamics, dynamics_of, largest_stable_product

CURVATURE, OVER_STABLE = "staleness/curvature", "staleness/lr_over_stable"
AFTER_WARMUP = 2**31
"""Number of a window in which every exchange has its full delay."""
MANY = 2
"""Number of nodes assumed if it is unknown; more of them have the same effect on stability."""
DELAY_GREYS = ("#000000", "#4d4d4d", "#808080", "#b0b0b0")
MOMENTA = 16
"""Number of points per line."""


@dataclass(frozen=True)
class Point:
    """One run on the map."""

    name: str
    seed: int
    dynamics: Dynamics
    """Its dynamics with the full delay and the peak lr."""
    lr: float
    """The largest learning rate of the run."""
    curvature: float
    """The largest curvature that was sampled; NaN if none was."""
    of_limit: float
    """The largest ratio of lr to the largest stable lr that was logged for a window; if none was,
    the largest lr x curvature over its limit. Above 1 is unstable; NaN if it is not known."""
    first_loss: float
    """Loss of the first training windows that were logged; NaN if none were."""
    loss: float
    """Loss of the last windows that were logged; infinite if one was not finite or the run was
    recorded as diverged; NaN if none were logged."""

    @property
    def ran_away(self) -> bool:
        """Whether the run ended above its first loss, or with a loss that is not finite."""
        return math.isinf(self.loss) or self.loss > self.first_loss


def draw(study: Study) -> Picture:
    """Draws the stability map with the study's runs, their outcome on either side, and losses."""
    found = styles_of(run.name for run in study.runs)
    # A run that logged no loss has no outcome to draw.
    placed = [point for point in points(study) if not math.isnan(point.loss)]
    with plot_style():
        figure = picture(13, 5.6)
        map_, sides, losses = figure.subplots(1, 3)
        _draw_map(map_, placed, found)
        _draw_sides(sides, placed, found)
        _draw_losses(losses, study, found)
        legend_below(figure, [losses], columns=4)
    return figure


def points(study: Study) -> tuple[Point, ...]:
    """The points of all runs, even failed ones, except for AdamW, whose limit is unknown."""
    found = ((run, dynamics_of(run.config, AFTER_WARMUP, _nodes(run))) for run in study.runs)
    return tuple(_point(run, dynamics) for run, dynamics in found if dynamics is not None)


def describe(study: Study) -> MarkdownText:
    """Each run's distance from its limit and its final loss, as Markdown."""
    lines = []
    for each in points(study):
        how = f"lr {each.lr:g}, momentum {each.dynamics.momentum:g}, delay {each.dynamics.delay}"
        if math.isnan(each.curvature):
            most = largest_stable_product(each.dynamics)
            known = f"stable up to lr x curvature {most:.3g}; the curvature was not sampled"
        else:
            known = f"at {each.of_limit:.2f} of the limit"
        lines.append(f"* `{each.name}`, seed {each.seed} ({how}): {known}; its loss {_end(each)}")
    return MarkdownText("\n".join(lines))


def _end(point: Point) -> str:
    if math.isnan(point.loss):
        return "was not recorded"
    return "is not finite" if math.isinf(point.loss) else f"ends at {point.loss:.2f}"


def _nodes(run: RecordedRun) -> int:
    """The run's number of nodes; MANY if it did not live to record that."""
    return MANY if run.summary is None else run.summary.nodes


def _point(run: RecordedRun, dynamics: Dynamics) -> Point:
    sampled, losses = run.metric(CURVATURE), run.metric("train/loss")
    over = run.metric(OVER_STABLE)
    curvature = float(sampled.max()) if len(sampled) else math.nan
    apart = run.config.optimizer.lr * curvature / largest_stable_product(dynamics)
    return Point(
        name=run.name,
        seed=run.seed,
        dynamics=dynamics,
        lr=run.config.optimizer.lr,
        curvature=curvature,
        of_limit=float(over.max()) if len(over) else apart,
        first_loss=math.nan if losses.empty else float(losses.iloc[0]),
        loss=_last_loss(run, losses),
    )


def _last_loss(run: RecordedRun, losses: "pd.Series[float]") -> float:
    """As in `Point.loss`."""
    # Losses that are not finite are not logged, but counted in a metric of their own. A run that
    # they end at once has not logged that either, but its failure says so.
    diverged = run.failure is not None and diverged_at(run.failure) is not None
    if diverged or not run.metric("train/loss_nonfinite").empty:
        return math.inf
    return math.nan if losses.empty else float(losses.iloc[-1])


def _draw_map(axes: Axes, placed: Sequence[Point], found: Mapping[str, VariantStyle]) -> None:
    momenta = np.linspace(0, 0.98, MOMENTA)
    late = {point.dynamics.delay for point in placed if not point.dynamics.averaging}
    delays = sorted({0, 1, *late})
    for number, delay in enumerate(delays):
        grey = DELAY_GREYS[min(number, len(DELAY_GREYS) - 1)]
        for nesterov, dash in ((False, "-"), (True, "--")):
            limits = [
                largest_stable_product(Dynamics(float(momentum), nesterov, delay))
                for momentum in momenta
            ]
            axes.plot(momenta, limits, color=grey, linestyle=dash, linewidth=1.4)
            if not nesterov:
                at = len(momenta) // 3
                axes.annotate(
                    f"delay {delay}",
                    (momenta[at], limits[at]),
                    textcoords="offset points",
                    xytext=(-8, 7),
                    color=grey,
                )
    sampled = [point for point in placed if not math.isnan(point.curvature)]
    # Averaging runs have other limits than the lines here; the panel beside shows them.
    known = [point for point in sampled if not point.dynamics.averaging]
    missing = "only averaging runs" if sampled else "no run"
    for point in known:
        _mark(axes, point, point.dynamics.momentum, point.lr * point.curvature, found)
    _log(axes, "y")
    axes.set_xlim(-0.04, 1)
    axes.set_xlabel("momentum (1)")
    axes.set_ylabel("learning rate x curvature (1)")
    axes.set_title(
        "Stable below the line of its delay"
        + ("" if known else f"\n({missing} sampled the curvature)")
    )
    lines = [Line2D([], [], color="black", linestyle=dash) for dash in ("-", "--")]
    axes.legend(lines, ["heavy ball", "Nesterov"], loc="lower left")


def _mark(axes: Axes, point: Point, x: float, y: float, found: Mapping[str, VariantStyle]) -> None:
    """Draws a run's marker, hollow if the run diverged."""
    style = found[point.name]
    face = "white" if point.ran_away else style.colour
    axes.plot([x], [y], style.marker, color=style.colour, markerfacecolor=face, markersize=8)


def _draw_sides(axes: Axes, placed: Sequence[Point], found: Mapping[str, VariantStyle]) -> None:
    known = [p for p in placed if not math.isnan(p.curvature) and not math.isnan(p.first_loss)]
    axes.set_title("Outcome on either side of the limit")
    if not known:
        draw_placeholder(axes, "no run sampled the curvature")
        return
    ends = [point.loss / point.first_loss for point in known]
    worst = max([2.0, *(end for end in ends if math.isfinite(end))])
    for point, end in zip(known, ends, strict=True):
        # Losses that are not finite are drawn above all others.
        _mark(axes, point, point.of_limit, min(end, 3 * worst), found)
    axes.axvline(1, color="#555555", linestyle=(0, (6, 3)), linewidth=1)
    axes.axhline(1, color="#555555", linewidth=0.8)
    _log(axes, "x")
    _log(axes, "y")
    axes.set_xlabel("learning rate x curvature / limit (1)")
    axes.set_ylabel("last loss / first loss (1)")


class Plain(LogFormatter):
    """Labels the same ticks as LogFormatter, but as 0.6 instead of 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _log(axes: Axes, which: str) -> None:
    if which == "x":
        axes.set_xscale("log")
        axis: Axis = axes.xaxis
    else:
        axes.set_yscale("log")
        axis = axes.yaxis
    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


def _draw_losses(axes: Axes, study: Study, found: Mapping[str, VariantStyle]) -> None:
    named = set()
    for run in study.runs:
        losses = run.metric("train/loss")
        label = None if run.name in named else run.name
        named.add(run.name)
        axes.plot(
            losses.index,
            losses,
            **line(found[run.name]),
            **sparse_markers(len(losses)),
            label=label,
        )
    _log(axes, "y")
    axes.set_xlim(left=0)
    axes.set_xlabel("window")
    axes.set_ylabel("training loss (nat)")
    axes.set_title("Training losses")
