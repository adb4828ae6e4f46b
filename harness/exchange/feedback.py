"""Error feedback: what a lossy wire did not send of one gradient is added to the next."""

from torch import Tensor

from harness.exchange.carried import agree
from harness.exchange.wire import Carrier, Sent, Wire


class Feedback:
    """A wire that gradients can go over."""

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

    def agree(self, carrier: Carrier) -> None:
        """Each rank owes the mean of what all owe, and of what the wire has kept.

        With nothing under way. Collective over the carrier's ranks.
        """
        if self.unsent is not None:
            self._wire.settle(self.unsent)
            agree([self.unsent], carrier)
