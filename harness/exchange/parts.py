"""The part of the model that one rank exchanges: its chunk of the shared parameters and its slice.

The ranks of a node own disjoint parts that make up the whole model. A rank steps its part alone,
and averages it only with the same part on the other nodes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.exchange.carried import Strip
from harness.exchange.compression import WireParts, make_wire
from harness.exchange.flat import Flat, in_blocks
from harness.exchange.wire import Carrier, Wire
from harness.parallel.group import Group
from harness.parallel.slices import Slice, slice_of


class Chunk:
    """A rank's chunk of its node's shared parameters: gradients are summed into it, stepped values
    sent from it."""

    def __init__(self, shared: Flat, node: Group) -> None:
        self._shared = shared
        self._node = node
        own = slice(shared.owned.start, shared.owned.stop)
        self._values, self._grads = shared.values[own], shared.grads[own]
        self.device = shared.values.device

    def average_gradients(self) -> None:
        """Averages the chunk's gradients over the node. Collective over the node."""
        total = self._node.launch_reduce_scatter(self._shared.grads).wait()
        torch.div(total, self._node.size, out=self._grads)

    def spread_values(self) -> None:
        """Sends the chunk's values to all ranks of the node. Collective over the node."""
        self._node.launch_all_gather(self._values, self._shared.values).wait()


@dataclass(frozen=True)
class Cut:
    """One of several equal pieces of a rank's chunk, of its slice, or of both."""

    number: int = 0
    pieces: int = 1
    chunk: bool = True
    """Whether it has elements of the chunk."""
    slice: bool = True
    """Whether it has elements of the slice."""

    def of_chunk(self, elements: int) -> Slice:
        """Its elements of a chunk."""
        return slice_of(elements if self.chunk else 0, self.pieces, self.number)

    def of_slice(self, elements: int) -> Slice:
        """Its elements of a slice."""
        return slice_of(elements if self.slice else 0, self.pieces, self.number)


WHOLE = Cut()
"""All of the chunk and of the slice."""


