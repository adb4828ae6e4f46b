"""What every picture must be: texts apart and inside, axes with units."""

import re
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

UNIT = re.compile(
    r"\((ms|s|%|1|nat|MB|thousands|Mbit/s|Gbit/s|hosts)\)|images/s|^MB |^window$|^classes$|^cards"
    r"|1,000 images"
)


def drawn(figure: Figure) -> Figure:
    """With all its texts in their places."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return figure


def texts_of(figure: Figure) -> list[Text]:
    texts = list(figure.texts)
    if figure.get_suptitle():
        texts += [text for text in figure.texts if text not in texts]
    legends: list[Legend | None] = [*figure.legends]
    for axes in figure.axes:
        legends.append(axes.get_legend())
        texts += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        texts += [*shown_ticks(axes.xaxis), *shown_ticks(axes.yaxis)]
    for legend in legends:
        texts += [] if legend is None else legend.get_texts()
    return [text for text in texts if text.get_text() and text.get_visible()]


def shown_ticks(axis: Axis) -> list[Text]:
    """Labels of the ticks that lie in the view."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]


def assert_readable(figure: Figure) -> None:
    """No text lies on another, or out of the picture."""
    texts = texts_of(drawn(figure))
    assert len(texts) > 8
    for one, other in combinations(texts, 2):
        overlap = one.get_window_extent().overlaps(other.get_window_extent())
        assert not overlap, f"{one.get_text()!r} lies on {other.get_text()!r}"
    for text in texts:
        box = text.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0
        inside &= box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, f"{text.get_text()!r} lies out of the picture"


def assert_units(figure: Figure) -> None:
    """On each axis that has numbers; a grid of panels may say it at its edge alone."""
    for axes in drawn(figure).axes:
        place = axes.get_subplotspec()
        assert place is not None
        if place.is_last_row() or axes.get_xlabel():
            assert UNIT.search(axes.get_xlabel()), (axes.get_title(), axes.get_xlabel())
        if (place.is_first_col() or axes.get_ylabel()) and not named(axes):
            assert UNIT.search(axes.get_ylabel()), (axes.get_title(), axes.get_ylabel())


def named(axes: Axes) -> bool:
    """Whether the y axis has words."""
    return any(text.get_text()[:1].isalpha() for text in shown_ticks(axes.yaxis))
