"""Converts a study's trainings to another link: accuracy as trained, times from the link's speeds.

What is learned from an image does not depend on the link, because delays are counted in windows. So
a variant is trained once, and its training time on a link is images / (images/s). The speed comes
from a table of `benchmarks.throughput` in which all variants took turns on that link.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from benchmarks.throughput import mean_of
from harness.config import Config, load
from harness.errors import UserError
from harness.measure.summary import RunSummary, Spread
from harness.tracking.results import Variant

Row = Mapping[str, Any]
"""A row of `benchmarks.throughput`, with `rates`, `drains_ms` and `phases_ms_by_block` by round."""

HOW = (
    "Training time is images / (images/s). Speeds were measured on this link, in blocks in which "
    "all variants took turns; each seed uses other rounds. Trainings ran without a limit on the "
    "link, which does not change what is learned, because delays are counted in windows. Bytes are "
    "those of the route that is faster on this link. Reaching the target is charged one drain as "
    "timed on this link: all that is in flight lands, and nodes that differ agree. First windows "
    "that are synchronous, or that send whole gradients, are charged at the speed of a variant "
    "that always does so."
)


def on_link(variants: Sequence[Variant], table: Sequence[Row]) -> tuple[Variant, ...]:
    """The variants that are in `table`, with each run timed by the speed of its seed's rounds.

    A seed has the same rounds in every variant, so that paired ratios compare neighbours in time.
    Raises UserError if there are fewer rounds than seeds.
    """
    rows = {row["variant"]: row for row in table}
    # Of the whole study, so that a missing seed does not move a variant's others to other rounds.
    seeds = sorted({run.seed for each in variants for run in each.summaries})
    found = []
    for each in variants:
        if each.name in rows:
            early = early_speed(each.config)
            runs = []
            for run in each.summaries:
                turn = seeds.index(run.seed), len(seeds)
                speed = _share(rows[each.name]["rates"], *turn)
                first = _share(rows[early]["rates"], *turn) if early else speed
                drain = _share(rows[each.name]["drains_ms"], *turn) / 1e3
                phases = _phases(rows[each.name], *turn)
                crossing = rows[each.name]["cross_node_mb"]
                speeds = _Speeds(each.config, speed, first, drain, phases, crossing)
                runs.append(speeds.timed(run))
            found.append(replace(each, summaries=tuple(runs)))
    return tuple(found)


def early_speed(config: Config) -> str | None:
    """Name of the row with the speed of the first `synchronous_windows`; None without such."""
    if not config.exchange.synchronous_windows:
        return None
    return "ddp" if config.exchange.is_torchs else f"{config.name}_on_time"


def with_early(experiments: Sequence[str]) -> tuple[str, ...]:
    """The experiments, and for late ones that start synchronously a twin without their delay."""
    late = {path: config for path in experiments if (config := load(path)).exchange.delay}
    twins = [
        f"{path},exchange.delay=0,name={early}"
        for path, config in late.items()
        if (early := early_speed(config))
    ]
    return *experiments, *twins


def _share(rates: Sequence[float], number: int, of: int) -> float:
    """The median of every `of`-th round."""
    if len(rates) < of:
        raise UserError(f"the table has {len(rates)} rounds for {of} seeds; measure more rounds")
    return median(rates[number::of])


def _phases(row: Row, number: int, of: int) -> Mapping[str, float]:
    """Milliseconds by phase, as the mean of every `of`-th round."""
    return mean_of(row["phases_ms_by_block"][number::of])


@dataclass(frozen=True)
class _Speeds:
    """A variant's images/s in the run of one seed."""

    config: Config
    steady: float
    """Speed after the first `synchronous_windows`."""
    early: float
    """Speed during the first `synchronous_windows`."""
    drain: float
    """Seconds of a drain."""
    phases_ms: Mapping[str, float]
    """Time in each phase of a window."""
    crossing: float
    """Megabytes that a node sends to others in a window."""

    def timed(self, run: RunSummary) -> RunSummary:
        """The run with every time replaced; times per rank are unknown on the link and removed."""
        window = run.images_per_step
        first = self.config.exchange.synchronous_windows * window

        # seconds(n) = min(n, f) / early + max(0, n - f) / steady, where f images come first.
        def seconds(images: float) -> float:
            return min(images, first) / self.early + max(0.0, images - first) / self.steady

        step = window / self.steady
        ended = run.evaluations[-1].window
        measured = sum(self.phases_ms.values())
        evaluations = [
            each.model_copy(
                update={
                    "train_seconds": seconds(each.images)
                    + (self.drain if each.window == ended else 0),
                    "drained": False,
                }
            )
            for each in run.evaluations
        ]
        return run.model_copy(
            update={
                "images_per_second": self.steady,
                "step_ms": _same(1e3 * step),
                "cross_node_mb_per_step": self.crossing,
                "phases_ms": {
                    name: _same(1e3 * step * value / measured)
                    for name, value in self.phases_ms.items()
                },
                "train_seconds": seconds(run.images) + self.drain,
                "train_seconds_known": True,
                "drain_seconds": self.drain,
                "evaluations": tuple(evaluations),
                "per_rank": (),
            }
        )


def _same(value: float) -> Spread:
    return Spread(minimum=value, mean=value, maximum=value)
