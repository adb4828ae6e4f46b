"""What goes on from window to window beside the values, and how ranks come to hold the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from harness.exchange.flat import Flat
from harness.exchange.wire import Carrier


@dataclass(frozen=True)
class Strip:
    """A state kept beside some elements of a flat tensor: what an optimizer or a wire remembers."""

    key: str
    """Names it in a checkpoint, before the name of each parameter."""
    flat: Flat
    start: int
    stop: int
    """Elements start .. stop - 1."""
    tensor: Tensor
    """A number for each of them, [stop - start], or one for all, []."""


def agree(tensors: Sequence[Tensor], carrier: Carrier) -> None:
    """Makes each tensor its mean over the ranks, in place. Collective over the carrier's ranks.

    What all owe together stays the same: u of rank r becomes mean(u), and N mean(u) = sum(u).
    """
    for number, tensor in enumerate(tensors):
        carrier.launch_sum(tensor, f"agree.{number}").wait()
        tensor /= carrier.size
