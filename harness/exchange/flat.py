"""Parameters as views of one flat tensor, so that one collective handles all of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from harness.parallel.slices import Slice, padded
from harness.parallel.topology import Layout

Span = tuple[nn.Parameter, int, int]
"""A parameter with its first element and the one behind its last."""

BLOCK = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Elements that are worked on at once where a copy of all has no room, by device: few enough to
stay in a processor's cache, and so many that a card computes longer than a kernel takes to
start."""


def in_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one length, cut alike into blocks; the largest of their devices' blocks counts."""
    block = max(BLOCK[each.device.type] for each in tensors)
    return zip(*(each.split(block) for each in tensors), strict=True)


def order_of(shapes: Sequence[torch.Size]) -> list[int]:
    """The numbers of a network's parameters in the order of the flat tensor."""
    backwards = range(len(shapes) - 1, -1, -1)
    return sorted(backwards, key=lambda number: len(shapes[number]) < 2)


def by_rows(start: int, stop: int, origin: int, width: int) -> list[tuple[int, int, int]]:
    """Cuts elements start..stop-1 of rows of `width` that begin at `origin` into a part of a row,
    whole rows, and a part of a row: start, stop and width of each that is not empty."""
    first = origin + -(-(start - origin) // width) * width if width else stop
    last = origin + (stop - origin) // width * width if width else stop
    if first > last:  # all within one row
        first = last = stop
    cuts = (start, first, first - start), (first, last, width), (last, stop, stop - last)
    return [(low, high, wide) for low, high, wide in cuts if low < high]


class Flat:
    """Values and gradients of some parameters, each in one tensor of `chunks` equal chunks.

    Parameters are in the order in which their gradients become ready: the last layer is first.
    Matrices and filters, which have weight decay, precede all biases and norms.
    The parameters become views: a step or a collective on the flat tensors changes them.
    `owner` is the number of the chunk that this rank steps; None steps all. `channels_last` is the
    memory format of filters: convolutions are up to 1.7 times faster with it on a CPU. Those of
    `by_row`, a classifier's whose classes are sampled, are the last and step row by row. Those of
    `loaded`, a backbone's that weights were read for, have a learning rate of their own.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        chunks: int,
        like: Tensor,
        owner: int | None = None,
        channels_last: bool = True,
        by_row: Sequence[nn.Parameter] = (),
        loaded: Sequence[nn.Parameter] = (),
    ) -> None:
        ordered = [parameters[number] for number in order_of([p.shape for p in parameters])]
        self._channels_last = channels_last
        self.elements = sum(parameter.numel() for parameter in ordered)
        self.values = like.new_zeros(padded(self.elements, chunks))
        self.grads = torch.zeros_like(self.values)
        stops = list(accumulate(parameter.numel() for parameter in ordered))
        self.spans: list[Span] = list(zip(ordered, [0, *stops], stops, strict=False))
        for span in self.spans:
            self._make_view(*span)
        self.owned = self._chunk(owner, len(self.values) // chunks)
        rows, slow = set(map(id, by_row)), set(map(id, loaded))
        whole = [span for span in self.spans if id(span[0]) not in rows]
        self.decayed, self.undecayed = self._both(s for s in whole if id(s[0]) not in slow)
        """The elements with weight decay that this rank steps as a whole, and those without: one
        parameter each, unless some of `loaded` lie between."""
        self.decayed_loaded, self.undecayed_loaded = self._both(
            s for s in whole if id(s[0]) in slow
        )
        sampled = [parameter for parameter in ordered if id(parameter) in rows]
        self.decayed_rows = [v for p in sampled if p.dim() >= 2 for v in self._rows_of(p)]
        """The elements that this rank steps row by row, as parameters [rows, width]: at most three
        for one that is sampled, because a chunk may begin and end within a row."""
        self.undecayed_rows = [v for p in sampled if p.dim() < 2 for v in self._rows_of(p)]

    def _chunk(self, owner: int | None, size: int) -> Slice:
        if owner is None:
            return Slice(0, len(self.values))
        return Slice(owner * size, (owner + 1) * size)

    def _make_view(self, parameter: nn.Parameter, start: int, stop: int) -> None:
        """Moves the values of a parameter here, and lets it view them and its gradient."""
        value = self.shaped(self.values[start:stop], parameter)
        parameter.data = value.copy_(parameter.detach())
        parameter.grad = self.shaped(self.grads[start:stop], parameter)

    @property
    def stepped(self) -> list[nn.Parameter]:
        """All views that an optimizer steps; together they are what this rank owns."""
        loaded = *self.decayed_loaded, *self.undecayed_loaded
        rows = *self.decayed_rows, *self.undecayed_rows
        return [*self.decayed, *self.undecayed, *loaded, *rows]

    def _both(self, spans: Iterable[Span]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What this rank owns of matrices and filters, and of all others; neighbours are one
        view."""
        runs: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        for parameter, start, stop in spans:
            of_kind = runs[parameter.dim() < 2]
            if of_kind and of_kind[-1][1] == start:
                start, _ = of_kind.pop()
            of_kind.append((start, stop))
        decayed, undecayed = ([self._owned_of(*run) for run in of_kind] for of_kind in runs)
        return decayed, undecayed

    def _rows_of(self, parameter: nn.Parameter) -> Iterator[nn.Parameter]:
        (span,) = ((start, stop) for each, start, stop in self.spans if each is parameter)
        start, stop = max(span[0], self.owned.start), min(span[1], self.owned.stop)
        for low, high, width in by_rows(start, stop, span[0], parameter[:1].numel()):
            view = nn.Parameter(self.values[low:high].view(-1, width))
            view.grad = self.grads[low:high].view(-1, width)
            yield view

    def _owned_of(self, start: int, stop: int) -> nn.Parameter:
        start, stop = max(start, self.owned.start), min(stop, self.owned.stop)
        stop = max(start, stop)
        view = nn.Parameter(self.values[start:stop])
        view.grad = self.grads[start:stop]
        return view

    def shaped(self, piece: Tensor, parameter: Tensor) -> Tensor:
        """A piece of a flat tensor with the shape of its parameter."""
        if parameter.dim() != 4 or not self._channels_last:
            return piece.view(parameter.shape)
        filters, channels, height, width = parameter.shape
        return piece.view(filters, height, width, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class RankParameters:
    """All parameters that a rank holds."""

    shared: Flat
    """The parameters that all ranks of a node hold alike."""
    sliced: Flat
    """This rank's slice of the classifier; empty if the classifier is replicated."""
    layout: Layout

    @property
    def slice_crosses(self) -> bool:
        """Whether ranks of other nodes own the same slice and average it."""
        return self.layout == "node"
