"""Predictions: the cost model against measurements in the lab."""

from pathlib import Path

import pandas as pd

from harness.compare.style import MarkdownText, Picture, picture, plot_style

MEASURED = "#b0b0b0"
PREDICTED = "#0072B2"


def read(table: str | Path) -> pd.DataFrame:
    """The table of `benchmarks.predictions`, a row per configuration; none was used to fit."""
    rows = pd.read_json(table)
    pairs = zip(rows["variant"], rows["setting"], strict=True)
    return rows.assign(what=[_in_words(*names) for names in pairs])


def _in_words(variant: str, setting: str) -> str:
    """Spells out the names that `benchmarks.predictions` gives variants and settings."""
    layout, exchange, passes, delay, sent_as, *pieces = variant.split("-")
    grid, rate, classes = setting.split("-")
    name = f"{layout} {exchange}, K {passes}"
    name += f", delay {delay}" if int(delay) > 1 else ""
    name += f", {sent_as}" if sent_as != "none" else ""
    name += f", {pieces[0]} pieces" if pieces and int(pieces[0]) > 1 else ""
    link = f"{rate} Mbit/s" if rate.isdigit() else rate
    return f"{name}: {grid}, {link}, {int(classes):,}"


def draw(found: pd.DataFrame) -> Picture:
    """Draws measured and predicted step times side by side, with the error."""
    widest = max(found["measured_ms"].max(), found["predicted_ms"].max())
    with plot_style():
        figure = picture(9, 7.4)
        axes = figure.subplots()
        rows = range(len(found))
        above, below = ([row + shift for row in rows] for shift in (-0.2, 0.2))
        axes.barh(above, found["measured_ms"], 0.38, color=MEASURED, label="measured")
        axes.barh(below, found["predicted_ms"], 0.38, color=PREDICTED, label="predicted")
        for number, row in enumerate(found.to_dict("records")):
            place = max(row["measured_ms"], row["predicted_ms"]) + 0.01 * widest
            axes.text(place, number, f"{row['error']:+.1%}", va="center", fontsize=9)
        axes.set_yticks(rows, list(found["what"]))
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * widest)
        axes.grid(axis="y", visible=False)
        axes.set_title("Lab hosts, one calibration")
        axes.set_xlabel("step time (ms)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def describe(found: pd.DataFrame) -> MarkdownText:
    """The median and the largest error."""
    errors = found["error"].abs()
    return MarkdownText(
        f"Predictions of {len(found)} configurations on lab hosts, from one calibration that saw "
        f"none of them, are off by {errors.median():.1%} (median) and at most {errors.max():.1%}"
    )
