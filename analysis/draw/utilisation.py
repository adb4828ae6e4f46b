"""Utilisation: the device's counter beside the fraction of a step spent computing."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.draw.gauges import counters
from harness.compare.colours import VariantStyle, styles_of
from harness.compare.style import (
    MarkdownText,
    Picture,
    draw_placeholder,
    line,
    picture,
    plot_style,
    sparse_markers,
)
from harness.compare.waits import waits_measured
from harness.compare.wording import without_result
from harness.measure.summary import COMPUTED
from harness.tracking.recorded import RecordedRun
from harness.tracking.results import Variant
from harness.tracking.study import Study

OF_NODE = re.compile(r"utilisation/node_(\d+)_(computed|counter)_percent")
MOST_NODES = 4
"""Largest number of rows; further nodes are left out of the panels, but not of the means."""
COUNTER = {"color": "#555555", "linestyle": "-", "linewidth": 1.2}


@dataclass(frozen=True)
class Node:
    """One node in one run, in percent over seconds since the run's first record."""

    counter: "pd.Series[float]"
    """Utilisation by the device's counter."""
    computed: "pd.Series[float]"
    """Fraction of a step spent computing."""


def draw(study: Study) -> Picture:
    """Draws a column per variant (its first seed) and a row per node, and a panel of means."""
    variants, runs = study.variants, _first_runs(study)
    found = styles_of(variant.name for variant in variants)
    by_run = {run.name: nodes(study, run) for run in runs}
    rows = max(1, min(MOST_NODES, max([len(each) for each in by_run.values()] or [1])))
    shown = [node for each in by_run.values() for node in each.values()]
    top = _above([series.max() for node in shown for series in (node.counter, node.computed)])
    with plot_style():
        figure = picture(max(9.0, 1.95 * len(runs) + 4.0), 1.6 + 1.9 * rows)
        grid = figure.add_gridspec(rows, len(runs) + 1, width_ratios=[1.0] * len(runs) + [1.5])
        for column, run in enumerate(runs):
            for row in range(rows):
                axes = figure.add_subplot(grid[row, column])
                _draw_node(axes, by_run[run.name].get(row), found[run.name], top)
                axes.set_xlabel("time (s)" if row == rows - 1 else "")
                axes.set_ylabel(f"node {row}: share (%)" if column == 0 else "")
                axes.set_title(run.name if row == 0 else "", fontsize=10)
        _draw_means(figure.add_subplot(grid[:, -1]), variants, by_run, found)
        counter = Line2D([], [], label="the device's own counter", **COUNTER)  # type: ignore[arg-type]
        computed = Line2D(
            [], [], color="black", marker="o", label="share of a step spent computing"
        )
        figure.legend(handles=[counter, computed], loc="outside lower center", ncols=2)
    return figure


def nodes(study: Study, run: RecordedRun) -> dict[int, Node]:
    """The counter and the computed fraction of each node of a run.

    If the run did not log the counter itself (that of a card), MLflow's system metric is used, from
    the first logged window to the last. If it did not log computed fractions, the mean over all
    ranks is. For exchanges that wait inside the backward pass, such as torch's DDP, the computed
    fraction is unknown and left empty.
    """
    history = run.history
    if "time" not in history:
        return {}
    start = history["time"].iloc[0]
    seconds = history["time"] - start
    logged: dict[str, dict[int, pd.Series[float]]] = {"computed": {}, "counter": {}}
    for name in map(str, history):
        if match := OF_NODE.fullmatch(name):
            logged[match[2]][int(match[1])] = _over(history[name], seconds)
    computed, counted = logged["computed"], logged["counter"]
    if not counted:
        found = counters(study.uri, run)
        end = history["time"].iloc[-1]
        counted = {node: _during(each, start, end) for node, each in found.items()}
    nothing = pd.Series(dtype=float)
    if not _separable(run):
        computed = dict.fromkeys([*counted, *computed], nothing)
    elif not computed and "time/step_ms" in history:
        computing = sum(history[f"time/{phase}_ms"] for phase in COMPUTED)
        share = _over(100 * computing / history["time/step_ms"], seconds)
        computed = dict.fromkeys(counted or [0], share)
    return {node: Node(counted.get(node, nothing), each) for node, each in computed.items()}


