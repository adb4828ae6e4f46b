"""Wires between nodes: a wire takes parts and returns their mean over a group.

A lossy wire reports what it sent, as the receivers read it. The sender keeps the difference and
adds it to the next part (error feedback), so nothing is lost, only late.

A value that is not finite cannot be corrected later: every wire shows it to all ranks in the mean
that it belongs to, and then forgets it.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Launched(Protocol):
    """A collective in flight."""

    def wait(self) -> object: ...


class Landing(Protocol):
    """A collective in flight that returns a tensor."""

    def wait(self) -> Tensor: ...


class Carrier(Protocol):
    """A group of ranks that communicates a wire's parts."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    @property
    def index(self) -> int:
        """This rank's number in the group."""

    def launch_sum(self, buffer: Tensor, name: str) -> Launched:
        """Starts summing `buffer` in place over the group. Collective over the group."""

    def launch_gather(self, row: Tensor, name: str) -> Landing:
        """Starts gathering each rank's row [1, b] into rows in the order of ranks, [size, b].

        `row` must not change until the result has landed. Collective over the group.
        """

    def launch_reduce(self, rows: Tensor, reduce: Callable[[Tensor], Tensor], name: str) -> Landing:
        """Starts reducing rows [size, b], one for each rank, and gathering the results, [size, b].

        Each rank receives the row that every rank has for it, applies `reduce` from [size, b] to
        [b], and the results are gathered on all ranks. `rows` must not change until the result has
        landed. `reduce` runs beside training, in the order of these calls. Collective over the
        group.
        """


class Sent(Protocol):
    """A part in flight. Call either `mean` or `correction`, once.

    `add_own` and `correction` need a wire that is lossy or was made with `keeps_own`.
    """

    def add_own(self, target: Tensor, factor: float) -> None:
        """Adds `factor` times what this rank sent, as the receivers read it. Does not wait."""

    def mean(self, into: Tensor) -> None:
        """Waits, and writes the mean of what all ranks sent.

        If a value of any rank was not finite, the mean is not finite on all ranks; on a wire whose
        values share scales, this affects all values of the block.
        """

    def correction(self, into: Tensor) -> None:
        """Waits, and writes the mean of what all ranks sent minus what this rank sent."""


class Wire(Protocol):
    """Averages parts of one length. All ranks of the group use the same slots in the same order."""

    exact: bool
    """True if the wire sends exactly what it was given."""

    @property
    def owed(self) -> Tensor | None:
        """What this rank owes to later means, because it rounded one; None if it never rounds
        means. Nothing may be in flight when it is read or changed."""

    def launch(self, part: Tensor, slot: int) -> Sent:
        """Starts averaging `part` [n], which is left unchanged. A slot holds one part in flight.

        Collective over the group.
        """

    def settle(self, into: Tensor) -> None:
        """Adds to `into` [n] the error that this rank still owes to means, times the number of
        ranks, and forgets it: the mean of `into` over ranks then grows by what the means lack.
        Nothing may be in flight, and all ranks of the group must call it."""
