"""Chooses among ways of training: the recommended one, its rivals, and the few worth showing."""

from collections.abc import Sequence

from harness.exchange.preference import FAST_ENOUGH, MIN_LATE_SPEEDUP
from harness.plan.ways import Way

SHOWN = 2
"""Number of ways of each layout and exchange in a short list."""


def recommended(ways: Sequence[Way]) -> Way | None:
    """The way with the least accuracy cost among those that are fast enough; None if none fits.

    A late way qualifies only if it pays compared with every synchronous one with the same K.
    """
    feasible = [way for way in ways if way.feasible]
    if not feasible:
        return None
    enough = FAST_ENOUGH * max(way.rate for way in feasible)
    able = [way for way in feasible if way.rate >= enough and _pays(way, feasible)]
    least = min(way.accuracy_cost for way in able)
    return max((way for way in able if way.accuracy_cost == least), key=lambda way: way.rate)


def _pays(way: Way, feasible: Sequence[Way]) -> bool:
    if way.waits:
        return True
    waiting = fastest(feasible, way.passes, waits=True)
    return waiting is None or way.rate >= MIN_LATE_SPEEDUP * waiting.rate


def fastest(ways: Sequence[Way], passes: int, waits: bool) -> Way | None:
    """The fastest feasible way with this K that waits for its exchange, or that is late."""
    found = [way for way in ways if way.feasible and (way.passes, way.waits) == (passes, waits)]
    return max(found, key=lambda way: way.rate, default=None)


def short_list(ways: Sequence[Way]) -> list[Way]:
    """The SHOWN fastest of each layout and exchange, with the recommended way and all that it is
    compared with; in the order of `ways`."""
    groups: dict[tuple[str, str], list[Way]] = {}
    for way in ways:
        groups.setdefault((way.config.classifier.layout, way.config.exchange.kind), []).append(way)
    kept = [
        way
        for group in groups.values()
        for way in sorted(group, key=lambda way: way.rate, reverse=True)[:SHOWN]
    ]
    chosen = recommended(ways)
    if chosen is not None:
        compared = [fastest(ways, chosen.passes, waits) for waits in (True, False)]
        compared += [strongest_baseline(ways, passes) for passes in (chosen.passes, None)]
        kept += [chosen, *filter(None, compared)]
    return [way for way in ways if any(way is each for each in kept)]


def strongest_baseline(ways: Sequence[Way], passes: int | None = None) -> Way | None:
    """The fastest synchronous data-parallel way with this K, or with any if `passes` is None."""
    found = [
        way
        for way in ways
        if way.feasible
        and way.config.classifier.layout == "replicated"
        and way.waits
        and passes in (None, way.passes)
    ]
    return max(found, key=lambda way: way.rate, default=None)
