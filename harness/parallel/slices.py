"""Arithmetic of contiguous slices: which items belong to which of n owners."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slice:
    """Items start..stop-1 of a longer sequence."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a slice needs 0 <= start <= stop, got {self.start}..{self.stop}")

    @property
    def size(self) -> int:
        return self.stop - self.start


def slice_of(items: int, owners: int, owner: int) -> Slice:
    """The slice of one owner; the sizes of all owners differ by one at most."""
    if not 0 <= owner < owners:
        raise ValueError(f"owner {owner} is not one of {owners}")
    return Slice(items * owner // owners, items * (owner + 1) // owners)


def padded(items: int, owners: int) -> int:
    """The smallest multiple of `owners` that holds `items`, as collectives need equal chunks."""
    return -(-items // owners) * owners
