"""Drops a step whose numbers are not finite on any rank, as if its images had never been seen."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.errors import Diverged
from harness.exchange.exchange import Exchange
from harness.train.assembly import Assembly
from harness.train.checkpoint.meta import STARTED, Progress

IN_A_ROW = 5
"""Steps in a row that are dropped before the run ends: whatever causes them does not pass."""


class Dropper:
    """Decides before each step, on all ranks alike, whether it takes place.

    That takes a sum over all ranks which nothing hides, once a step. Every method is collective
    over the world.
    """

    def __init__(self, model: Assembly, exchange: Exchange, progress: Progress = STARTED) -> None:
        """`progress`: that of the checkpoint that the run resumes."""
        self._model = model
        self._exchange = exchange
        self._before: list[tuple[Tensor, Tensor]] = []
        self._in_a_row = progress.dropped_in_a_row
        self.dropped = progress.dropped_steps
        """Steps that were dropped so far."""

    def added_to(self, progress: Progress) -> Progress:
        """The progress with what was dropped so far."""
        counts = {"dropped_steps": self.dropped, "dropped_in_a_row": self._in_a_row}
        return progress.model_copy(update=counts)

    def step_begins(self) -> None:
        """Remembers what a forward pass, or an exchange in a backward pass, changes before it is
        known whether the step takes place: batch statistics, and what a lossy wire owes."""
        changing = [*self._model.backbone.buffers(), *self._exchange.changed_in_backward()]
        self._before = [(tensor, tensor.clone()) for tensor in changing]

    def accepts(self, window: int, losses: Sequence[Tensor]) -> bool:
        """Whether these losses, and the gradients, are finite on all ranks. If not, batch
        statistics and what a wire owes are what they were before.

        Raises Diverged, on all ranks, after IN_A_ROW steps in a row that were not.
        """
        if self._finite_everywhere(losses):
            self._in_a_row = 0
            return True
        with torch.no_grad():
            for tensor, before in self._before:
                tensor.copy_(before)
            # With class sampling the next pass overwrites only the rows that it draws.
            for flat in self._model.flats:
                flat.grads.zero_()
        self.dropped += 1
        self._in_a_row += 1
        if self._in_a_row == IN_A_ROW:
            raise Diverged(
                f"{IN_A_ROW} steps in a row were dropped up to window {window + 1}, because their "
                f"loss or gradient was not finite",
                "lower optimizer.lr or raise optimizer.warmup_windows",
                window + 1,
            )
        return False

    def _finite_everywhere(self, losses: Sequence[Tensor]) -> bool:
        grads = [flat.grads for flat in self._model.flats if flat.grads.numel()]
        own = _sum_of_magnitudes([*losses, *grads])
        flag = torch.tensor([0.0 if math.isfinite(own) else 1.0])
        return not float(self._model.world.launch_sum(flag).wait())


def _sum_of_magnitudes(tensors: Sequence[Tensor]) -> float:
    """Not finite if an element of a tensor is not. Waits for the device."""
    norms = [torch.linalg.vector_norm(tensor).double() for tensor in tensors]
    return float(torch.stack(norms).sum())
