"""Who waits for whom: where a step's time goes, and how unlike the ranks are in it."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from harness.compare.colours import PHASE_LOOKS, Look, looks
from harness.compare.style import Picture, Said, dressed, line, picture
from harness.compare.table import PHASES, images_per_step, phase_ms
from harness.compare.waits import WAITS, wait_percent
from harness.compare.wording import without_result
from harness.measure.summary import RunSummary
from harness.tracking.results import Variant
from harness.tracking.study import Study

BAR = 0.7
"""Thickness, of the distance between two."""
SPREAD = ("forward", "backward", *WAITS)
"""Phases in which ranks are worth telling apart."""


def draw(study: Study) -> Picture:
    """Stacked phases, mean over ranks, beside each phase's minimum, mean and maximum over ranks."""
    variants = study.variants
    found = looks(variant.name for variant in variants)
    height = max(4.8, 1.6 + 0.14 * len(SPREAD) * max(4, len(variants)))
    with dressed():
        figure = picture(13, height)
        times, ranks = figure.subplots(1, 2)
        draw_times(times, variants, found)
        _draw_ranks(ranks, variants, found)
    return figure


def numbers(variants: Sequence[Variant]) -> pd.DataFrame:
    """A row per variant and phase: `minimum`, `mean` and `maximum` over ranks, each the mean over
    seeds, ms of a step, or of 1,000 images where steps differ in size."""
    per_images = _per_images(variants)
    rows = []
    for variant in variants:
        for phase in PHASES:
            row: dict[str, str | float] = {"variant": variant.name, "phase": phase}
            for of in ("minimum", "mean", "maximum"):
                values = [
                    getattr(run.phases_ms[phase], of) * _factor(run, per_images)
                    for run in variant.summaries
                    if phase in run.phases_ms
                ]
                row[of] = mean(values) if values else 0.0
            rows.append(row)
    return pd.DataFrame(rows)


def say(study: Study) -> Said:
    """What the store's numbers say."""
    lines = []
    for variant in study.variants:
        if not variant.summaries:
            lines.append(f"* `{variant.name}`: {without_result(variant)}")
            continue
        share = _waiting(variant)
        if math.isnan(share):
            lines.append(f"* `{variant.name}`: how long it stands still was not measured")
            continue
        waited = {
            wait: mean(phase_ms(run, wait) / run.step_ms.mean for run in variant.summaries)
            for wait in WAITS
        }
        most = max(waited, key=lambda wait: waited[wait])
        lines.append(
            f"* `{variant.name}` stands still for {share:.0%} of its step, most of "
            f"it in {most.replace('_', ' ')} ({waited[most]:.0%} of the step)"
        )
    return Said("\n".join(lines))


def draw_times(axes: Axes, variants: Sequence[Variant], found: Mapping[str, Look]) -> None:
    """A bar per variant, its phases stacked; the strip at its foot has the variant's colour."""
    per_images = _per_images(variants)
    totals = [_bar(axes, number, variant, per_images) for number, variant in enumerate(variants)]
    longest = max([*totals, 1e-9])
    for number, (variant, total) in enumerate(zip(variants, totals, strict=True)):
        colour = found[variant.name].colour
        axes.barh(number, -0.015 * longest, color=colour, height=BAR)
        axes.text(total + 0.015 * longest, number, _bar_label(variant, total), va="center")
    axes.set_xlim(-0.015 * longest, 1.45 * longest)
    axes.set_yticks(range(len(variants)), [variant.name for variant in variants])
    spare = max(0, 4 - len(variants)) / 2  # two bars would be as thick as bricks
    axes.set_ylim(len(variants) - 0.5 + spare, -0.5 - spare)
    axes.set_xlabel(f"time of {'1,000 images' if per_images else 'a step'} (ms)")
    axes.set_title("Where the time goes, mean over ranks")
    axes.grid(axis="y", visible=False)
    handles = [
        Patch(edgecolor="black", linewidth=0.5, label=phase.replace("_", " "), **PHASE_LOOKS[phase])  # type: ignore[arg-type]
        for phase in PHASES
    ]
    axes.legend(handles=handles, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _per_images(variants: Sequence[Variant]) -> bool:
    """Steps of different size do not compare; the time of as many images does."""
    return len({images_per_step(run) for each in variants for run in each.summaries}) > 1


def _factor(run: RunSummary, per_images: bool) -> float:
    return 1000 / images_per_step(run) if per_images else 1.0


def _bar(axes: Axes, number: int, variant: Variant, per_images: bool) -> float:
    """The bar's length."""
    left = 0.0
    for phase in PHASES:
        found = [phase_ms(run, phase) * _factor(run, per_images) for run in variant.summaries]
        width = mean(found) if found else 0.0
        axes.barh(
            number,
            width,
            left=left,
            height=BAR,
            edgecolor="black",
            linewidth=0.5,
            **PHASE_LOOKS[phase],  # type: ignore[arg-type]
        )
        left += width
    return left


def _bar_label(variant: Variant, total: float) -> str:
    if not variant.summaries:
        return variant.fate
    share = _waiting(variant)
    return f"{total:,.0f} ms, {'wait unknown' if math.isnan(share) else f'{share:.0%} waiting'}"


def _waiting(variant: Variant) -> float:
    """Share of the step, mean over seeds."""
    return mean(wait_percent(variant.config, run) for run in variant.summaries) / 100


def _draw_ranks(axes: Axes, variants: Sequence[Variant], found: Mapping[str, Look]) -> None:
    """A group of rows for each phase, in it a row per variant: a line from the rank that spent
    least to the one that spent most, the marker at their mean."""
    frame = numbers(variants)
    distance = 1 / (len(variants) + 1)
    for group, phase in enumerate(SPREAD):
        rows = frame[frame["phase"] == phase].to_dict("records")
        for number, row in enumerate(rows):
            place = group + (number - (len(variants) - 1) / 2) * distance
            look = found[row["variant"]]
            axes.hlines(place, row["minimum"], row["maximum"], color=look.colour, linewidth=2)
            label = row["variant"] if group == 0 else None
            style = line(look) | {"linestyle": "none", "clip_on": False}
            axes.plot([row["mean"]], [place], **style, label=label)
        if group:
            axes.axhline(group - 0.5, color="#bbbbbb", linewidth=0.6)
    axes.set_yticks(range(len(SPREAD)), [phase.replace("_", " ") for phase in SPREAD])
    axes.set_ylim(len(SPREAD) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"time of {'1,000 images' if _per_images(variants) else 'a step'} (ms)")
    axes.set_title("Each phase over ranks: from least to most, mean marked")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
