"""Rows of a slice that are sent only when they were drawn, because classes are sampled."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from harness.config import ExchangeConfig
from harness.exchange.averaging import InFlight
from harness.exchange.carried import Strip
from harness.exchange.compression import WireParts, make_wire
from harness.exchange.flat import Flat
from harness.exchange.parts import Part
from harness.exchange.wire import Sent

Draw = Callable[[int], Tensor]
"""Window -> rows of the slice, ascending, as many in every window, and the same on all nodes."""


class DrawnRows:
    """Sends, in each window, the movement of the rows of a slice that were drawn for it.

    Under class sampling a row moves in the windows for which it is drawn, which all nodes know
    without asking, and as a positive, which only its own node knows. A row that was drawn is sent
    at once. One that moved as a positive only is sent when it is next drawn: what it owes is the
    difference from the values up to which it was sent, so no step is lost or sent twice. With a
    share r of the rows and K micro-batches a window sends r K of the slice, as many bytes as one of
    1 / (r K) pieces, but what it sends has just moved, where a piece has waited for its turn.

    Only a wire that keeps no remainder of its own may be used: it would belong to other rows the
    next time.
    """

    period = 1

    def __init__(self, sliced: Flat, part: Part, config: ExchangeConfig, draw: Draw) -> None:
        """`part` is the whole slice."""
        self.parts = [part]
        self.elements = part.elements
        self._values = SliceRows(sliced, sliced.values)
        self._sent_up_to = part.values()
        self._sent = SliceRows(sliced, self._sent_up_to)
        self._draw = draw
        elements = len(draw(0)) * self._values.width
        self._change = sliced.values.new_empty(elements)
        self._slots = config.delay + 1
        parts = WireParts(elements, self._change, self._slots)
        self._wire = make_wire(config.compression, parts, part.peers, "rows", keeps_own=True)

    def launch(self, window: int) -> InFlight:
        """Sends what the rows drawn for this window have moved. Collective over the part's
        ranks."""
        rows = self._draw(window)
        self._change.copy_(self._values.of(rows)).sub_(self._sent.of(rows))
        sent = self._wire.launch(self._change, window % self._slots)
        own = torch.zeros_like(self._change)
        sent.add_own(own, 1.0)
        self._sent.add(rows, own)
        return InFlight(window, self, partial(self._land, rows, sent))

    def _land(self, rows: Tensor, sent: Sent, keep: bool) -> None:
        # Nothing is kept for a comparison: the rows of the next window are others.
        sent.correction(self._change)
        self._values.add(rows, self._change)
        self._sent.add(rows, self._change)

    def agree(self) -> None:
        """Continues from the average of the nodes' values. Collective over the part's ranks."""
        (part,) = self.parts
        self._sent_up_to.copy_(part.average("rows.values"))
        part.put(self._sent_up_to)

    def carried(self) -> list[Strip]:
        return []


class SliceRows:
    """The rows of a slice in a flat tensor: of its weight, and of its bias if it has one."""

    def __init__(self, flat: Flat, values: Tensor) -> None:
        self._matrices = [
            values[start:stop].view(len(parameter), -1) for parameter, start, stop in flat.spans
        ]
        self._widths = [matrix.shape[1] for matrix in self._matrices]
        self.width = sum(self._widths)
        """Elements of a row."""

    def of(self, rows: Tensor) -> Tensor:
        """The elements of these rows [n], [n * width]: first of all weights, then of all biases."""
        return torch.cat([matrix.index_select(0, rows).view(-1) for matrix in self._matrices])

    def add(self, rows: Tensor, change: Tensor) -> None:
        """Adds to these rows what `of` would give of them."""
        parts = change.split([len(rows) * width for width in self._widths])
        for matrix, part in zip(self._matrices, parts, strict=True):
            matrix.index_add_(0, rows, part.view(len(rows), -1))
