"""Sums over ranks on different nodes through Horovod, launched now and waited for later."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import horovod.torch as hvd
import torch
from torch import Tensor

from harness.measure.phase import Phase
from harness.measure.traffic import all_reduce_bytes
from harness.parallel.group import Meters

POLL_SECONDS = 2e-4


class Sum(Protocol):
    """A sum under way; after `wait` its buffer holds the result."""

    def wait(self) -> None: ...


class ReplicaGroup:
    """One rank on each node, which own the same part. All of them launch the same names in turn.

    `process_set` is None for a group of one rank, and then nothing is sent. `staging` is the
    thread through which a card's buffers go by way of host memory. `user` tells apart the names of
    those who share the ranks.
    """

    def __init__(
        self,
        size: int,
        index: int,
        process_set: hvd.ProcessSet | None,
        meters: Meters,
        staging: ThreadPoolExecutor | None = None,
        user: str = "",
    ) -> None:
        self.size = size
        self.index = index
        self._process_set = process_set
        self._meters = meters
        self._staging = staging
        self._user = user

    def launch_sum(self, buffer: Tensor, name: str) -> Sum:
        """Starts summing `buffer` in place; it must rest untouched until `wait`.

        A name may be under way once. Collective over the group.
        """
        if self._process_set is None:
            return _Done()
        sent = buffer.numel() * buffer.element_size()
        self._meters.traffic.add(all_reduce_bytes(sent, self.size, self.size))
        if self._staging is not None and buffer.is_cuda:
            return _Staged(buffer, self._sum_async, name, self._staging, self._meters)
        return _Launched(self._sum_async(buffer, name), self._meters)

    def _sum_async(self, buffer: Tensor, name: str) -> int:
        name = self._user + name
        return hvd.allreduce_async_(buffer, name=name, op=hvd.Sum, process_set=self._process_set)


class _Done:
    def wait(self) -> None:
        return None


class _Launched:
    def __init__(self, handle: int, meters: Meters) -> None:
        self._handle = handle
        self._clock = meters.clock

    def wait(self) -> None:
        with self._clock.phase(Phase.EXCHANGE_WAIT):
            finish(self._handle)


class _Staged:
    """A card's buffer summed in host memory, so that Horovod and the node's NCCL never meet.

    The copy to pinned memory runs on a side stream; a thread waits for it, hands the host
    buffer to Horovod and polls. Only `wait` touches the compute stream.
    """

    def __init__(
        self,
        buffer: Tensor,
        launch: Callable[[Tensor, str], int],
        name: str,
        thread: ThreadPoolExecutor,
        meters: Meters,
    ) -> None:
        self._buffer = buffer
        self._clock = meters.clock
        self._host = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
        side = torch.cuda.Stream(buffer.device)
        side.wait_stream(torch.cuda.current_stream(buffer.device))
        with torch.cuda.stream(side):
            self._host.copy_(buffer, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(side)
        buffer.record_stream(side)

        def exchange() -> None:
            copied.synchronize()
            finish(launch(self._host, name))

        self._future: Future[None] = thread.submit(exchange)

    def wait(self) -> None:
        with self._clock.phase(Phase.EXCHANGE_WAIT):
            self._future.result()
        self._buffer.copy_(self._host, non_blocking=True)


def finish(handle: int) -> Tensor:
    """The result of a Horovod handle; sleeps between polls, because `synchronize` may spin."""
    while not hvd.poll(handle):
        time.sleep(POLL_SECONDS)
    return hvd.synchronize(handle)
