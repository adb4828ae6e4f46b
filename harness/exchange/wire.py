"""What crosses between nodes: a wire takes parts and gives back their mean over a group.

A lossy wire says what it sent, as the others read it: what is missing stays with the sender, who
adds it to the next part (error feedback), so nothing is ever lost, only late.

What is not finite is no value that could be made good later: every wire shows it to all ranks in
the mean that it belongs to, and forgets it.
"""

from typing import Protocol

from torch import Tensor


class Launched(Protocol):
    """A collective under way."""

    def wait(self) -> object: ...


class Carrier(Protocol):
    """A group of ranks that sums."""

    size: int
    index: int

    def launch_sum(self, buffer: Tensor, name: str) -> Launched:
        """Starts summing `buffer` in place over the group. Collective over it."""


class Sent(Protocol):
    """A part under way. Either `mean` or `correction` is called, once."""

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

    def forget(self) -> None:
        """Puts the scales that ranks agreed on back to where they start. With nothing under way, by
        all ranks of the group alike."""


class Feedback:
    """A wire that gradients can go over: what it did not send of one is added to the next."""

    def __init__(self, wire: Wire, elements: int, like: Tensor) -> None:
        self._wire = wire
        self.unsent = None if wire.exact else like.new_zeros(elements)
        """What this rank still owes, [elements], always finite; None: the wire sends everything."""

    def launch(self, part: Tensor, slot: int) -> Sent:
        """Starts averaging `part` [n] and what earlier ones left. Collective over the group."""
        if self.unsent is None:
            return self._wire.launch(part, slot)
        self.unsent += part
        sent = self._wire.launch(self.unsent, slot)
        sent.add_own(self.unsent, -1.0)
        # NaN less anything stays NaN: kept here, one bad message would spoil all that follow.
        self.unsent.nan_to_num_(0.0, 0.0, 0.0)
        return sent

    def forget(self) -> None:
        """The scales of the wire, and not what is owed; see `Wire.forget`."""
        self._wire.forget()
