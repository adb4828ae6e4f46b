"""Where lateness pays: the best late variant against the best synchronous one.

Measured: images/s come from a table for each link, and the images that a variant needs to reach the
target from a study. Learning does not depend on the link, because delays are counted in windows, so
images / (images/s) and one drain are the time to accuracy on that link. For cards, throughput alone
is simulated.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from analysis.draw.scale import CEILING, LABELS, MAPS, compact
from analysis.draw.scaling import CONDITIONS, UNSHAPED, Condition
from harness.compare.colours import VariantStyle, in_order, styles_of
from harness.compare.folder import variants_in
from harness.compare.style import MarkdownText, Picture, legend_below, line, picture, plot_style
from harness.errors import UserError
from harness.measure.summary import RunSummary
from harness.tracking.results import baseline_of, target_of

PREFIX = "map-"
"""Prefix of the names of the map's tables."""
BASELINE = "data_parallel"
WORTH = 4.0
"""Speed-up, or slow-down, at the ends of the map's colour scale."""


@dataclass(frozen=True)
class Place:
    """The variants on one link with one number of classes."""

    condition: Condition
    lost: float
    """Fraction of its step that the baseline loses to the link."""
    seconds: Mapping[str, float]
    """Seconds to the target by variant; inf if the variant does not reach it."""
    late: frozenset[str]
    """Variants that apply exchanged results in a later window."""

    @property
    def link(self) -> str:
        """The link's latency and jitter, as text."""
        latency, jitter = self.condition.latency, self.condition.jitter
        delay = f"{latency} one way" if latency else "no latency"
        return f"{delay}, jitter {jitter}" if jitter else delay

    def best(self, late: bool) -> str:
        """The variant that reaches the target first, among late or among synchronous ones."""
        among = [name for name in self.seconds if (name in self.late) == late]
        return min(among, key=lambda name: self.seconds[name])

    @property
    def faster(self) -> float:
        """Speed-up of the best late variant over the best synchronous one."""
        return self.seconds[self.best(late=False)] / self.seconds[self.best(late=True)]


def images_of(study: str) -> dict[str, float]:
    """Training images to the target of the study in this folder, by variant."""
    variants = variants_in(Path(study))
    target = target_of(baseline_of(variants), None)
    if target is None:
        raise UserError(
            f"the baseline of {study} learned nothing, so there is no target; give another study"
        )
    return images_to([run for each in variants for run in each.summaries], target.top1)


def images_to(summaries: Sequence[RunSummary], target: float) -> dict[str, float]:
    """Training images at the first evaluation that reaches the target, by variant; mean over seeds.

    inf for a variant with a run that misses the target.
    """
    found: dict[str, list[float]] = {}
    for run in summaries:
        reached = [each.images for each in run.evaluations if each.metrics["val/top1"] >= target]
        found.setdefault(run.name, []).append(float(min(reached, default=math.inf)))
    return {name: mean(images) for name, images in found.items()}


def places(tables: str | Path, images: Mapping[str, float]) -> list[Place]:
    """The places of all tables of the map, sorted by classes, kind of link and rate."""
    folder, found = Path(tables), []
    conditions = json.loads((folder / CONDITIONS).read_text(encoding="utf-8"))
    for name, values in conditions.items():
        if not name.startswith(PREFIX):
            continue
        table = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        rates = {each["variant"]: float(each["images_per_second"]) for each in table}
        drains = {each["variant"]: median(each["drains_ms"]) / 1e3 for each in table}
        found.append(
            Place(
                condition=Condition.model_validate(values),
                lost=1 - rates[BASELINE] / rates[CEILING],
                seconds={
                    name: images[name] / rate + drains[name]
                    for name, rate in rates.items()
                    if name in images
                },
                late=frozenset(each["variant"] for each in table if each["delay"]),
            )
        )
    return sorted(found, key=lambda each: (each.condition.classes, each.link, each.lost))


