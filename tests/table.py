"""Ranks that are threads of this process, each with a seat at a table, where they put what they
send.

Many more of them fit on a machine than processes, and they start at once.
"""

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from harness.exchange.wire import Carrier
from harness.parallel.line import Line, Running

T = TypeVar("T")
PATIENCE_SECONDS = 30.0


@dataclass
class Table:
    """Where they put it, by the name of the collective."""

    size: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    found: defaultdict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))

    def put(self, tensor: Tensor, name: str, index: int) -> None:
        with self.changed:
            self.found[name][index] = tensor.clone()
            self.changed.notify_all()

    def all_of(self, name: str) -> Tensor:
        """[size, ...], in the order of seats, whoever came first."""
        with self.changed:
            assert self.changed.wait_for(self._complete(name), PATIENCE_SECONDS)
            return torch.stack([self.found[name][index] for index in range(self.size)])

    def _complete(self, name: str) -> Callable[[], bool]:
        return lambda: len(self.found[name]) == self.size


class Seat:
    """One rank's carrier. A name may be used again, so each use is numbered."""

    def __init__(self, table: Table, index: int) -> None:
        self.index = index
        self.size = table.size
        self._table = table
        self._uses: defaultdict[str, int] = defaultdict(int)
        self.line = Line(f"seat {index}", torch.device("cpu"), host_blocks=False)

    def launch_sum(self, buffer: Tensor, name: str) -> "Summing":
        numbered = self._numbered(name)
        self._table.put(buffer, numbered, self.index)
        return Summing(self._table, numbered, buffer)

    def launch_gather(self, row: Tensor, name: str) -> "Gathering":
        numbered = self._numbered(name)
        self._table.put(row, numbered, self.index)
        return Gathering(self._table, numbered)

    def launch_reduce(
        self, rows: Tensor, reduce: Callable[[Tensor], Tensor], name: str
    ) -> "Reducing":
        numbered = self._numbered(name)
        self._table.put(rows, numbered, self.index)

        def follow() -> Tensor:
            made = reduce(self._table.all_of(numbered)[:, self.index].clone())
            self._table.put(made, f"{numbered} made", self.index)
            return self._table.all_of(f"{numbered} made")

        return Reducing(self.line.run(follow))

    def _numbered(self, name: str) -> str:
        self._uses[name] += 1
        return f"{name} #{self._uses[name]}"


@dataclass(frozen=True)
class Summing:
    table: Table
    name: str
    buffer: Tensor

    def wait(self) -> Tensor:
        return self.buffer.copy_(self.table.all_of(self.name).sum(0, dtype=self.buffer.dtype))


@dataclass(frozen=True)
class Gathering:
    table: Table
    name: str

    def wait(self) -> Tensor:
        return self.table.all_of(self.name).flatten(0, 1)


@dataclass(frozen=True)
class Reducing:
    running: Running[Tensor]

    def wait(self) -> Tensor:
        return self.running.result()


def on_threads(size: int, body: Callable[[Carrier], T]) -> list[T]:
    """What `body` gives on each of so many seats, in their order."""
    table = Table(size)
    seats = [Seat(table, index) for index in range(size)]
    try:
        with ThreadPoolExecutor(size) as pool:
            jobs = [pool.submit(body, seat) for seat in seats]
            return [job.result(timeout=4 * PATIENCE_SECONDS) for job in jobs]
    finally:
        for seat in seats:
            seat.line.close()
