"""Buckets of the flat gradient, each sent by a collective that starts during the backward pass."""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from harness.exchange.flat import Flat, order_of
from harness.exchange.wire import Launched

Launch = Callable[[], Launched]
"""Starts one bucket's collectives; the result can be waited for."""


def cut(sizes: Sequence[int], limit: float) -> list[list[int]]:
    """The numbers of the parameters in each bucket of at least `limit` elements, in flat order.

    The last bucket may be smaller. It holds the biases and norms of all layers and the matrices of
    the first layers, so it goes out when the backward pass ends, and the others before.
    """
    buckets: list[list[int]] = [[]]
    for number in range(len(sizes)):
        if sum(sizes[member] for member in buckets[-1]) >= limit:
            buckets.append([])
        buckets[-1].append(number)
    return [members for members in buckets if members]


def bucket_sizes(
    shapes: Sequence[torch.Size], bucket_bytes: float, element_bytes: int
) -> tuple[int, ...]:
    """Elements of each bucket of a flat tensor of parameters with these shapes."""
    sizes = [shapes[number].numel() for number in order_of(shapes)]
    buckets = cut(sizes, bucket_bytes / element_bytes)
    return tuple(sum(sizes[member] for member in members) for members in buckets)


class Buckets:
    """Cuts a flat gradient into buckets and launches each as soon as its last gradient is ready.

    A bucket also waits until all buckets before it are launched, so that all ranks launch them in
    one order. A gradient is ready after `passes` backward passes. `carry` returns, for each bucket,
    the function that launches it.
    """

    def __init__(
        self,
        flat: Flat,
        bucket_bytes: float,
        passes: int,
        carry: Callable[[Tensor], Launch],
    ) -> None:
        self._carry = carry
        self._passes = passes
        self._launches: list[Launch] = []
        self._awaited: list[int] = []
        self._counts: list[int] = []
        self._launched: list[Launched] = []
        parameters = [parameter for parameter, _, _ in flat.spans]
        limit = bucket_bytes / flat.grads.element_size()
        for members in cut([parameter.numel() for parameter in parameters], limit):
            start, stop = flat.spans[members[0]][1], flat.spans[members[-1]][2]
            self._cut(flat, start, stop, [parameters[member] for member in members])

    def _cut(self, flat: Flat, start: int, stop: int, members: list[nn.Parameter]) -> None:
        bucket = len(self._launches)
        self._launches.append(self._carry(flat.grads[start:stop]))
        self._awaited.append(len(members) * self._passes)
        self._counts.append(0)
        # The garbage collector does not see that parameters hold their hooks, so a strong reference
        # here would never be freed.
        arrived = weakref.WeakMethod(self._arrived)

        def note(_: Tensor) -> None:
            if (method := arrived()) is not None:
                method(bucket)

        for parameter in members:
            parameter.register_post_accumulate_grad_hook(note)

    def _arrived(self, bucket: int) -> None:
        self._counts[bucket] += 1
        while (out := len(self._launched)) < len(self._launches):
            if self._counts[out] < self._awaited[out]:
                break
            self._launched.append(self._launches[out]())

    def finish(self) -> None:
        """Waits for all buckets of this window; launches those that received no gradient first."""
        for launch in self._launches[len(self._launched) :]:
            self._launched.append(launch())
        for launched in self._launched:
            launched.wait()
        self._launched = []
        self._counts = [0] * len(self._launches)