def _during(samples: "pd.Series[float]", start: float, end: float) -> "pd.Series[float]":
    """The samples from `start` to `end`, over seconds since `start`: others are of a run's set-up
    and of its end."""
    kept = samples[(samples.index >= start) & (samples.index <= end)]
    return kept.set_axis(kept.index - start)


def _separable(run: RecordedRun) -> bool:
    alone = run.summary is not None and run.summary.ranks == 1
    return alone or waits_measured(run.config)


def means(by_node: Mapping[int, Node]) -> tuple[float, float]:
    """Mean counter and mean computed fraction of a run over its nodes and its time, in percent."""
    counter = [node.counter.mean() for node in by_node.values() if len(node.counter)]
    computed = [node.computed.mean() for node in by_node.values() if len(node.computed)]
    nothing = float("nan")
    return (mean(counter) if counter else nothing), (mean(computed) if computed else nothing)


def describe(study: Study) -> MarkdownText:
    """Mean counter and computed fraction of each variant, as Markdown."""
    lines, runs = [], {run.name: run for run in _first_runs(study)}
    for variant in study.variants:
        run = runs.get(variant.name)
        said = without_result(variant) if run is None else _described(study, run)
        lines.append(f"* `{variant.name}`: {said}")
    return MarkdownText("\n".join(lines))


def _described(study: Study, run: RecordedRun) -> str:
    counter, computed = means(nodes(study, run))
    if not _separable(run) and not math.isnan(counter):
        return (
            f"the counter shows {counter:.0f} %; it waits inside its backward pass, so computing "
            f"cannot be separated"
        )
    if math.isnan(counter) or math.isnan(computed):
        return "not recorded"
    return f"the counter shows {counter:.0f} %, {computed:.0f} % of a step is computing"


def _first_runs(study: Study) -> list[RecordedRun]:
    """The completed run with the lowest seed of each variant."""
    found = []
    for name in dict.fromkeys(run.name for run in study.runs):
        ended = [run for run in study[name] if run.summary is not None]
        if ended:
            found.append(min(ended, key=lambda run: run.seed))
    return found


def _over(values: "pd.Series[float]", seconds: "pd.Series[float]") -> "pd.Series[float]":
    return pd.Series(values.to_numpy(), index=seconds.to_numpy()).dropna()


def _above(values: Sequence[float]) -> float:
    """The end of an axis in percent: a counter exceeds 100 % while a process keeps more cores busy
    than are its own."""
    return 1.05 * max([100.0, *(value for value in values if not math.isnan(value))])


def _draw_node(axes: Axes, node: Node | None, style: VariantStyle, top: float) -> None:
    if node is None or not (len(node.counter) or len(node.computed)):
        draw_placeholder(axes, "not recorded")
        return
    axes.plot(node.counter.index, node.counter, **COUNTER)  # type: ignore[arg-type]
    axes.plot(
        node.computed.index, node.computed, **line(style), **sparse_markers(len(node.computed))
    )
    axes.set_xlim(left=0)
    axes.set_ylim(0, top)


def _draw_means(
    axes: Axes,
    variants: Sequence[Variant],
    by_run: Mapping[str, dict[int, Node]],
    found: Mapping[str, VariantStyle],
) -> None:
    """Draws a line from the computed fraction to the counter, as long as what the counter hides."""
    drawn = []
    for number, variant in enumerate(variants):
        if variant.name not in by_run:
            axes.text(3, number, variant.fate, va="center")
            continue
        counter, computed = means(by_run[variant.name])
        style = found[variant.name]
        axes.hlines(number, computed, counter, color="#bbbbbb", linewidth=3)
        axes.plot([counter], [number], "|", color="#555555", markersize=14, markeredgewidth=2.5)
        axes.plot([computed], [number], style.marker, color=style.colour, markersize=8)
        drawn += [counter, computed]
    axes.set_yticks(range(len(variants)), [variant.name for variant in variants])
    axes.yaxis.tick_right()
    axes.spines[["left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlim(0, _above(drawn))
    axes.set_xlabel("mean over nodes and time (%)")
    axes.set_title("Computing, and counted as busy", fontsize=10)
