"""Bytes: counts at the collectives beside the formula's values, by link."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.compare.colours import VariantStyle, styles_of
from harness.compare.style import MarkdownText, Picture, bar, picture, plot_style
from harness.tracking.results import Variant
from harness.tracking.study import Study

NOT_COUNTED = "no bytes were counted"
LINKS = {
    "cross_node": "between nodes, sent by one node",
    "in_node": "inside a node, sent by one rank",
}


def draw(study: Study) -> Picture:
    """Draws counted bytes as bars and the formula as diamonds, with a row of panels per link."""
    variants = study.variants
    found = styles_of(variant.name for variant in variants)
    frame = numbers(variants)
    fates = {each.name: NOT_COUNTED if each.summaries else each.fate for each in variants}
    with plot_style():
        figure = picture(13, 2.6 + 0.56 * max(4, len(variants)))
        rows = figure.subplots(2, 2, sharey=True)
        for row, (link, title) in zip(rows, LINKS.items(), strict=True):
            for axes, per in zip(row, ("window", "images"), strict=True):
                _draw_panel(axes, frame[frame["link"] == link], per, found, fates)
                axes.set_title(title[0].upper() + title[1:])
        diamond = Line2D([], [], color="black", marker="D", markerfacecolor="white", linestyle="")
        figure.legend([diamond], ["formula (bars are counted)"], loc="outside lower center")
    return figure


def numbers(variants: Sequence[Variant]) -> pd.DataFrame:
    """A row per variant and link, in MB (1e6 bytes), means over seeds; NaN if not known.

    `counted_window` and `formula_window` are per window, `counted_images` and `formula_images` per
    1,000 images of all ranks.
    """
    rows = []
    for variant in variants:
        for link in LINKS:
            values: dict[str, str | float] = {"variant": variant.name, "link": link}
            for kind, name in (("counted", ""), ("formula", "_formula")):
                # Only timed windows are counted.
                runs = variant.timed if kind == "counted" else variant.summaries
                windows = [getattr(run, f"{link}_mb_per_step{name}") for run in runs]
                per_image = [
                    1000 * window / run.images_per_step
                    for window, run in zip(windows, runs, strict=True)
                ]
                values[f"{kind}_window"] = mean(windows) if windows else math.nan
                values[f"{kind}_images"] = mean(per_image) if windows else math.nan
            rows.append(values)
    return pd.DataFrame(rows)


def describe(study: Study) -> MarkdownText:
    """How far counts and formula differ, and who sends most and least, as Markdown."""
    frame = numbers(study.variants)
    apart = (frame["counted_window"] / frame["formula_window"] - 1).abs().max()
    cross = frame[frame["link"] == "cross_node"].set_index("variant")["counted_images"].dropna()
    lines = [
        f"* {NOT_COUNTED}"
        if math.isnan(apart)
        else f"* counts and formula differ by at most {100 * apart:.2g} %"
    ]
    if len(cross) > 1 and cross.min() > 0:
        lines.append(
            f"* between nodes, `{cross.idxmax()}` sends most ({cross.max():.3g} MB per 1,000 "
            f"images) and `{cross.idxmin()}` least ({cross.min():.3g} MB), a factor of "
            f"{cross.max() / cross.min():.1f}"
        )
    return MarkdownText("\n".join(lines))


def _draw_panel(
    axes: Axes,
    frame: pd.DataFrame,
    per: str,
    found: Mapping[str, VariantStyle],
    fates: Mapping[str, str],
) -> None:
    names = list(frame["variant"])
    counted, formula = list(frame[f"counted_{per}"]), list(frame[f"formula_{per}"])
    longest = max([1e-9, *(value for value in counted + formula if not math.isnan(value))])
    for number, name in enumerate(names):
        if math.isnan(counted[number]):
            axes.text(0.03 * longest, number, fates[name], va="center")
            continue
        axes.barh(number, counted[number], height=0.6, **bar(found[name]))
        axes.plot([formula[number]], [number], "D", color="black", markerfacecolor="white")
        end = max(counted[number], formula[number]) + 0.03 * longest
        axes.text(end, number, f"{counted[number]:,.3g}", va="center")
    axes.set_xlim(0, 1.2 * longest)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("MB per window" if per == "window" else "MB per 1,000 images of all ranks")
    axes.grid(axis="y", visible=False)
