"""Collectives in flight."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from harness.parallel.line import Running, used_here


class Pending:
    """A collective in flight; `wait` returns its result once the current stream may use it."""

    def __init__(
        self,
        work: dist.Work | None,
        result: Tensor,
        waiting: AbstractContextManager[None],
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._work = work
        self._result = result
        self._waiting = waiting
        self._finish = finish
        self._follow: Callable[[Tensor], Tensor] | None = None

    def then(self, follow: Callable[[Tensor], Tensor]) -> "Pending":
        """Applies `follow` to the result when it is waited for."""
        self._follow = follow
        return self

    def wait(self) -> Tensor:
        if self._work is not None:
            with self._waiting:
                self._work.wait()
            self._work = None
            if self._finish is not None:
                self._result = self._finish(self._result)
        if self._follow is not None:
            follow, self._follow = self._follow, None
            self._result = follow(self._result)
        return used_here(self._result)


class Reducing:
    """A `launch_reduce` in flight."""

    def __init__(self, followed: Running[Pending], waiting: AbstractContextManager[None]) -> None:
        self._followed = followed
        self._waiting = waiting

    def wait(self) -> Tensor:
        """The result, [size, b], once the current stream may use it."""
        with self._waiting:
            return self._followed.result().wait()


@dataclass(frozen=True)
class Done:
    """The result of a group of one rank, available at once."""

    made: Tensor

    def result(self) -> Pending:
        return Pending(None, self.made, nullcontext())