class Part:
    """A rank's chunk and then its slice, as one tensor, for gradients and values alike.

    With a `cut` it is a piece of them: a piece of the chunk, then one of the slice. A slice without
    replicas (`slice_crosses` false) comes after the `sent` elements that cross, and is not sent.
    """

    def __init__(
        self,
        shared: Flat,
        sliced: Flat,
        slice_crosses: bool,
        peers: Carrier,
        cut: Cut = WHOLE,
    ) -> None:
        chunk = cut.of_chunk(shared.owned.size)
        own = cut.of_slice(len(sliced.values))
        of_shared = slice(shared.owned.start + chunk.start, shared.owned.start + chunk.stop)
        of_sliced = slice(own.start, own.stop)
        self._flats = (shared, of_shared.start), (sliced, of_sliced.start)
        self._values = shared.values[of_shared], sliced.values[of_sliced]
        self._grads = shared.grads[of_shared], sliced.grads[of_sliced]
        self._sizes = chunk.size, own.size
        self.peers = peers
        self.pieces = cut.pieces
        """Number of pieces of which this is one, so that it is sent in every so many'th window."""
        self.copies = peers.size
        """Number of ranks that hold the same elements of what crosses."""
        self.elements = chunk.size + own.size
        self.sent = self.elements if slice_crosses else chunk.size

    def wire(self, compression: str, slots: int, name: str, keeps_own: bool) -> Wire:
        """To the same part on the other nodes; see `make_wire`."""
        parts = WireParts(self.sent, self._values[0], slots)
        return make_wire(compression, parts, self.peers, name, keeps_own)

    def strips(self, key: str, tensor: Tensor) -> list[Strip]:
        """A state of this part's elements, [elements], or of those that cross, [sent], as
        strips."""
        sizes = self._sizes[0], len(tensor) - self._sizes[0]
        return [
            Strip(key, flat, start, start + len(piece), piece)
            for (flat, start), piece in zip(self._flats, tensor.split(sizes), strict=True)
        ]

    def take_gradients(self, out: Tensor) -> None:
        """Writes the gradients to `out`, [elements]."""
        torch.cat(self._grads, out=out)

    def put_gradients(self, gradients: Tensor) -> None:
        """Replaces the gradients by `gradients`, [elements]."""
        for own, new in zip(self._grads, gradients.split(self._sizes), strict=True):
            own.copy_(new)

    def clear_gradients(self) -> None:
        """Sets the gradients to zero, as rows that rest need them before a step."""
        for own in self._grads:
            own.zero_()

    def values(self) -> Tensor:
        """A copy of the values, [elements]."""
        return torch.cat(self._values)

    def average(self, name: str) -> Tensor:
        """The mean of the values over nodes, [elements]. Collective over the part's ranks."""
        return self.average_of(self.values(), name)

    def average_of(self, values: Tensor, name: str) -> Tensor:
        """Averages `values`, [elements], over nodes, in place. Collective over the part's ranks."""
        self.peers.launch_sum(values[: self.sent], name).wait()
        values[: self.sent] /= self.peers.size
        return values

    def mean_of(self, values: Tensor, name: str) -> list[Tensor]:
        """The mean of `values`, [elements], over nodes, as two tensors in the memory of the
        gradients.

        That memory is free between windows; clear it afterwards. Collective over the part's ranks.
        """
        self.put_gradients(values)
        crossing = self._grads if self.sent == self.elements else self._grads[:1]
        for number, grad in enumerate(crossing):
            if grad.numel():
                self.peers.launch_sum(grad, f"{name}.{number}").wait()
                grad /= self.peers.size
        return list(self._grads)

    def squares(self, own: Tensor, mean: Sequence[Tensor]) -> Tensor:
        """`squares_of` this rank's values and their mean as `mean_of` returns it."""
        pieces = zip(own.split(self._sizes), mean, strict=True)
        return torch.stack([squares_of(*piece) for piece in pieces]).sum(0)

    def movement(self, since: Tensor, out: Tensor) -> None:
        """Writes the values less those `since`, [elements]."""
        before, moved = since.split(self._sizes), out.split(self._sizes)
        for own, start, difference in zip(self._values, before, moved, strict=True):
            torch.sub(own, start, out=difference)

    def add(self, change: Tensor) -> None:
        """Adds [elements] to the values."""
        for own, added in zip(self._values, change.split(self._sizes), strict=True):
            own += added

    def put(self, values: Tensor) -> None:
        """Replaces the values by `values`, [elements]."""
        self.take(values.split(self._sizes))

    def take(self, pieces: Sequence[Tensor]) -> None:
        """Replaces the values by two tensors: chunk and slice."""
        for own, new in zip(self._values, pieces, strict=True):
            own.copy_(new)


@contextmanager
def mean_values(parts: Sequence[Part], chunk: Chunk) -> Iterator[Tensor]:
    """Inside the block all nodes hold the mean of the parts' values; afterwards their own again.

    Yields sums over this rank's parts: (own - mean)^2 and mean^2, [2]. Collective over the world,
    on entry and on exit.
    """
    # Kept in host memory: a card that training fills has no room for it.
    own = [part.values().cpu() for part in parts]
    squares = torch.zeros(2, dtype=torch.float64, device=chunk.device)
    for number, (part, values) in enumerate(zip(parts, own, strict=True)):
        mean = part.mean_of(values, f"mean.{number}")
        squares += part.squares(values, mean)
        part.take(mean)
    chunk.spread_values()
    yield squares
    for part, values in zip(parts, own, strict=True):
        part.put(values)
        part.clear_gradients()
    chunk.spread_values()


def squares_of(own: Tensor, mean: Tensor) -> Tensor:
    """Sums of (own - mean)^2 and of mean^2, [2], float64."""
    total = mean.new_zeros(2, dtype=torch.float64)
    # Block by block: there may be no room for a third copy of the part.
    for a, b in in_blocks(own, mean):
        apart = a.to(b.device) - b
        total += torch.stack((apart.square().sum(), b.square().sum())).double()
    return total


def divergence_of(parts: Sequence[Part]) -> Callable[[], Tensor]:
    """Snapshots the parts' values. The returned function computes the squares that `mean_values`
    would have yielded for the snapshot. It may be called once, and is collective over the parts'
    ranks."""
    kept = [part.values() for part in parts]

    def squares() -> Tensor:
        found = kept[0].new_zeros(2, dtype=torch.float64)
        for number, part in enumerate(parts):
            own = kept.pop(0)  # frees the memory: this may be called only once
            found += part.squares(own, part.mean_of(own, f"apart.{number}"))
            part.clear_gradients()
        return found

    return squares
