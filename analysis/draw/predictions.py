"""Predictions: the cost model against the lab, and against tables that others published."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from analysis.published import Check, horovod, insightface
from harness.compare.style import Picture, Said, dressed, picture

MEASURED = "#b0b0b0"
PREDICTED = "#0072B2"
FITTED_ALPHA = 0.35
TITLES = {
    "lab": "Lab hosts, one calibration",
    "insightface": "insightface, 8 V100",
    "horovod": "Horovod, 128 x 4 P100",
}
UNITS = {
    "lab": "step time (ms)",
    "insightface": "images/s, eight cards",
    "horovod": "images/s, share of linear (1)",
}


def checks(lab: str | Path, published: str | Path) -> dict[str, Check]:
    """Of `benchmarks.predictions`' table and of the published ones in a folder."""
    folder = Path(published)
    return {
        "lab": of_lab(pd.read_json(lab)),
        "insightface": insightface(pd.read_csv(folder / "insightface-8xV100.csv")),
        "horovod": horovod(pd.read_csv(folder / "horovod-512xP100.csv")),
    }


def of_lab(table: pd.DataFrame) -> Check:
    """Nothing was fitted to any of its rows."""
    frame = pd.DataFrame(
        {
            "what": [
                _in_words(*names) for names in zip(table["variant"], table["setting"], strict=True)
            ],
            "published": table["measured_ms"],
            "predicted": table["predicted_ms"],
            "error": table["error"],
            "fitted": False,
        }
    )
    return Check(frame, {})


def _in_words(variant: str, setting: str) -> str:
    """Of `benchmarks.predictions`' names for them."""
    layout, exchange, passes, delay, sent_as, *pieces = variant.split("-")
    grid, rate, classes = setting.split("-")
    told = f"{layout} {exchange}, K {passes}"
    told += f", delay {delay}" if int(delay) > 1 else ""
    told += f", {sent_as}" if sent_as != "none" else ""
    told += f", {pieces[0]} pieces" if pieces and int(pieces[0]) > 1 else ""
    link = f"{rate} Mbit/s" if rate.isdigit() else rate
    return f"{told}: {grid}, {link}, {int(classes):,}"


def draw(found: dict[str, Check]) -> Picture:
    """A panel a source: measured beside predicted, and by how much it is off."""
    with dressed():
        figure = picture(14, 7.4)
        panels = figure.subplot_mosaic(
            [["lab", "insightface"], ["lab", "horovod"]], height_ratios=(3.6, 1)
        )
        for name, check in found.items():
            _draw_check(panels[name], check)
            panels[name].set_title(TITLES[name])
            panels[name].set_xlabel(UNITS[name])
        handles = [
            panels["lab"].barh([0], [0], color=MEASURED),
            panels["lab"].barh([0], [0], color=PREDICTED),
            panels["lab"].barh([0], [0], color=PREDICTED, alpha=FITTED_ALPHA),
        ]
        names = ["measured or published", "predicted", "fitted to this row"]
        figure.legend(handles=handles, labels=names, loc="outside lower center", ncols=3)
    return figure


def _draw_check(axes: Axes, check: Check) -> None:
    frame = check.frame
    widest = max(frame["published"].max(), frame["predicted"].max())
    for number, row in enumerate(frame.to_dict("records")):
        alpha = FITTED_ALPHA if row["fitted"] else 1.0
        axes.barh(number - 0.2, row["published"], 0.38, color=MEASURED)
        axes.barh(number + 0.2, row["predicted"], 0.38, color=PREDICTED, alpha=alpha)
        told = "fitted" if row["fitted"] else f"{row['error']:+.1%}"
        place = max(row["published"], row["predicted"]) + 0.01 * widest
        axes.text(place, number, told, va="center", fontsize=9)
    axes.set_yticks(range(len(frame)), list(frame["what"]))
    axes.set_ylim(len(frame) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * widest)
    axes.grid(axis="y", visible=False)


def say(found: dict[str, Check]) -> Said:
    """How far off what was not fitted is."""
    lines = []
    for name, check in found.items():
        fitted = "; ".join(f"{what}: {value}" for what, value in check.fitted.items())
        used = int(check.frame["fitted"].sum())
        lines.append(
            f"* {TITLES[name]}: {used} of {len(check.frame)} rows were fitted to"
            f"{f' ({fitted})' if fitted else ''}; the others are off by {check.median:.1%} "
            f"(median), {check.worst:.1%} at most"
        )
    return Said("\n".join(lines))
