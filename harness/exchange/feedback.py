"""Error feedback: what a lossy wire leaves out of one gradient is added to the next."""

from torch import Tensor

from harness.exchange.carried import agree
from harness.exchange.wire import Carrier, Sent, Wire


class Feedback:
    """A wire for gradients: lossless over time, because the sender keeps what was left out."""

    def __init__(self, wire: Wire, elements: int, like: Tensor) -> None:
        self._wire = wire
        self.unsent = None if wire.exact else like.new_zeros(elements)
        """What this rank has not sent yet, [elements], always finite. None if the wire is exact."""

    @property
    def memory(self) -> list[Tensor]:
        """What a launch changes for those that follow."""
        return [each for each in (self.unsent, self._wire.owed) if each is not None]

    def launch(self, part: Tensor, slot: int) -> Sent:
        """Starts averaging `part` [n] plus what earlier launches left out. Collective over the
        group."""
        if self.unsent is None:
            return self._wire.launch(part, slot)
        # With u unsent, g the part and Q(x) what the wire sends of x: send Q(u + g), keep u + g -
        # Q(u + g).
        self.unsent += part
        sent = self._wire.launch(self.unsent, slot)
        sent.add_own(self.unsent, -1.0)
        # NaN minus anything stays NaN: kept here, one bad gradient would spoil all that follow.
        self.unsent.nan_to_num_(0.0, 0.0, 0.0)
        return sent

    def agree(self, carrier: Carrier) -> None:
        """Makes each rank owe the mean of what all owe, including what the wire itself has kept.

        Nothing may be in flight. Collective over the carrier's ranks.
        """
        if self.unsent is not None:
            self._wire.settle(self.unsent)
            agree([self.unsent], carrier)
