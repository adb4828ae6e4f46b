"""The style of all figures: sizes, grid, legends; a figure that a notebook shows as a PNG."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase

from harness.compare.colours import VariantStyle

DPI = 90
RC_PARAMS: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 10.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "hatch.linewidth": 0.7,
    "lines.markersize": 5.0,
}
"""matplotlib's rc parameters for all figures."""


class Picture(Figure):
    """A figure that a notebook displays as a PNG, without a window or global state."""

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self) -> bytes:
        stream = BytesIO()
        with plot_style():  # some parameters, such as the hatch width, are read when it is drawn
            self.savefig(stream, dpi=DPI, metadata={"Software": None})
        return stream.getvalue()


class MarkdownText(str):
    """Markdown text that a notebook renders."""

    def _repr_markdown_(self) -> str:
        return str(self)


@contextmanager
def plot_style() -> Iterator[None]:
    """Draws with RC_PARAMS inside the block."""
    with matplotlib.rc_context(RC_PARAMS):
        yield


def picture(width: float, height: float, title: str = "") -> Picture:
    """An empty figure; width and height are in inches."""
    figure = Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    return figure


def line(style: VariantStyle, marker: bool = True) -> dict[str, Any]:
    """Line keywords for a variant."""
    kept = {"marker": style.marker} if marker else {}
    return {"color": style.colour, "linestyle": style.dash, **kept}


def sparse_markers(points: int) -> dict[str, Any]:
    """Line keywords for a line of `points` points: about 25 small markers."""
    return {"markevery": max(1, points // 25), "markersize": 3.5}


def bar(style: VariantStyle) -> dict[str, Any]:
    """Bar keywords for a variant."""
    return {"facecolor": style.colour, "hatch": style.hatch, "edgecolor": "white", "linewidth": 0.5}


def hollow(style: VariantStyle) -> dict[str, Any]:
    """Line keywords for predictions: the variant's marker, hollow."""
    return {
        "color": style.colour,
        "marker": style.marker,
        "markerfacecolor": "white",
        "markersize": 9,
        "linestyle": "none",
    }


def thin(style: VariantStyle) -> dict[str, Any]:
    """Keywords of a line from the least to the most, behind a variant's marker."""
    return {"colors": style.colour, "linewidths": 1, "zorder": 1}


def legend_below(figure: FigureBase, axes: Sequence[Axes], columns: int = 4) -> None:
    """Adds one legend for all axes below the figure, with each label once."""
    found: dict[str, Any] = {}
    for each in axes:
        handles, labels = each.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault(str(label), handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)


def draw_placeholder(axes: Axes, why: str) -> None:
    """Fills the axes with a text that says why nothing is plotted."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color="#555555")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
