"""Scaling: images per second over ranks, hosts, rate and classes, measured and predicted."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median

import pandas as pd
from matplotlib.axes import Axes

from harness.compare.colours import VariantStyle, in_order, styles_of
from harness.compare.intervals import mean_interval
from harness.compare.style import (
    MarkdownText,
    Picture,
    bar,
    draw_placeholder,
    hollow,
    legend_below,
    line,
    picture,
    plot_style,
    thin,
)
from harness.compare.wording import NO_SPEED
from harness.errors import UserError
from harness.measure.summary import Record
from harness.tracking.prediction import read_predictions
from harness.tracking.results import Variant
from harness.tracking.study import Study

CONDITIONS = "conditions.json"
"""File with the `Condition` of each table of a folder, by the table's name."""
PREDICTIONS = ".predictions.json"
"""Suffix of the file with a table's predictions."""
UNSHAPED = "no limit"


class Condition(Record):
    """The conditions that a throughput table was measured under."""

    hosts: int
    ranks: int
    classes: int
    mbit_per_second: float | None
    """Rate of a host's link, Mbit/s; None means no limit."""
    latency: str | None = None
    """One-way latency as `harness lab up` takes it; None means the machine's own."""
    jitter: str | None = None


PANELS = {
    "mbit_per_second": "rate of a host's link (Mbit/s)",
    "classes": "classes",
    "ranks": "ranks (hosts)",
}
"""The quantity on each panel's x axis, and the axis label."""


def draw(tables: str | Path, study: Study) -> Picture:
    """Draws a panel for each quantity that varies in the throughput tables, and one for the study.

    `tables` is the folder of the tables; in each panel, all other conditions are equal.
    """
    frame = numbers(tables)
    # Variants of the study keep the styles of its other figures, whatever the tables contain.
    found = styles_of(frame["variant"]) | styles_of(each.name for each in study.variants)
    with plot_style():
        figure = picture(12.5, 8.6)
        panels = figure.subplots(2, 2).flat
        for axes, (over, label) in zip(panels, PANELS.items(), strict=False):
            _draw_panel(axes, series(frame, over), over, found)
            axes.set_xlabel(label)
            axes.set_ylabel("images/s, all ranks")
        last = figure.axes[-1]
        _draw_study(last, study, found)
        if study.predictions or frame["predicted"].notna().any():
            nobody = VariantStyle("black", "", "o", "")
            figure.axes[0].plot([], [], **hollow(nobody), label="hollow: predicted")
        if frame["slowest"].notna().any():
            label = "thin line: range over rounds"
            figure.axes[0].plot([], [], color="black", linewidth=1, label=label)
        legend_below(figure, figure.axes[:-1], columns=5)
    return figure


def numbers(tables: str | Path) -> pd.DataFrame:
    """A row per variant and table: the table's condition, `images_per_second`, and `predicted`.

    `slowest` and `fastest` are of the rounds whose median `images_per_second` is; NaN in tables
    without the rounds.

    Raises UserError if the folder lacks the conditions of its tables.
    """
    folder = Path(tables)
    file = folder / CONDITIONS
    if not os.path.exists(file):
        raise UserError(f"{file} is missing; write it, with the conditions of each table")
    rows = []
    for name, values in json.loads(file.read_text(encoding="utf-8")).items():
        condition = Condition.model_validate(values)
        guesses = folder / f"{name}{PREDICTIONS}"
        known = read_predictions(guesses) if os.path.exists(guesses) else ()
        predicted = {each.variant: each.images_per_second for each in known}
        for each in json.loads((folder / f"{name}.json").read_text(encoding="utf-8")):
            variant, rounds = each["variant"], each.get("rates", [math.nan])
            rows.append(
                {"table": name, "variant": variant, **condition.model_dump()}
                | {"images_per_second": each["images_per_second"]}
                | {"predicted": predicted.get(variant, float("nan"))}
                | {"slowest": min(rounds), "fastest": max(rounds)}
            )
    return pd.DataFrame(rows)


def series(frame: pd.DataFrame, over: str) -> pd.DataFrame:
    """The rows that differ in `over` alone, for the conditions with the most values of it."""
    fixed = [name for name in Condition.model_fields if name != over]
    if over == "ranks":
        fixed.remove("hosts")  # more ranks were measured on more hosts
    # A rate of None means no limit; it is a value, not a missing one.
    keys = frame[fixed].fillna(float("inf")).apply(tuple, axis=1)
    values = frame[over].fillna(float("inf")).groupby(keys).nunique()
    if values.max() < 2:
        return frame.iloc[:0]
    return frame[keys == values.idxmax()].drop_duplicates(["variant", over])


