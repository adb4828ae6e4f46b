"""The picture: bars as long as the phases, one colour a variant, units, and nothing overlapping."""

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from harness.compare.chart import compose, draw
from harness.compare.colours import COLOURS
from harness.compare.table import PHASES
from harness.tracking.results import Variant, target_of
from tests.recorded import PHASES_MS, summary, variant

BASE = variant("data_parallel", summary(), summary(seed=1, accuracies=(0.4, 0.7, 0.85)))
HYBRID = variant("hybrid_async", summary("hybrid_async", phases_ms=PHASES_MS | {"data": 15.0}))
FAILED = variant("world_sync", failures=("rank 1 failed",))


def picture(*variants: Variant) -> tuple[Figure, Axes, Axes]:
    figure = compose(variants, target_of(variants[0], None), "a study: 4 ranks on h1:2,h2:2")
    times, accuracy = figure.axes
    return figure, times, accuracy


def bars(axes: Axes, row: int) -> list[float]:
    """Lengths of the phases of one variant; the strip of its colour lies left of zero."""
    patches = [p for p in axes.patches if isinstance(p, Rectangle)]
    own = [p for p in patches if round(p.get_y() + p.get_height() / 2) == row]
    return [p.get_width() for p in own if p.get_width() >= 0]


def test_bars_are_as_long_as_the_phases() -> None:
    _, times, _ = picture(BASE, HYBRID, FAILED)
    expected = PHASES_MS | {"data": 15.0}
    assert bars(times, 0) == pytest.approx([PHASES_MS[phase] for phase in PHASES])
    assert bars(times, 1) == pytest.approx([expected[phase] for phase in PHASES])
    assert bars(times, 2) == pytest.approx([0.0] * len(PHASES))
    labels = [text.get_text() for text in times.texts]
    assert labels == ["100 ms, 30% waiting", "110 ms, 27% waiting", "failed"]
    assert times.get_xlabel() == "time per step (ms)"


def test_steps_of_different_size_are_compared_by_the_time_of_as_many_images() -> None:
    other = variant("k4", summary("k4", passes=4))  # 512 images a step
    _, times, _ = picture(BASE, other)
    assert sum(bars(times, 0)) == pytest.approx(100 * 1000 / 128)
    assert sum(bars(times, 1)) == pytest.approx(100 * 1000 / 512)
    assert times.get_xlabel() == "time per 1,000 images (ms)"


def test_a_variant_has_one_colour_in_both_halves_and_every_run_a_line() -> None:
    _, times, accuracy = picture(BASE, HYBRID)
    strips = [p for p in times.patches if isinstance(p, Rectangle) and p.get_width() < 0]
    strip_colours = [to_hex(strip.get_facecolor()).upper() for strip in strips]
    assert strip_colours == [COLOURS[0], COLOURS[2]]
    lines = [line for line in accuracy.lines if line.get_marker() in ("o", "^")]
    assert [line.get_color() for line in lines] == [COLOURS[0], COLOURS[0], COLOURS[2]]
    assert [list(line.get_xdata()) for line in lines[:1]] == [[10, 20, 30]]
    assert [list(line.get_ydata()) for line in lines[:1]] == [[50, 80, 90]]
    assert accuracy.get_xlabel().endswith("(s)")
    assert accuracy.get_ylabel() == "top-1 on unseen_design (%)"


def test_nothing_overlaps_with_many_variants_of_long_names() -> None:
    names = [f"hybrid_averaging_{number}" for number in range(9)]
    figure, times, accuracy = picture(*(variant(name, summary(name)) for name in names))
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    texts = list(figure.texts)
    for axes in (times, accuracy):
        legend = axes.get_legend()
        assert legend is not None
        texts += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label, *legend.get_texts()]
        texts += [*shown_ticks(axes.xaxis), *shown_ticks(axes.yaxis)]
    texts = [text for text in texts if text.get_text()]
    assert len(texts) > 40
    assert_apart(texts)
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def shown_ticks(axis: Axis) -> list[Text]:
    """Labels of the ticks that lie in the view."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def assert_apart(texts: list[Text]) -> None:
    for one, other in combinations(texts, 2):
        overlap = one.get_window_extent().overlaps(other.get_window_extent())
        assert not overlap, f"{one.get_text()!r} lies on {other.get_text()!r}"


def test_the_file_is_a_picture(tmp_path: Path) -> None:
    draw((BASE, HYBRID), target_of(BASE, None), "a study", tmp_path / "chart.png")
    height, width, _ = imread(tmp_path / "chart.png").shape
    assert width == 13 * 130
    assert height >= 4.8 * 130
