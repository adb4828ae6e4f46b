"""Whether all ranks of a group launch the same collectives in the same order, which they must."""

import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Gather = Callable[[Any, str], list[Any]]
"""Gathers an object of every rank on all of them, under a name."""

SHOWN_RANKS = 8
"""Ranks of a group that a message lists."""


@dataclass
class _Sequence:
    """The collectives that this rank has launched in one group."""

    ranks: tuple[int, ...]
    agreed: int = 0
    """Number of the first ones, of which it is known that they were the same on all ranks."""
    entries: list[str] = field(default_factory=list)
    """Operation, type and shape of those after them."""
    hashes: list[int] = field(default_factory=list)
    """The running hash after each entry."""
    before: int = 0
    """The running hash before the first entry."""

    def add(self, entry: str) -> None:
        self.hashes.append(
            zlib.crc32(entry.encode(), self.hashes[-1] if self.hashes else self.before)
        )
        self.entries.append(entry)

    def settle(self, count: int) -> None:
        """Forgets the first entries, which were the same everywhere."""
        if count:
            self.before = self.hashes[count - 1]
            self.agreed += count
            del self.entries[:count], self.hashes[:count]


class Order:
    """Remembers what this rank launches, to be compared over all ranks now and then."""

    def __init__(self, show: Callable[[str], None] = lambda text: None) -> None:
        """`show` is told of each collective, so that others see the last one if it never ends."""
        self._show = show
        self._adding = threading.Lock()
        self._sequences: dict[str, _Sequence] = {}

    def add(self, operation: str, group: str, ranks: Sequence[int], tensor: Tensor) -> None:
        """Adds a collective. `group` is the same on all of its ranks, and no other group's."""
        shape = "x".join(map(str, tensor.shape))
        entry = f"{operation} of {str(tensor.dtype).removeprefix('torch.')}[{shape}]"
        with self._adding:
            sequence = self._sequences.setdefault(group, _Sequence(tuple(ranks)))
            sequence.add(entry)
            number = sequence.agreed + len(sequence.entries)
        self._show(f"{number}: {entry} over {_ranks(ranks)}")

    def difference(self, gather: Gather) -> str:
        """The first rank and collective that differ since the last call, in one line; "" if none
        do. Collective over the world."""
        own = {group: list(each.hashes) for group, each in self._copy().items()}
        every = gather(own, "hashes of collectives")
        odd: dict[str, str] = {}
        for group, sequence in self._copy().items():
            found = [every[rank].get(group, []) for rank in sequence.ranks]
            # A thread beside training may be ahead of the same one on another rank.
            common = min(map(len, found))
            place = _first_difference([hashes[:common] for hashes in found])
            if place is None:
                sequence.settle(common)
            else:
                odd[group] = sequence.entries[place]
        return _told(gather(odd, "differing collectives"))

    def _copy(self) -> dict[str, _Sequence]:
        with self._adding:
            return dict(self._sequences)


def _first_difference(hashes: Sequence[Sequence[int]]) -> int | None:
    columns = enumerate(zip(*hashes, strict=True))
    return next((place for place, column in columns if len(set(column)) > 1), None)


def _told(every: Sequence[dict[str, str]]) -> str:
    """The line about the first group in which ranks differ, given what each has launched there."""
    groups = sorted({group for odd in every for group in odd})
    if not groups:
        return ""
    entries = {rank: odd[groups[0]] for rank, odd in enumerate(every) if groups[0] in odd}
    usual = Counter(entries.values()).most_common(1)[0][0]
    odd = min(rank for rank, entry in entries.items() if entry != usual)
    example = min(rank for rank, entry in entries.items() if entry == usual)
    return (
        f"ranks launch different collectives: rank {odd} launched {entries[odd]}, where rank "
        f"{example} launched {usual}; both in the group of {_ranks(sorted(entries))}"
    )


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:SHOWN_RANKS]))
    return f"ranks {shown}{', ...' if len(ranks) > SHOWN_RANKS else ''}"
