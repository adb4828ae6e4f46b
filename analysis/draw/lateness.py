"""Where lateness pays: the best late variant against the best synchronous one.

Measured: a table for each link has images/s, and a study what each variant learns from an image.
Learning does not depend on the link, because delays are counted in windows, so both together are
the time to accuracy on that link (`benchmarks.on_link`). For another number of classes than the
study's, and for cards, where it is simulated, throughput alone is compared.
"""

import json
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator

from analysis.draw.scale import CEILINGS, LABELS, MAPS, compact, times
from analysis.draw.scaling import CONDITIONS, UNSHAPED, Condition
from benchmarks.on_link import Row, on_link
from harness.compare.colours import VariantStyle, in_order, styles_of
from harness.compare.folder import variants_in
from harness.compare.intervals import Interval, ratios
from harness.compare.ladder_text import ratio_text
from harness.compare.style import (
    MarkdownText,
    Picture,
    legend_below,
    line,
    picture,
    plot_style,
    thin,
)
from harness.compare.verdict import reached_in, seconds_by_seed
from harness.errors import UserError
from harness.tracking.results import Target, Variant, baseline_of, target_of

PREFIXES = "map-", "headline-"
"""Prefixes of the names of the map's tables; the headline's have more variants."""
BASELINE = "data_parallel"
IMAGES = 1000
"""Images whose time is compared where no training has the number of classes."""
Seconds = Mapping[int, float]
"""Seconds by seed or by round."""
WORTH = 4.0
"""Speed-up, or slow-down, at the ends of the map's colour scale."""


@dataclass(frozen=True)
class Study:
    """Trainings of one number of classes, from which time to accuracy is known."""

    variants: tuple[Variant, ...]
    target: Target

    @classmethod
    def read(cls, folder: str | Path) -> "Study":
        """The study in this folder. Raises UserError if its baseline learned nothing."""
        variants = variants_in(Path(folder))
        target = target_of(baseline_of(variants), None)
        if target is None:
            raise UserError(
                f"the baseline of {folder} learned nothing, so there is no target; give another "
                f"study"
            )
        return cls(variants, target)

    @property
    def classes(self) -> int:
        return self.variants[0].config.data.num_classes

    def seconds(self, table: Sequence[Row]) -> dict[str, Seconds]:
        """Seconds to the target on the table's link by variant, and by seed.

        Nothing for a variant of which a run misses the target or diverged.
        """
        return {
            each.name: (
                seconds_by_seed(each, self.target) if reached_in(each, self.target).always else {}
            )
            for each in on_link(self.variants, table)
        }


@dataclass(frozen=True)
class Place:
    """The variants on one link with one number of classes."""

    condition: Condition
    lost: float
    """Fraction of its step that the baseline loses to the link; 0 if it was measured as fast as the
    ceiling, or faster by chance."""
    seconds: Mapping[str, Seconds]
    """Seconds by variant: to the target, by seed, empty if a run of it misses the target or
    diverged; or for `IMAGES` images, by round, if no training has this number of classes."""
    late: frozenset[str]
    """Variants that apply exchanged results in a later window."""
    learned: bool
    """Whether the seconds are those to the target."""

    @property
    def link(self) -> str:
        """The link's latency and jitter, as text."""
        latency, jitter = self.condition.latency, self.condition.jitter
        delay = f"{latency} one way" if latency else "no latency"
        return f"{delay}, jitter {jitter}" if jitter else delay

    def best(self, late: bool) -> str:
        """The variant with the least mean time, among late or among synchronous ones."""
        among = [name for name in self.seconds if (name in self.late) == late]
        return min(among, key=self.mean_seconds)

    def mean_seconds(self, name: str) -> float:
        """The variant's mean time in seconds; infinite if it has none."""
        found = self.seconds[name]
        return mean(found.values()) if found else math.inf

    @property
    def speedup(self) -> Interval:
        """Speed-up of the best late variant over the best synchronous one, paired by seed; NaN if
        they have no seed in common, or one has no time."""
        waits, late = (self.seconds[self.best(late)] for late in (False, True))
        seeds = sorted(waits.keys() & late.keys())
        return ratios([waits[seed] for seed in seeds], [late[seed] for seed in seeds]).interval


def places(tables: str | Path, study: Study) -> list[Place]:
    """The places of all tables of the map, sorted by classes, kind of link and rate."""
    folder, found = Path(tables), []
    conditions = json.loads((folder / CONDITIONS).read_text(encoding="utf-8"))
    names = {each.name for each in study.variants}
    for name, values in conditions.items():
        file = folder / f"{name}.json"
        if not name.startswith(PREFIXES) or not file.exists():
            continue
        table = json.loads(file.read_text(encoding="utf-8"))
        rates = {each["variant"]: each["images_per_second"] for each in table}
        condition = Condition.model_validate(values)
        learned = condition.classes == study.classes
        seconds = study.seconds(table) if learned else _seconds_of_images(table, names)
        found.append(
            Place(
                condition=condition,
                lost=max(0.0, 1 - rates[BASELINE] / rates[CEILINGS[0]]),
                seconds=seconds,
                late=frozenset(each["variant"] for each in table if each["delay"]),
                learned=learned,
            )
        )
    return sorted(found, key=lambda each: (each.condition.classes, each.link, each.lost))


def _seconds_of_images(table: Sequence[Row], names: AbstractSet[str]) -> dict[str, Seconds]:
    """Seconds for `IMAGES` images by variant, and by round."""
    return {
        row["variant"]: {number: IMAGES / rate for number, rate in enumerate(row["rates"])}
        for row in table
        if row["variant"] in names
    }


