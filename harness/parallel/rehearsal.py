"""A group that answers without communicating, so that a rank can try a step before others wait for
it."""

import torch.distributed as dist
from torch import Tensor

from harness.measure.phase import Phase
from harness.parallel.group import Group, Meters
from harness.parallel.pending import Pending


class Rehearsal(Group):
    """Answers at once, with tensors of the real sizes, as if all ranks sent what this one does.

    Nothing is sent, so a rank that fails inside leaves nobody waiting.
    """

    def __init__(self, size: int, index: int, meters: Meters) -> None:
        super().__init__((0,), 0, 1, None, meters, Phase.SLICE_WAIT)
        self.size = size
        self.index = index

    def launch_all_gather(self, block: Tensor, into: Tensor | None = None) -> Pending:
        if into is None:
            into = block.new_empty((self.size * block.shape[0], *block.shape[1:]))
        for place in into.split(len(block)):
            if place.data_ptr() != block.data_ptr():
                place.copy_(block)
        return self._pending(None, into)

    def launch_reduce_scatter(self, blocks: Tensor) -> Pending:
        return self._pending(None, self._sum_blocks(blocks.clone()))

    def _launch_reduce(
        self,
        tensor: Tensor,
        finish: object,
        operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    ) -> Pending:
        return self._pending(None, tensor)
