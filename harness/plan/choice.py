"""Chooses among ways of training: the recommended one, its rivals, and the few worth showing."""

from collections.abc import Sequence

from harness.exchange.preference import preferred
from harness.plan.ways import Way

SHOWN = 2
"""Number of ways of each layout and exchange in a short list."""


def recommended(ways: Sequence[Way]) -> Way | None:
    """The preferred one of the feasible ways; None if none is feasible."""
    feasible = [way for way in ways if way.feasible]
    return preferred(feasible, lambda way: way.rate) if feasible else None


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