def leads(sweep: pd.DataFrame, cards: int) -> pd.DataFrame:
    """Ratio of images/s of the best late variant to the best synchronous one, in the sweep.

    It has a row per number of classes and a column per rate. Variants that do not fit into memory
    are left out; NaN if that leaves nothing to compare.
    """
    whole = sweep[(sweep["ranks"] == cards) & (sweep["sampling"] == 1)]
    usable = whole[whole["fits"] & ~whole["variant"].isin(CEILINGS)]
    late = usable["delay"] > 0
    keys = ["classes", "gbit_per_second"]
    best = [usable[each].groupby(keys)["images_per_second"].max() for each in (late, ~late)]
    return (best[0] / best[1]).unstack()


def draw(tables: str | Path, study: Study, sweep: pd.DataFrame) -> Picture:
    """Draws a panel for each number of classes and kind of link, and `leads` for cards below.

    A panel shows seconds over the fraction of its step that data parallelism loses to the link, of
    the variants that were measured in all places with so many classes.
    """
    found = places(tables, study)
    links = list(dict.fromkeys(each.link for each in found))
    classes = sorted({each.condition.classes for each in found})
    variants = styles_of(name for each in found for name in each.seconds)
    with plot_style():
        figure = picture(13, 3.6 * len(classes) + 3.4)
        heights = (3.6 * len(classes), 3.4)
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        grid = above.subplots(len(classes), len(links), sharey="row", squeeze=False)
        for row, count in zip(grid, classes, strict=True):
            measured, there = [], [each for each in found if each.condition.classes == count]
            everywhere = set[str].intersection(*(set(each.seconds) for each in there))
            for axes, link in zip(row, links, strict=True):
                here = [each for each in there if each.link == link]
                axes.set_visible(bool(here))
                if here:
                    _panel(axes, here, {name: variants[name] for name in everywhere})
                    axes.set_title(f"{count:,} classes, {link}", fontsize=9)
                    measured.append((axes, here[0].learned))
            axes, learned = measured[0]
            axes.set_ylabel(f"seconds {_until(learned)}")
        label = "thin line: range over seeds or rounds"
        grid.flat[0].plot([], [], color="black", linewidth=1, label=label)
        legend_below(above, list(grid.flat), columns=4)
        for axes, cards in zip(below.subplots(1, len(MAPS)), MAPS, strict=True):
            _draw_leads(axes, leads(sweep, cards))
            axes.set_title(f"{cards:,} cards, simulated: images/s, late / on time", fontsize=9)
    return figure


def _until(learned: bool) -> str:
    return "to the target" if learned else f"for {IMAGES:,} images"


def _draw_leads(axes: Axes, found: pd.DataFrame) -> None:
    axes.imshow(found, cmap="PuOr_r", norm=LogNorm(1 / WORTH, WORTH), origin="lower", aspect="auto")
    for (y, x), lead in np.ndenumerate(found.to_numpy()):
        axes.text(x, y, times(lead), ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(found.columns)), [compact(float(each)) for each in found.columns])
    axes.set_yticks(range(len(found.index)), [compact(float(each)) for each in found.index])
    axes.set_xlabel(LABELS["gbit_per_second"])
    axes.set_ylabel(LABELS["classes"])
    axes.grid(visible=False)


def describe(tables: str | Path, study: Study) -> MarkdownText:
    """A Markdown table of the best late variant against the best synchronous one on each link."""
    lines = [
        "| classes | link | data_parallel loses | seconds | best late | best synchronous | "
        "speed-up (95% CI) |",
        "|--:|:--|--:|:--|:--|:--|:--|",
    ]
    for each in places(tables, study):
        late, waits = each.best(late=True), each.best(late=False)
        lines.append(
            f"| {each.condition.classes:,} | {_rate(each.condition)}, {each.link} | "
            f"{each.lost:.0%} | {_until(each.learned)} | {_timed(each, late)} | "
            f"{_timed(each, waits)} | {_ratio(each.speedup)} |"
        )
    return MarkdownText("\n".join(lines))


def _timed(place: Place, name: str) -> str:
    """The variant with its mean time; "-" if it has none."""
    seconds = place.mean_seconds(name)
    return f"{name}, {seconds:.1f}" if math.isfinite(seconds) else f"{name}, -"


def _ratio(speedup: Interval) -> str:
    return "-" if math.isnan(speedup.estimate) else ratio_text(speedup)


def _rate(condition: Condition) -> str:
    rate = condition.mbit_per_second
    return UNSHAPED if rate is None else f"{rate:g} Mbit/s"


def _panel(axes: Axes, found: Sequence[Place], variants: Mapping[str, VariantStyle]) -> None:
    # A step takes 1 / (1 - lost) times as long as without the link, so x is that slow-down.
    spots = [1 / (1 - each.lost) for each in found]
    for name in in_order(variants):
        style, runs = variants[name], [[*each.seconds[name].values()] for each in found]
        middles = [mean(each) if each else math.nan for each in runs]
        axes.plot(spots, middles, **line(style), label=name)
        timed = [(x, each) for x, each in zip(spots, runs, strict=True) if each]
        low, high = [min(each) for _, each in timed], [max(each) for _, each in timed]
        axes.vlines([x for x, _ in timed], low, high, **thin(style))
    axes.set_xlim(min(spots) / 1.4, max(spots) * 1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(spots, [f"{each.lost:.0%}" for each in found], rotation=60)
    axes.minorticks_off()
    axes.set_xlabel("share of its step that data_parallel loses")
