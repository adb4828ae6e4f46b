"""Collectives on pieces of the flat gradient, started while the backward pass still runs."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from harness.exchange.flat import Flat


class Launched(Protocol):
    def wait(self) -> object: ...


class Buckets:
    """Cuts a flat gradient into buckets and launches each when its last gradient has come.

    A gradient has come after `passes` backward passes. Buckets are cut from the end, where the
    backward pass begins.
    """

    def __init__(
        self,
        flat: Flat,
        bucket_bytes: float,
        passes: int,
        launch: Callable[[Tensor], Launched],
    ) -> None:
        self._launch = launch
        self._passes = passes
        self._pieces: list[Tensor] = []
        self._awaited: list[int] = []
        self._counts: list[int] = []
        self._launched: dict[int, Launched] = {}
        limit = bucket_bytes / flat.grads.element_size()
        stop = first = flat.elements
        members: list[nn.Parameter] = []
        for parameter, start, _ in reversed(flat.spans):
            members.append(parameter)
            first = start
            if stop - first >= limit:
                self._cut(flat, first, stop, members)
                stop, members = first, []
        if members:
            self._cut(flat, first, stop, members)

    def _cut(self, flat: Flat, start: int, stop: int, members: list[nn.Parameter]) -> None:
        bucket = len(self._pieces)
        self._pieces.append(flat.grads[start:stop])
        self._awaited.append(len(members) * self._passes)
        self._counts.append(0)
        for parameter in members:
            parameter.register_post_accumulate_grad_hook(lambda _: self._arrived(bucket))

    def _arrived(self, bucket: int) -> None:
        self._counts[bucket] += 1
        if self._counts[bucket] == self._awaited[bucket]:
            self._launched[bucket] = self._launch(self._pieces[bucket])

    def finish(self) -> None:
        """Waits for all buckets of this window; those no gradient came for go out now."""
        for bucket, piece in enumerate(self._pieces):
            if bucket not in self._launched:
                self._launched[bucket] = self._launch(piece)
        for bucket in range(len(self._pieces)):
            self._launched.pop(bucket).wait()
            self._counts[bucket] = 0