def describe(tables: str | Path, study: Study) -> MarkdownText:
    """The fastest variant under each condition, and the errors of predictions, as Markdown."""
    frame = numbers(tables)
    lines = []
    for over, axis in PANELS.items():
        rows = series(frame, over)
        table = rows.pivot(index=over, columns="variant", values="images_per_second")
        if len(table) < 2 or "data_parallel" not in table:
            continue
        times = table.div(table["data_parallel"], axis=0)
        times = times.drop(columns=["data_parallel", "ceiling"], errors="ignore")
        for value in sorted(table.index, key=lambda each: float("inf") if pd.isna(each) else each):
            lines.append(f"* {axis} {_tick(value)}: {_fastest(times.loc[value].dropna())}")
    known = frame.dropna(subset=["predicted"])
    lines += _off("the tables", list(known["predicted"] / known["images_per_second"]))
    foreseen = {each.variant: each.images_per_second for each in study.predictions}
    measured = {each.name: _rates(each) for each in study.variants if each.name in foreseen}
    ratios = [foreseen[name] / mean(rates) for name, rates in measured.items() if rates]
    when = "logged before it ran" if study.predicted_before else "possibly logged after it ran"
    return MarkdownText("\n".join([*lines, *_off(f"the study {study.name} ({when})", ratios)]))


def _fastest(times: "pd.Series[float]") -> str:
    """The best of these ratios to `data_parallel`; "-" if none was measured beside it."""
    if times.empty:
        return "-"
    return (
        f"`{times.idxmax()}` is the fastest variant that exchanges, with {times.max():.2f}x the "
        f"images/s of `data_parallel`"
    )


def _off(what: str, ratios: Sequence[float]) -> list[str]:
    if not ratios:
        return []
    errors = [abs(ratio - 1) for ratio in ratios]
    return [
        f"* predictions of {len(errors)} point{'s' * (len(errors) > 1)} of {what} are off by "
        f"{median(errors):.0%} (median) and at most {max(errors):.0%}"
    ]


def _rates(variant: Variant) -> list[float]:
    return [run.images_per_second for run in variant.timed]


def _draw_study(axes: Axes, study: Study, found: Mapping[str, VariantStyle]) -> None:
    predicted = {each.variant: each.images_per_second for each in study.predictions}
    variants = study.variants
    for number, variant in enumerate(variants):
        rates = _rates(variant)
        over_seeds = mean_interval(rates)
        middle, half = over_seeds.estimate, over_seeds.half
        if rates:
            axes.barh(number, middle, height=0.6, **bar(found[variant.name]))
        else:
            why = NO_SPEED if variant.summaries else variant.fate
            axes.text(0.02, number, why, transform=axes.get_yaxis_transform(), va="center")
        if not math.isnan(half):
            axes.errorbar(middle, number, xerr=half, color="black", capsize=4, linewidth=1.2)
        if variant.name in predicted:
            axes.plot([predicted[variant.name]], [number], **hollow(found[variant.name]))
    first = next((run for variant in variants for run in variant.summaries), None)
    where = "" if first is None else f": {first.ranks} ranks on {first.nodes} nodes"
    axes.set_yticks(range(len(variants)), [variant.name for variant in variants])
    axes.set_ylim(len(variants) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("images/s, all ranks; mean, 95% CI over seeds")
    axes.set_title(f"The study {study.name}{where}", fontsize=10)
    axes.grid(axis="y", visible=False)


def _draw_panel(
    axes: Axes, frame: pd.DataFrame, over: str, found: Mapping[str, VariantStyle]
) -> None:
    if frame.empty:
        draw_placeholder(axes, "measured at one value only")
        return
    frame = frame.assign(place=frame[over].fillna(float("inf")))
    values = sorted(frame["place"].unique())
    for name in in_order(frame["variant"]):
        rows = frame[frame["variant"] == name].sort_values("place")
        places = pd.Series([values.index(value) for value in rows["place"]], rows.index)
        style = found[name]
        axes.plot(places, rows["images_per_second"], **line(style), label=name)
        axes.plot(places + 0.06, rows["predicted"], **hollow(style))
        rounds = rows.dropna(subset=["slowest", "fastest"])
        axes.vlines(places[rounds.index], rounds["slowest"], rounds["fastest"], **thin(style))
    hosts = frame.drop_duplicates("place").set_index("place")["hosts"]
    ticks = [
        f"{_tick(value)} ({hosts[value]})" if over == "ranks" else _tick(value) for value in values
    ]
    # Positions are settings, not numbers: there are two or three, one of them without a limit.
    axes.set_xticks(range(len(values)), ticks)
    axes.set_xlim(-0.3, len(values) - 0.7)
    axes.set_ylim(bottom=0)
    axes.set_title(_fixed_conditions(frame, over), fontsize=10)


def _tick(value: float) -> str:
    return UNSHAPED if pd.isna(value) or value == float("inf") else f"{value:,.0f}"


def _fixed_conditions(frame: pd.DataFrame, over: str) -> str:
    """The conditions that stay the same in a panel."""
    row = frame.iloc[0]
    rate = row["mbit_per_second"]
    parts = {
        "ranks": f"{row['ranks']} ranks on {row['hosts']} hosts",
        "classes": f"{row['classes']:,} classes",
        "mbit_per_second": UNSHAPED if pd.isna(rate) else f"{rate:,.0f} Mbit/s",
    }
    return ", ".join(text for key, text in parts.items() if key != over)
