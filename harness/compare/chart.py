"""The chart of a comparison: where a step's time goes, and accuracy over training time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.compare.colours import VariantStyle, styles_of
from harness.compare.ladder import Ladder
from harness.compare.ladder_chart import draw as ladder_figure
from harness.compare.step_bars import draw_times
from harness.compare.style import line, picture, plot_style
from harness.compare.table import primary_set
from harness.tracking.results import PRIMARY, Target, Variant


def draw(variants: Sequence[Variant], target: Target | None, title: str, path: Path) -> None:
    """Writes the chart to `path` as a PNG."""
    with plot_style():
        compose(variants, target, title).savefig(path, dpi=130)


def draw_ladder(ladder: Ladder, path: Path) -> None:
    """Writes the chart of what each lever is worth to `path` as a PNG."""
    with plot_style():
        ladder_figure(ladder).savefig(path, dpi=130)


def compose(variants: Sequence[Variant], target: Target | None, title: str) -> Figure:
    """Draws step times on the left and accuracy on the right, with the same colour per variant."""
    found = styles_of(variant.name for variant in variants)
    height = max(4.8, 1.9 + 0.55 * len(variants))
    with plot_style():
        figure = picture(13, height, title)
        times, accuracy = figure.subplots(1, 2)
        draw_times(times, variants, found)
        _draw_accuracy(accuracy, variants, target, found)
    return figure


def times_figure(variants: Sequence[Variant]) -> Figure:
    """Draws the left half of the chart alone."""
    with plot_style():
        figure, axes = _single(len(variants))
        draw_times(axes, variants, styles_of(variant.name for variant in variants))
    return figure


def accuracy_figure(variants: Sequence[Variant], target: Target | None) -> Figure:
    """Draws the right half of the chart alone."""
    with plot_style():
        figure, axes = _single(len(variants))
        _draw_accuracy(axes, variants, target, styles_of(variant.name for variant in variants))
    return figure


def draw_target(axes: Axes, target: Target | None) -> None:
    """Draws the target accuracy as a dashed line; nothing if there is no target."""
    if target is None:
        return
    axes.axhline(
        100 * target.top1,
        color="#555555",
        linestyle=(0, (6, 3)),
        linewidth=1,
        zorder=1,
        label=f"target {target.top1:.2%}",
    )


def _single(variants: int) -> tuple[Figure, Axes]:
    figure = picture(7.2, max(4.4, 1.9 + 0.5 * variants))
    return figure, figure.subplots()


def _draw_accuracy(
    axes: Axes,
    variants: Sequence[Variant],
    target: Target | None,
    found: Mapping[str, VariantStyle],
) -> None:
    for variant in variants:
        label: str | None = (
            variant.name if variant.summaries else f"{variant.name} ({variant.fate})"
        )
        for run in variant.summaries or [None]:
            points = [] if run is None else [e for e in run.evaluations if PRIMARY in e.metrics]
            axes.plot(
                [point.train_seconds for point in points],
                [100 * point.metrics[PRIMARY] for point in points],
                **line(found[variant.name]),
                markersize=4,
                label=label,
            )
            label = None  # one legend entry for all seeds of a variant
    draw_target(axes, target)
    axes.set_xlim(left=0)
    axes.set_xlabel("training time, without evaluations (s)")
    axes.set_ylabel(f"top-1 on {primary_set(variants)} (%)")
    axes.set_title("Accuracy over time, one line per run")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
