"""Scale: the simulated sweep over ranks, classes and rates that cannot be measured here."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from harness.compare.colours import VariantStyle, styles_of
from harness.compare.style import MarkdownText, Picture, legend_below, line, picture, plot_style

CEILINGS = ("ceiling", "ceiling_sampled")
"""The bounds without and with class sampling."""
CLEAR = 1.05
"""Speed-up over the runner-up from which a lead is clear; smaller leads are shown pale."""
LABELS = {
    "ranks": "cards, eight per machine",
    "classes": "classes",
    "gbit_per_second": "rate of a machine's port (Gbit/s)",
}
PLACE = {"ranks": 512, "classes": 1_000_000, "gbit_per_second": 25.0}
"""The point that all lines pass through: one of the three varies, the others stay."""
MAPS = (32, 512, 4096)
"""Numbers of cards for which a map is drawn."""


def read(sweep: str | Path) -> pd.DataFrame:
    """Reads what `make scale` wrote; `analysis.scale_grid.simulated` has its columns."""
    return pd.read_csv(sweep)


def draw(frame: pd.DataFrame) -> Picture:
    """Draws throughput relative to the ceiling over each of the three axes, and maps below: a row
    of each for training on all classes, then one for sampled classes.

    The ceiling is nodes that exchange nothing. The maps show the fastest variant by classes and
    rate.
    """
    found = styles_of(frame["variant"])
    with plot_style():
        figure = picture(13, 20)
        parts = figure.subfigures(2, 1, squeeze=False)[:, 0]
        for part, (title, rows) in zip(parts, by_sampling(frame).items(), strict=True):
            lines, maps = part.subplots(2, 3, height_ratios=(1, 0.9))
            for axes, over in zip(lines, LABELS, strict=True):
                _draw_lines(axes, rows, over, found)
            for axes, ranks in zip(maps, MAPS, strict=True):
                _draw_map(axes, winners(rows, ranks), found)
                axes.set_title(f"{ranks:,} cards: the fastest, and its lead")
            part.suptitle(title)
            legend_below(part, list(lines[:1]), columns=4)
    return figure


def by_sampling(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each share of the classes that take part in a micro-batch, by its title.

    Variants are compared only within a share, because another share learns otherwise.
    """
    shares = sorted(frame["sampling"].unique(), reverse=True)
    return {
        "All classes" if share == 1 else f"{share:.0%} of the classes in a micro-batch": frame[
            frame["sampling"] == share
        ]
        for share in shares
    }


def _draw_lines(
    axes: Axes, frame: pd.DataFrame, over: str, found: Mapping[str, VariantStyle]
) -> None:
    """Draws a line per variant; positions on the x axis are settings, not a scale."""
    values = sorted(frame[over].unique())
    for variant, rows in along(frame, over).groupby("variant"):
        places = [values.index(value) for value in rows[over]]
        axes.plot(places, rows["share"], label=variant, **line(found[str(variant)]))
    axes.set_xticks(range(len(values)), [compact(value) for value in values])
    axes.set_xlabel(LABELS[over])
    axes.set_ylabel("images/s relative to the ceiling (1)")
    axes.set_title(_elsewhere(over))
    axes.set_ylim(0, 1.05)


def along(frame: pd.DataFrame, over: str) -> pd.DataFrame:
    """The rows through PLACE that vary in `over`, with their `share` of the ceiling's images/s.

    Variants that do not fit into a card's memory are left out.
    """
    others = [name for name in LABELS if name != over]
    # A single machine uses no link, so its rows stand for every rate.
    single = frame["ranks"] == frame["ranks"].min()
    kept = pd.Series(True, index=frame.index)
    for name in others:
        fits = frame[name] == PLACE[name]
        kept &= (fits | single) if name == "gbit_per_second" else fits
    rows = frame[kept].sort_values(over)
    keys = list(LABELS)
    ceiling = rows[rows["variant"].isin(CEILINGS)].set_index(keys)["images_per_second"]
    rates = rows.set_index(keys)["images_per_second"]
    rows = rows.assign(share=(rates / ceiling.reindex(rates.index)).to_numpy())
    return rows[rows["fits"] & ~rows["variant"].isin(CEILINGS)]


def winners(frame: pd.DataFrame, ranks: int) -> pd.DataFrame:
    """The fastest `variant` that fits, by classes and rate, and its `lead`.

    The lead is the ratio of its images per second to those of the runner-up.
    """
    usable = frame[(frame["ranks"] == ranks) & frame["fits"] & ~frame["variant"].isin(CEILINGS)]
    rows = []
    for (classes, gbit), group in usable.groupby(["classes", "gbit_per_second"]):
        best = group.sort_values("images_per_second", ascending=False)
        rates = list(best["images_per_second"])
        rows.append(
            {
                "classes": classes,
                "gbit_per_second": gbit,
                "variant": best["variant"].iloc[0],
                "lead": rates[0] / rates[1] if len(rates) > 1 else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def _draw_map(axes: Axes, best: pd.DataFrame, found: Mapping[str, VariantStyle]) -> None:
    rates = sorted(best["gbit_per_second"].unique())
    counts = sorted(best["classes"].unique())
    for row in best.to_dict("records"):
        x, y = rates.index(row["gbit_per_second"]), counts.index(row["classes"])
        style = found[row["variant"]]
        axes.add_patch(_tile(x, y, style.colour, 0.6 if row["lead"] >= CLEAR else 0.2))
        axes.plot([x], [y + 0.28], style.marker, color=style.colour, markersize=6)
        axes.text(x, y - 0.12, times(row["lead"]), ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(rates)), [compact(rate) for rate in rates])
    axes.set_yticks(range(len(counts)), [compact(count) for count in counts])
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set_ylim(-0.5, len(counts) - 0.5)
    axes.set_xlabel(LABELS["gbit_per_second"])
    axes.set_ylabel(LABELS["classes"])
    axes.grid(visible=False)


def _tile(x: int, y: int, colour: str, alpha: float) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", alpha=alpha)


def compact(value: float) -> str:
    """Abbreviates round numbers, 1,000,000 to 1M; others stay as they are."""
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if value >= size and value % size == 0:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


def times(ratio: float) -> str:
    """A ratio as text; "-" if there is none, as where a single variant fits into memory."""
    return "-" if math.isnan(ratio) else f"{ratio:.2f}x"


def _elsewhere(over: str) -> str:
    fixed = {
        "ranks": f"{PLACE['ranks']:,} cards",
        "classes": f"{compact(PLACE['classes'])} classes",
        "gbit_per_second": f"{PLACE['gbit_per_second']:g} Gbit/s",
    }
    return ", ".join(text for name, text in fixed.items() if name != over)


def describe(frame: pd.DataFrame) -> MarkdownText:
    """The fastest variants, how often and by how much they lead, and what does not fit."""
    lines = []
    for title, rows in by_sampling(frame).items():
        for ranks in MAPS:
            best = winners(rows, ranks)
            clear = best[best["lead"] >= CLEAR]
            leaders = [
                f"`{name}` is fastest in {len(led)} (up to {led['lead'].max():.2f}x the runner-up)"
                for name, led in clear.groupby("variant")
            ]
            lines.append(
                f"* {title}, {ranks:,} cards, {len(best)} settings: {', '.join(leaders)}; no "
                f"clear winner in {len(best) - len(clear)}"
            )
    lost = frame[~frame["fits"]].groupby("variant")["classes"].min()
    lines += [
        f"* `{name}` does not fit from {compact(least)} classes on" for name, least in lost.items()
    ]
    return MarkdownText("\n".join(lines))
