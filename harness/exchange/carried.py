"""State that an exchange carries between windows beside the values, and its agreement over
ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from harness.exchange.flat import Flat
from harness.exchange.wire import Carrier


@dataclass(frozen=True)
class Strip:
    """State of an optimizer or a wire for a range of elements of a flat tensor."""

    key: str
    """Its name in a checkpoint, before the name of each parameter."""
    flat: Flat
    start: int
    stop: int
    """The elements start .. stop - 1."""
    tensor: Tensor
    """One number per element, [stop - start], or a single one for all, []."""


def agree(tensors: Sequence[Tensor], carrier: Carrier) -> None:
    """Replaces each tensor by its mean over the ranks. Collective over the carrier's ranks.

    The total owed is unchanged: u_r of rank r becomes mean(u), and N mean(u) = sum(u).
    """
    for number, tensor in enumerate(tensors):
        carrier.launch_sum(tensor, f"agree.{number}").wait()
        tensor /= carrier.size
