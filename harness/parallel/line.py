"""Lines: steps that follow collectives, run one after the other beside the training thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Running(Protocol[T_co]):
    """A step that a line has accepted."""

    def result(self) -> T_co:
        """Waits for the step. On a card only the current stream waits for its kernels."""


class Line:
    """Runs steps in the order in which they are given.

    A step may wait for one collective and launch the next. If all ranks give the same steps in the
    same order, what a line launches has the same order on all ranks, because each line has its own
    process groups. `host_blocks`: waiting for a collective blocks the host, as with Gloo and
    Horovod. With NCCL the current stream waits instead, so on a card a step can be run at once, on
    the line's own stream.
    """

    def __init__(self, name: str, device: torch.device, host_blocks: bool) -> None:
        on_card = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_card else None
        self._thread = ThreadPoolExecutor(1, name) if host_blocks or not on_card else None

    def run(self, step: Callable[[], T]) -> Running[T]:
        """Runs the step after those given before, and after the current stream's work so far."""
        if self._stream is None:
            assert self._thread is not None
            return self._thread.submit(step)
        stream, given = self._stream, torch.cuda.current_stream(self._stream.device).record_event()

        def on_stream() -> tuple[T, torch.cuda.Event]:
            # A thread begins on card 0. If only the stream were set, going back to the thread's own
            # stream would open card 0 too, and take memory there from the rank that has it.
            with torch.cuda.device(stream.device), torch.cuda.stream(stream):
                stream.wait_event(given)
                return step(), stream.record_event()

        if self._thread is not None:
            return _OnCard(self._thread.submit(on_stream))
        taken: Future[tuple[T, torch.cuda.Event]] = Future()
        taken.set_result(on_stream())
        return _OnCard(taken)

    def close(self) -> None:
        """Cancels the steps that have not begun."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _OnCard(Generic[T]):
    taken: Future[tuple[T, torch.cuda.Event]]

    def result(self) -> T:
        value, event = self.taken.result()
        torch.cuda.current_stream().wait_event(event)
        if isinstance(value, Tensor):
            used_here(value)
        return value


def used_here(tensor: Tensor) -> Tensor:
    """Marks a tensor that may come from another stream as used by the current one, so that a card
    does not reuse its memory before the current stream is done."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor
