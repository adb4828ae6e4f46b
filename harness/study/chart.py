"""The picture of a comparison: where a step's time goes, and accuracy over training time."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.study.results import PRIMARY, Target, Variant
from harness.study.table import PHASES, images_per_step, phase_ms, primary_set, wait_ms

# Okabe and Ito's colours, told apart by most colour-blind readers; vermillion is kept for waiting.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
DASHES = ("-", "--", ":")
"""A second and third round of the colours."""
WAIT_COLOUR = "#D55E00"
BAR = 0.7
"""Thickness, of the distance between two."""
LOOKS: dict[str, dict[str, str]] = {
    "data": {"facecolor": "#f2f2f2"},
    "forward": {"facecolor": "#c9c9c9"},
    "backward": {"facecolor": "#979797"},
    "optimizer": {"facecolor": "#686868"},
    "other": {"facecolor": "#404040"},
    "slice_wait": {"facecolor": "#fdeadf", "hatch": "...."},
    "node_wait": {"facecolor": "#f6b48a", "hatch": "////"},
    "exchange_wait": {"facecolor": WAIT_COLOUR},
}
"""Computing in greys, standing still in colour."""


def draw(variants: Sequence[Variant], target: Target | None, title: str, path: Path) -> None:
    """Writes the picture as a PNG."""
    compose(variants, target, title).savefig(path, dpi=130)


def compose(variants: Sequence[Variant], target: Target | None, title: str) -> Figure:
    """Times on the left, accuracy on the right; a variant has the same colour in both."""
    height = max(4.8, 1.9 + 0.55 * len(variants))
    figure = Figure(figsize=(13, height), layout="constrained")
    FigureCanvasAgg(figure)
    times, accuracy = figure.subplots(1, 2)
    figure.suptitle(title)
    _draw_times(times, variants)
    _draw_accuracy(accuracy, variants, target)
    return figure


def times_figure(variants: Sequence[Variant]) -> Figure:
    """The left half alone."""
    figure, axes = _single(len(variants))
    _draw_times(axes, variants)
    return figure


def accuracy_figure(variants: Sequence[Variant], target: Target | None) -> Figure:
    """The right half alone."""
    figure, axes = _single(len(variants))
    _draw_accuracy(axes, variants, target)
    return figure


def _single(variants: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, max(4.4, 1.9 + 0.5 * variants)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def colour_at(number: int) -> str:
    """Of the variant in that place of its study, in every picture."""
    return _style(number)[0]


def _style(number: int) -> tuple[str, str]:
    turn, place = divmod(number, len(COLOURS))
    return COLOURS[place], DASHES[turn % len(DASHES)]


def _draw_times(axes: Axes, variants: Sequence[Variant]) -> None:
    steps = {images_per_step(run) for variant in variants for run in variant.summaries}
    # Steps of different size do not compare; the time of as many images does.
    per_images = len(steps) > 1
    totals = [
        _draw_bar(axes, number, variant, per_images) for number, variant in enumerate(variants)
    ]
    longest = max([*totals, 1e-9])
    for number, (variant, total) in enumerate(zip(variants, totals, strict=True)):
        axes.barh(number, -0.015 * longest, color=_style(number)[0], height=BAR)
        axes.text(total + 0.015 * longest, number, _bar_label(variant, total), va="center")
    axes.set_xlim(-0.015 * longest, 1.45 * longest)
    axes.set_yticks(range(len(variants)), [variant.name for variant in variants])
    spare = max(0, 4 - len(variants)) / 2  # two bars would be as thick as bricks
    axes.set_ylim(len(variants) - 0.5 + spare, -0.5 - spare)
    axes.set_xlabel("time of 1,000 images (ms)" if per_images else "time of a step (ms)")
    axes.set_title("Where the time goes, mean over ranks")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Patch(edgecolor="black", linewidth=0.5, label=phase.replace("_", " "), **LOOKS[phase])  # type: ignore[arg-type]
        for phase in PHASES
    ]
    axes.legend(
        handles=handles, ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13)
    )


def _draw_bar(axes: Axes, number: int, variant: Variant, per_images: bool) -> float:
    """The bar's length."""
    left = 0.0
    for phase in PHASES:
        found = [
            phase_ms(run, phase) * (1000 / images_per_step(run) if per_images else 1.0)
            for run in variant.summaries
        ]
        width = mean(found) if found else 0.0
        look = LOOKS[phase]
        axes.barh(
            number,
            width,
            left=left,
            height=BAR,
            edgecolor="black",
            linewidth=0.5,
            **look,  # type: ignore[arg-type]
        )
        left += width
    return left


def _bar_label(variant: Variant, total: float) -> str:
    if not variant.summaries:
        return "failed"
    waiting = mean(wait_ms(run) / run.step_ms.mean for run in variant.summaries)
    return f"{total:,.0f} ms, {waiting:.0%} waiting"


def _draw_accuracy(axes: Axes, variants: Sequence[Variant], target: Target | None) -> None:
    for number, variant in enumerate(variants):
        colour, dash = _style(number)
        label: str | None = variant.name if variant.summaries else f"{variant.name} (failed)"
        for run in variant.summaries or [None]:
            points = [] if run is None else [e for e in run.evaluations if PRIMARY in e.metrics]
            axes.plot(
                [point.train_seconds for point in points],
                [100 * point.metrics[PRIMARY] for point in points],
                color=colour,
                linestyle=dash,
                marker="o",
                markersize=4,
                label=label,
            )
            label = None  # one entry for all seeds
    if target is not None:
        axes.axhline(
            100 * target.top1,
            color="#555555",
            linestyle=(0, (6, 3)),
            linewidth=1,
            zorder=0,
            label=f"target {target.top1:.2%}",
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("training time, evaluations left out (s)")
    axes.set_ylabel(f"top-1 on {primary_set(variants)} (%)")
    axes.set_title("What it learned by then, a line per run")
    axes.grid(color="#e5e5e5", zorder=-1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13))
