"""Where a step's time goes: a bar per variant with its phases stacked."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from harness.compare.colours import PHASE_STYLES, VariantStyle
from harness.compare.table import PHASES
from harness.compare.waits import phase_ms, wait_percent
from harness.compare.wording import NO_SPEED
from harness.measure.summary import RunSummary
from harness.tracking.results import Variant

BAR = 0.7
"""Thickness of a bar, as a fraction of the distance between two."""


def draw_times(axes: Axes, variants: Sequence[Variant], found: Mapping[str, VariantStyle]) -> None:
    """Draws a bar per variant with its phases stacked, and a strip of the variant's colour."""
    per_images = steps_differ(variants)
    totals = [_bar(axes, number, variant, per_images) for number, variant in enumerate(variants)]
    longest = max([*totals, 1e-9])
    for number, (variant, total) in enumerate(zip(variants, totals, strict=True)):
        colour = found[variant.name].colour
        axes.barh(number, -0.015 * longest, color=colour, height=BAR)
        axes.text(total + 0.015 * longest, number, _bar_label(variant, total), va="center")
    axes.set_xlim(-0.015 * longest, 1.45 * longest)
    axes.set_yticks(range(len(variants)), [variant.name for variant in variants])
    spare = max(0, 4 - len(variants)) / 2  # keeps bars slim if there are only one to three
    axes.set_ylim(len(variants) - 0.5 + spare, -0.5 - spare)
    axes.set_xlabel(f"time per {'1,000 images' if per_images else 'step'} (ms)")
    axes.set_title("Where the time goes, mean over ranks")
    axes.grid(axis="y", visible=False)
    handles = [
        Patch(
            edgecolor="black", linewidth=0.5, label=phase.replace("_", " "), **PHASE_STYLES[phase]
        )
        for phase in PHASES
    ]
    axes.legend(handles=handles, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def steps_differ(variants: Sequence[Variant]) -> bool:
    """Whether steps have different numbers of images, so that only time per image compares."""
    return len({run.images_per_step for each in variants for run in each.summaries}) > 1


def scale(run: RunSummary, per_images: bool) -> float:
    """The factor that turns the time of a step into that of 1,000 images; 1 for steps."""
    return 1000 / run.images_per_step if per_images else 1.0


def _bar(axes: Axes, number: int, variant: Variant, per_images: bool) -> float:
    """Draws one bar and returns its length in ms."""
    left = 0.0
    for phase in PHASES:
        found = [phase_ms(run, phase) * scale(run, per_images) for run in variant.timed]
        width = mean(found) if found else 0.0
        axes.barh(
            number,
            width,
            left=left,
            height=BAR,
            edgecolor="black",
            linewidth=0.5,
            **PHASE_STYLES[phase],
        )
        left += width
    return left


def _bar_label(variant: Variant, total: float) -> str:
    if not variant.summaries:
        return variant.fate
    if not variant.timed:
        return NO_SPEED
    share = waiting_share(variant)
    return f"{total:,.0f} ms, {'wait unknown' if math.isnan(share) else f'{share:.0%} waiting'}"


def waiting_share(variant: Variant) -> float:
    """The fraction of a step spent waiting, mean over timed seeds; NaN if it is not known."""
    found = [wait_percent(variant.config, run) for run in variant.timed]
    return mean(found) / 100 if found else math.nan
