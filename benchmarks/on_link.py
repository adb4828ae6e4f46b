"""A study's trainings as they go on another link: accuracy as trained, time by the link's speeds.

What is learnt from an image does not depend on the link, because delays are counted in windows. So
a variant is trained once, and its training time on a link is images / (images/s), where the speed
comes from a table of `benchmarks.throughput` in which all variants took turns on that link.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from harness.measure.summary import RunSummary, Spread
from harness.study.results import Variant

HOW = (
    "Training time is images / (images/s). Speeds were measured on this link, in blocks of all "
    "variants in turn: each seed has rounds of its own. Trainings ran without a limit, which "
    "changes nothing that is learnt: delays are counted in windows. A late exchange is charged "
    "its delay in whole windows once, as the time until its last transfer has landed."
)


def on_link(variants: Sequence[Variant], table: Sequence[Mapping[str, Any]]) -> tuple[Variant, ...]:
    """The variants that `table` has, each run at the speed of its seed's rounds.

    `table`: rows of `benchmarks.throughput`, with `rates` by round. The same rounds stand for the
    same seed in every variant, so that ratios over seeds are of neighbours in time.
    """
    speeds = {row["variant"]: row for row in table}
    found = []
    for each in variants:
        if each.name in speeds:
            row, seeds = speeds[each.name], sorted(run.seed for run in each.summaries)
            runs = [
                _at(run, each, _share(row["rates"], seeds.index(run.seed), len(seeds)), row)
                for run in each.summaries
            ]
            found.append(replace(each, summaries=tuple(runs)))
    return tuple(found)


def _share(rates: Sequence[float], number: int, of: int) -> float:
    """The median of every `of`-th round, or of all where there are fewer rounds than seeds."""
    return median(rates[number::of] or rates)


def _at(run: RunSummary, variant: Variant, rate: float, row: Mapping[str, Any]) -> RunSummary:
    """The run with every time replaced; what ranks did with theirs is not known there."""
    step = run.images / run.windows / rate
    phases, measured = row["phases_ms"], sum(row["phases_ms"].values())
    drain = variant.config.exchange.delay * step
    ended = run.evaluations[-1].window
    evaluations = [
        each.model_copy(
            update={"train_seconds": each.images / rate + (drain if each.window == ended else 0)}
        )
        for each in run.evaluations
    ]
    return run.model_copy(
        update={
            "images_per_second": rate,
            "step_ms": _same(1e3 * step),
            "phases_ms": {
                name: _same(1e3 * step * value / measured) for name, value in phases.items()
            },
            "train_seconds": run.images / rate + drain,
            "drain_seconds": drain,
            "evaluations": tuple(evaluations),
            "per_rank": (),
        }
    )


def _same(value: float) -> Spread:
    return Spread(minimum=value, mean=value, maximum=value)
