"""What crosses between nodes: a wire takes parts and gives back their mean over a group.

A lossy wire tells what it sent, as the others read it: what is missing stays with the sender, who
adds it to the next part (error feedback), so nothing is ever lost, only late.

What is not finite is no value that could be made good later: every wire shows it to all ranks in
the mean that it belongs to, and forgets it.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Launched(Protocol):
    """A collective under way."""

    def wait(self) -> object: ...


class Landing(Protocol):
    """A collective under way, and what it gives."""

    def wait(self) -> Tensor: ...


class Carrier(Protocol):
    """A group of ranks that adds up what they send."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    @property
    def index(self) -> int:
        """This rank's place among them."""

    def launch_sum(self, buffer: Tensor, name: str) -> Launched:
        """Starts summing `buffer` in place over the group. Collective over it."""

    def launch_gather(self, row: Tensor, name: str) -> Landing:
        """Starts [1, b] of each rank -> those of all, in their order, [size, b].

        `row` must rest until it has landed. Collective over the group.
        """

    def launch_reduce(self, rows: Tensor, reduce: Callable[[Tensor], Tensor], name: str) -> Landing:
        """Starts [size, b], a row for each rank -> what every rank makes of the rows that all have
        for it, `reduce` from [size, b] to [b], together on all, [size, b].

        `rows` must rest until it has landed; `reduce` runs beside training, in the order of these
        calls. Collective over the group.
        """


class Sent(Protocol):
    """A part under way. Either `mean` or `correction` is called, once.

    `add_own` and `correction` need a wire that is lossy or was made with `keeps_own`.
    """

    def add_own(self, target: Tensor, factor: float) -> None:
        """Adds `factor` times what this rank sent, as the others read it. Does not wait."""

    def mean(self, into: Tensor) -> None:
        """Waits, and writes the mean of what all sent.

        It is not finite, on every rank, where a value of any rank was not; a wire whose values
        share a scale shows it in all of these.
        """

    def correction(self, into: Tensor) -> None:
        """Waits, and writes the mean of what all sent less what this rank sent."""


class Wire(Protocol):
    """Averages parts of one length. All ranks of the group use the same slots in turn."""

    exact: bool
    """What is sent is what was given."""

    def launch(self, part: Tensor, slot: int) -> Sent:
        """Starts averaging `part` [n], which stays as it is. A slot may be under way once.

        Collective over the group.
        """

    def settle(self, into: Tensor) -> None:
        """Adds to [n] what this rank has still to add to means, times the number of ranks, and
        forgets it: the mean of what all have in `into` grows by what all means lack. With nothing
        under way, by all ranks of the group alike."""
