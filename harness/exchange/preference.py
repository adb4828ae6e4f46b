"""Which of several exchanges is preferred: of those that are fast enough, the one that costs the
least accuracy. The planner and `exchange.kind=auto` judge by the same rules."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from harness.exchange.codecs import COMPRESSIONS
from harness.exchange.kinds import PLANNED, KindName

MIN_LATE_SPEEDUP = 1.1
"""Speed-up over the fastest that waits with the same K from which a late one pays: late gradients
need 8 % more images to the target (19.2 k against 17.7 k over int8, analysis/sweep)."""
FAST_ENOUGH = 0.9
"""Fraction of the highest images/s that is fast enough: the rest costs more accuracy than time."""


class Option(Protocol):
    """An exchange that may be chosen."""

    @property
    def passes(self) -> int:
        """K."""

    @property
    def waits(self) -> bool:
        """Whether a window waits for its own exchange."""

    @property
    def accuracy_cost(self) -> tuple[int, ...]:
        """See `accuracy_cost`."""


AnOption = TypeVar("AnOption", bound=Option)


def preferred(options: Sequence[AnOption], rate: Callable[[AnOption], float]) -> AnOption:
    """The one that costs the least accuracy of those that qualify and are fast enough; of equals,
    the fastest. `rate`: images per second, or anything in proportion to them."""
    able = qualified(options, rate)
    enough = FAST_ENOUGH * max(map(rate, able))
    fast = [each for each in able if rate(each) >= enough]
    return min(fast, key=lambda each: (each.accuracy_cost, -rate(each)))


def qualified(options: Sequence[AnOption], rate: Callable[[AnOption], float]) -> list[AnOption]:
    """The options without late ones that do not pay compared with those that wait with the same
    K."""

    def pays(late: AnOption) -> bool:
        waiting = [rate(each) for each in options if each.waits and each.passes == late.passes]
        return not waiting or rate(late) >= MIN_LATE_SPEEDUP * max(waiting)

    return [each for each in options if each.waits or pays(each)]


def accuracy_cost(
    passes: int, pieces: int, compression: str, kind: KindName
) -> tuple[int, int, int, int]:
    """The expected cost in accuracy, as a key that sorts the least costly first.

    The worst is rarer steps, then parameters averaged more rarely, in pieces, then staleness, then
    fewer bits. In analysis/sweep, gradients in signs that are waited for need 5 % more images to
    the target than in int8 and end as high; late ones in int8 need 8 % more and end 0.3 points
    lower.
    """
    return passes, pieces, PLANNED.index(kind), COMPRESSIONS.index(compression)
