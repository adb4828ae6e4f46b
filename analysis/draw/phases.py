"""Who waits for whom: where a step's time goes, and how it differs between ranks."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

import pandas as pd
from matplotlib.axes import Axes

from harness.compare.colours import VariantStyle, styles_of
from harness.compare.step_bars import draw_times, scale, steps_differ, waiting_share
from harness.compare.style import MarkdownText, Picture, line, picture, plot_style
from harness.compare.table import PHASES
from harness.compare.waits import WAITS, phase_ms, waits_measured
from harness.compare.wording import without_result
from harness.tracking.results import Variant
from harness.tracking.study import Study

SPREAD = ("forward", "backward", *WAITS)
"""Phases for which the differences between ranks are shown."""


def draw(study: Study) -> Picture:
    """Draws the mean phases as stacked bars, and each phase's minimum, mean and maximum."""
    variants = study.variants
    found = styles_of(variant.name for variant in variants)
    height = max(4.8, 1.6 + 0.14 * len(SPREAD) * max(4, len(variants)))
    with plot_style():
        figure = picture(13, height)
        times, ranks = figure.subplots(1, 2)
        draw_times(times, variants, found)
        _draw_ranks(ranks, variants, found)
    return figure


def numbers(variants: Sequence[Variant]) -> pd.DataFrame:
    """A row per variant and phase, with `minimum`, `mean` and `maximum` over ranks.

    Each is the mean over timed seeds, in ms of a step, or of 1,000 images if steps differ in size;
    NaN if it is not known, as waits inside a backward pass are not.
    """
    per_images = steps_differ(variants)
    rows = []
    for variant in variants:
        for phase in PHASES:
            hidden = phase in WAITS and not waits_measured(variant.config)
            runs = () if hidden else variant.timed
            row: dict[str, str | float] = {"variant": variant.name, "phase": phase}
            for of in ("minimum", "mean", "maximum"):
                values = [
                    getattr(run.phases_ms[phase], of) * scale(run, per_images)
                    for run in runs
                    if phase in run.phases_ms
                ]
                row[of] = mean(values) if values else math.nan
            rows.append(row)
    return pd.DataFrame(rows)


def describe(study: Study) -> MarkdownText:
    """The fraction of a step that each variant waits, and where, as Markdown."""
    lines = []
    for variant in study.variants:
        if not variant.summaries:
            lines.append(f"* `{variant.name}`: {without_result(variant)}")
            continue
        share = waiting_share(variant)
        if math.isnan(share):
            lines.append(f"* `{variant.name}`: the time that it waits was not measured")
            continue
        waited = {
            wait: mean(phase_ms(run, wait) / run.step_ms.mean for run in variant.timed)
            for wait in WAITS
        }
        most = max(waited, key=lambda wait: waited[wait])
        lines.append(
            f"* `{variant.name}` waits for {share:.0%} of its step, mostly in "
            f"{most.replace('_', ' ')} ({waited[most]:.0%} of the step)"
        )
    return MarkdownText("\n".join(lines))


def _draw_ranks(axes: Axes, variants: Sequence[Variant], found: Mapping[str, VariantStyle]) -> None:
    """Draws a group of rows for each phase, with a row per variant in it.

    A line goes from the rank that spent least to the one that spent most, with a marker at the
    mean.
    """
    frame = numbers(variants)
    distance = 1 / (len(variants) + 1)
    for group, phase in enumerate(SPREAD):
        rows = frame[frame["phase"] == phase].to_dict("records")
        for number, row in enumerate(rows):
            if math.isnan(row["mean"]):
                continue
            place = group + (number - (len(variants) - 1) / 2) * distance
            style = found[row["variant"]]
            axes.hlines(place, row["minimum"], row["maximum"], color=style.colour, linewidth=2)
            label = row["variant"] if group == 0 else None
            marker_only = line(style) | {"linestyle": "none", "clip_on": False}
            axes.plot([row["mean"]], [place], **marker_only, label=label)
        if group:
            axes.axhline(group - 0.5, color="#bbbbbb", linewidth=0.6)
    axes.set_yticks(range(len(SPREAD)), [phase.replace("_", " ") for phase in SPREAD])
    axes.set_ylim(len(SPREAD) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"time per {'1,000 images' if steps_differ(variants) else 'step'} (ms)")
    axes.set_title("Each phase over ranks: minimum to maximum, mean marked")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
