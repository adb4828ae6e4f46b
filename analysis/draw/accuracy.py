"""Speed against accuracy: accuracy over time and over images, and the time to a target."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

import pandas as pd
from matplotlib.axes import Axes

from harness.compare.chart import draw_target
from harness.compare.colours import VariantStyle, styles_of
from harness.compare.intervals import mean_interval
from harness.compare.style import (
    MarkdownText,
    Picture,
    bar,
    legend_below,
    line,
    picture,
    plot_style,
)
from harness.compare.table import SPREAD, primary_set, same_seeds
from harness.compare.verdict import reached_in, seconds_by_seed
from harness.compare.wording import without_result
from harness.tracking.results import PRIMARY, Target, Variant, baseline_of, target_of
from harness.tracking.study import Study

NOT_EVALUATED = "no run evaluated the primary set"


def draw(study: Study, target: float | None = None) -> Picture:
    """Draws accuracy over time, accuracy over images, and time to the target.

    `target` is a top-1 accuracy from 0 to 1; by default, the baseline's final accuracy less a
    point.
    """
    variants = study.variants
    found = styles_of(variant.name for variant in variants)
    goal = target_of(baseline_of(variants), target)
    with plot_style():
        figure = picture(13, 4.8)
        times, images, sooner = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
        for axes, over in ((times, "seconds"), (images, "images")):
            _draw_curves(axes, variants, over, found)
            draw_target(axes, goal)
            axes.set_ylabel(f"top-1 on {primary_set(variants)} (%)")
        times.set_xlabel("training time, without evaluations (s)")
        images.set_xlabel("training images of all ranks (thousands)")
        times.set_title("Accuracy over time: mean and range over seeds")
        images.set_title("Accuracy over images")
        _draw_target_times(sooner, variants, goal, found)
        legend_below(figure, [times], columns=6)
    return figure


def curve(variant: Variant) -> pd.DataFrame:
    """A variant's evaluations, a row per window.

    The columns are `seconds` and `images`, means over seeds, and the `mean`, `low` and `high` of
    top-1 over seeds, in percent.
    """
    rows = [
        (each.window, each.train_seconds, each.images, 100 * each.metrics[PRIMARY])
        for run in variant.summaries
        for each in run.evaluations
        if PRIMARY in each.metrics
    ]
    frame = pd.DataFrame(rows, columns=["window", "seconds", "images", "top1"], dtype=float)
    groups = frame.groupby("window")
    return pd.DataFrame(
        {
            "seconds": groups["seconds"].mean(),
            "images": groups["images"].mean(),
            "mean": groups["top1"].mean(),
            "low": groups["top1"].min(),
            "high": groups["top1"].max(),
        }
    )


def target_seconds(variant: Variant, target: Target | None) -> list[float] | None:
    """Seconds to the target for each seed; None if a seed missed it or diverged.

    A mean over only the seeds that reached it would be biased.
    """
    if not reached_in(variant, target).always:
        return None
    return list(seconds_by_seed(variant, target).values())


def describe(study: Study, target: float | None = None) -> MarkdownText:
    """The target, and each variant's final accuracy and time to the target, as Markdown."""
    variants = study.variants
    baseline = baseline_of(variants)
    goal = target_of(baseline, target)
    if goal is None:
        return MarkdownText(f"* `{baseline.name}` learned nothing, so there is no target")
    lines = [f"* the target is top-1 of {goal.text}"]
    if any(len(variant.summaries) > 1 for variant in variants):
        lines.append(f"* {SPREAD}")
    own = target_seconds(baseline, goal)
    for variant in variants:
        ends = [100 * run.final[PRIMARY] for run in variant.summaries if PRIMARY in run.final]
        if not ends:
            why = NOT_EVALUATED if variant.summaries else without_result(variant)
            lines.append(f"* `{variant.name}`: {why}")
            continue
        line = f"* `{variant.name}` ends at {_mean(ends, 2, '%')}"
        seconds = target_seconds(variant, goal)
        if seconds is None:
            line += " and does not reach the target with every seed"
        else:
            line += f" and reaches the target in {_mean(seconds, 1, 's')}"
            alike = same_seeds(variant.summaries, baseline.summaries)
            if own and alike and variant is not baseline:
                line += f", {mean(seconds) / mean(own):.2f}x the time of `{baseline.name}`"
        lines.append(line)
    return MarkdownText("\n".join(lines))


def _missed(variant: Variant, target: Target | None) -> str:
    if not variant.summaries:
        return variant.fate
    if target is None:
        return "no target"
    reached = reached_in(variant, target)
    return f"reached in {reached.runs} of {reached.of}"


def _mean(values: Sequence[float], digits: int, unit: str) -> str:
    found = mean_interval(values)
    spread = "" if math.isnan(found.half) else f" \N{PLUS-MINUS SIGN} {found.half:.{digits}f}"
    return f"{found.estimate:.{digits}f}{spread} {unit}"


def _draw_curves(
    axes: Axes, variants: Sequence[Variant], over: str, found: Mapping[str, VariantStyle]
) -> None:
    for variant in variants:
        frame = curve(variant)
        style = found[variant.name]
        across = frame[over] / (1000 if over == "images" else 1)
        label = variant.name if variant.summaries else f"{variant.name} ({variant.fate})"
        axes.fill_between(
            across, frame["low"], frame["high"], color=style.colour, alpha=0.2, linewidth=0
        )
        axes.plot(across, frame["mean"], **line(style), markersize=4, label=label)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 102)


def _draw_target_times(
    axes: Axes,
    variants: Sequence[Variant],
    target: Target | None,
    found: Mapping[str, VariantStyle],
) -> None:
    longest = 0.0
    labels = []
    for number, variant in enumerate(variants):
        seconds = target_seconds(variant, target)
        if seconds is None:
            labels.append((0.0, _missed(variant, target)))
            continue
        over_seeds = mean_interval(seconds)
        middle, half = over_seeds.estimate, over_seeds.half
        axes.barh(number, middle, height=0.6, **bar(found[variant.name]))
        if not math.isnan(half):
            axes.errorbar(middle, number, xerr=half, color="black", capsize=4, linewidth=1.2)
        labels.append((middle + (0.0 if math.isnan(half) else half), _mean(seconds, 1, "s")))
        longest = max(longest, labels[-1][0])
    longest = longest or 1.0
    for number, (end, label) in enumerate(labels):
        axes.text(end + 0.03 * longest, number, label, va="center")
    axes.set_xlim(0, 1.7 * longest)
    axes.set_yticks(range(len(variants)), [variant.name for variant in variants])
    axes.set_ylim(len(variants) - 0.4, -0.6)
    axes.set_xlabel("training time to the target (s)")
    axes.set_title("Time to target: mean, 95% CI")
    axes.grid(axis="y", visible=False)