def leads(sweep: pd.DataFrame, cards: int) -> pd.DataFrame:
    """Ratio of images/s of the best late variant to the best synchronous one, in the sweep.

    It has a row per number of classes and a column per rate. Variants that do not fit into memory
    are left out; NaN if that leaves nothing to compare.
    """
    usable = sweep[(sweep["ranks"] == cards) & sweep["fits"] & (sweep["variant"] != CEILING)]
    late = usable["delay"] > 0
    keys = ["classes", "gbit_per_second"]
    best = [usable[each].groupby(keys)["images_per_second"].max() for each in (late, ~late)]
    return (best[0] / best[1]).unstack()


def draw(tables: str | Path, images: Mapping[str, float], sweep: pd.DataFrame) -> Picture:
    """Draws a panel for each number of classes and kind of link, and `leads` for cards below.

    A panel shows seconds to the target over the fraction of its step that data parallelism loses
    to the link.
    """
    found = places(tables, images)
    links = list(dict.fromkeys(each.link for each in found))
    classes = sorted({each.condition.classes for each in found})
    variants = styles_of(name for each in found for name in each.seconds)
    with plot_style():
        figure = picture(13, 3.6 * len(classes) + 3.4)
        ratios = (3.6 * len(classes), 3.4)
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
        grid = above.subplots(len(classes), len(links), sharey="row", squeeze=False)
        for row, count in zip(grid, classes, strict=True):
            for axes, link in zip(row, links, strict=True):
                here = [
                    each for each in found if (each.condition.classes, each.link) == (count, link)
                ]
                _panel(axes, here, variants)
                axes.set_title(f"{count:,} classes, {link}", fontsize=9)
            row[0].set_ylabel("seconds to the target")
        legend_below(above, list(grid.flat), columns=4)
        for axes, cards in zip(below.subplots(1, len(MAPS)), MAPS, strict=True):
            _draw_leads(axes, leads(sweep, cards))
            axes.set_title(f"{cards:,} cards, simulated: images/s, late / on time", fontsize=9)
    return figure


def _draw_leads(axes: Axes, found: pd.DataFrame) -> None:
    axes.imshow(found, cmap="PuOr_r", norm=LogNorm(1 / WORTH, WORTH), origin="lower", aspect="auto")
    for (y, x), lead in np.ndenumerate(found.to_numpy()):
        axes.text(x, y, f"{lead:.2f}x", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(found.columns)), [compact(float(each)) for each in found.columns])
    axes.set_yticks(range(len(found.index)), [compact(float(each)) for each in found.index])
    axes.set_xlabel(LABELS["gbit_per_second"])
    axes.set_ylabel(LABELS["classes"])
    axes.grid(visible=False)


def describe(tables: str | Path, images: Mapping[str, float]) -> MarkdownText:
    """A Markdown table of the best late variant against the best synchronous one on each link."""
    lines = [
        "| classes | link | data_parallel loses | best late | best synchronous | speed-up |",
        "|--:|:--|--:|:--|:--|--:|",
    ]
    for each in places(tables, images):
        late, waits = each.best(late=True), each.best(late=False)
        lines.append(
            f"| {each.condition.classes:,} | {_rate(each.condition)}, {each.link} | "
            f"{each.lost:.0%} | {late}, {each.seconds[late]:.1f} s | "
            f"{waits}, {each.seconds[waits]:.1f} s | {each.faster:.2f}x |"
        )
    return MarkdownText("\n".join(lines))


def _rate(condition: Condition) -> str:
    rate = condition.mbit_per_second
    return UNSHAPED if rate is None else f"{rate:g} Mbit/s"


def _panel(axes: Axes, found: Sequence[Place], variants: Mapping[str, VariantStyle]) -> None:
    # A step takes 1 / (1 - lost) times as long as without the link, so x is that slow-down.
    spots = [1 / (1 - each.lost) for each in found]
    for name in in_order(dict.fromkeys(name for each in found for name in each.seconds)):
        seconds = [each.seconds.get(name, math.nan) for each in found]
        axes.plot(spots, seconds, **line(variants[name]), label=name)
    axes.set_xlim(min(spots) / 1.4, max(spots) * 1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(spots, [f"{each.lost:.0%}" for each in found])
    axes.minorticks_off()
    axes.set_xlabel("share of its step that data_parallel loses")
