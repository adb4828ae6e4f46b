"""Horovod's collectives between ranks on different nodes, launched now and waited for later."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, cast

import horovod.torch as hvd
import torch
from torch import Tensor

from harness.measure.phase import Phase
from harness.measure.traffic import all_gather_bytes, all_reduce_bytes, all_to_all_bytes
from harness.parallel.group import Meters
from harness.parallel.host_memory import down, up
from harness.parallel.line import Line, Running

POLL_SECONDS = 2e-4
"""Seconds between two polls of what the training thread waits for."""
FOLLOW_SECONDS = 1e-3
"""Seconds between two polls beside training, longer so as not to take processor time from it."""


class Sum(Protocol):
    """A sum in flight; after `wait` its buffer holds the result."""

    def wait(self) -> object: ...


class Landing(Protocol):
    """A collective in flight that returns a tensor."""

    def wait(self) -> Tensor: ...


@dataclass(frozen=True)
class Lines:
    """Lines beside training, one for each step of a collective: while a step waits, the steps
    before it go on with the next names."""

    down: Line
    """Copies a card's buffer to host memory and launches it."""
    up: Line
    """Waits for that and copies the result to the card."""
    reduce: Line
    """Reduces what has arrived and launches the gather of the results."""
    gathered: Line
    """Waits for that and copies it to the card."""


@dataclass(eq=False)
class PeerGroup:
    """One rank of each node; all of them own the same part and launch the same names in order."""

    size: int
    index: int
    process_set: hvd.ProcessSet | None
    """Horovod's process set; None for a group of one rank, which sends nothing."""
    meters: Meters
    lines: Lines | None = None
    """None only for a group of one rank."""
    user: str = ""
    """Prefix of every name, so that several users of the same ranks do not mix up their
    collectives."""

    def launch_sum(self, buffer: Tensor, name: str) -> Sum:
        """Starts summing `buffer` in place; it must not be touched until `wait`.

        A name may be in flight once. Collective over the group.
        """
        if self.process_set is None:
            return _Done(buffer)
        self._remember("all_reduce", name, buffer)
        sent = buffer.numel() * buffer.element_size()
        self.meters.traffic.add(all_reduce_bytes(sent, self.size, self.size))
        if not buffer.is_cuda:
            return _Launched(self._sum(buffer, name), self._waiting())
        summed = self._by_the_host(buffer, self._sum, name, into=buffer)
        return _Followed(summed, self._waiting())

    def launch_gather(self, row: Tensor, name: str) -> Landing:
        """As `Group.launch_gather`: gathers each rank's row [1, b] into [size, b], in the order of
        ranks.

        A name may be in flight once. Collective over the group.
        """
        if self.process_set is None:
            return _Done(row)
        self._remember("all_gather", name, row)
        sent = row.numel() * row.element_size()
        self.meters.traffic.add(all_gather_bytes(sent, self.size, self.size))
        if not row.is_cuda:
            return _Launched(self._gather(row, name), self._waiting())
        return _Followed(self._by_the_host(row, self._gather, name), self._waiting())

    def launch_reduce(
        self, rows: Tensor, reduce: Callable[[Tensor], Tensor], name: str
    ) -> "_Followed":
        """As `Group.launch_reduce`: reduces rows [size, b], one for each rank, and gathers the
        results.

        A name may be in flight once. Collective over the group.
        """
        if self.process_set is None:
            return _Followed(_Done(reduce(rows)[None]), self._waiting())
        assert self.lines is not None
        self._remember("all_to_all", name, rows)
        row = rows[0].numel() * rows.element_size()
        # Both hops are counted now, because the window of the second launch is not known.
        self.meters.traffic.add(
            all_to_all_bytes(row, self.size, self.size)
            + all_gather_bytes(row, self.size, self.size)
        )
        arriving: Callable[[], Tensor]
        if rows.is_cuda:
            arriving = self._by_the_host(rows, self._exchange, name).result
        else:
            handle = self._exchange(rows, name)
            arriving = lambda: finish(handle, FOLLOW_SECONDS)  # noqa: E731

        # A line launches the second hop: it can only start when the first has arrived, and the
        # training thread must not wait for that.
        def follow() -> int:
            return self._gather(down(reduce(arriving())[None]), name + ".made")

        launched = self.lines.reduce.run(follow)
        gathered = self.lines.gathered.run(lambda: _landed(launched, rows.device))
        return _Followed(gathered, self._waiting())

    def _by_the_host(
        self,
        sent: Tensor,
        launch: Callable[[Tensor, str], int],
        name: str,
        into: Tensor | None = None,
    ) -> Running[Tensor]:
        """Launches a collective of a card's tensor, whose result comes to `into` or a new one."""
        assert self.lines is not None
        launched = self.lines.down.run(lambda: launch(down(sent), name))
        return self.lines.up.run(lambda: _landed(launched, sent.device, into))

    def _remember(self, operation: str, name: str, tensor: Tensor) -> None:
        if self.meters.order is not None and self.process_set is not None:
            ranks = self.process_set.ranks or range(self.size)
            label = f"{operation} {self.user}{name}"
            self.meters.order.add(label, f"horovod {','.join(map(str, ranks))}", ranks, tensor)

    def _sum(self, buffer: Tensor, name: str) -> int:
        name = self.user + name
        return hvd.allreduce_async_(buffer, name=name, op=hvd.Sum, process_set=self.process_set)

    def _exchange(self, rows: Tensor, name: str) -> int:
        return hvd.alltoall_async(rows, name=self.user + name, process_set=self.process_set)

    def _gather(self, row: Tensor, name: str) -> int:
        return hvd.allgather_async(row, name=self.user + name, process_set=self.process_set)

    def _waiting(self) -> AbstractContextManager[None]:
        return self.meters.clock.phase(Phase.EXCHANGE_WAIT)


class _Done:
    """The result of a group of one rank, available at once."""

    def __init__(self, made: Tensor) -> None:
        self._made = made

    def wait(self) -> Tensor:
        return self._made

    def result(self) -> Tensor:
        return self._made


class _Launched:
    def __init__(self, handle: int, waiting: AbstractContextManager[None]) -> None:
        self._handle = handle
        self._waiting = waiting

    def wait(self) -> Tensor:
        with self._waiting:
            return finish(self._handle)


class _Followed:
    def __init__(self, running: Running[Tensor], waiting: AbstractContextManager[None]) -> None:
        self._running = running
        self._waiting = waiting

    def wait(self) -> Tensor:
        with self._waiting:
            return self._running.result()


def _landed(launched: Running[int], device: torch.device, into: Tensor | None = None) -> Tensor:
    return up(finish(launched.result(), FOLLOW_SECONDS), device, into)


def finish(handle: int, poll_seconds: float = POLL_SECONDS) -> Tensor:
    """The result of a Horovod handle. Sleeps between polls, because `synchronize` may spin."""
    while not hvd.poll(handle):
        time.sleep(poll_seconds)
    result = hvd.synchronize(handle)
    # An all-to-all also returns the number of rows of each rank.
    return cast(Tensor, result[0] if isinstance(result, tuple) else result)
