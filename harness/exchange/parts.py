"""What one rank speaks for: its chunk of the shared parameters and its slice of the classes.

In a node the ranks own disjoint parts that make up the whole model; a part is averaged with the
same part on the other nodes only. Serves gradients and values alike.
"""

from torch import Tensor

from harness.exchange.flat import Flat
from harness.parallel.replicas import Average
from harness.parallel.world import World


class Parts:
    """Cuts this rank's part out of the flat tensors, sends it, and puts an averaged one back.

    A part is one tensor: the chunk, then the slice. Where a slice has no replica
    (`sliced_has_replicas` false) it rides along and is not sent.
    """

    def __init__(self, shared: Flat, sliced: Flat, sliced_has_replicas: bool, world: World) -> None:
        self._shared = shared
        self._sliced = sliced
        self._world = world
        self._chunk = len(shared.values) // world.node.size
        self._sent = self._chunk + (len(sliced.values) if sliced_has_replicas else 0)

    def new(self) -> Tensor:
        """An empty part."""
        return self._shared.values.new_empty(self._chunk + len(self._sliced.values))

    def take_gradients(self, part: Tensor) -> None:
        """Fills `part` with gradients, the chunk averaged over the node. Collective there."""
        node = self._world.node
        chunk = node.launch_reduce_scatter(self._shared.grads).wait()
        part[: self._chunk].copy_(chunk).div_(node.size)
        part[self._chunk :] = self._sliced.grads

    def put_gradients(self, part: Tensor) -> None:
        """Writes an averaged part back, the chunks of all ranks. Collective over the node."""
        self._world.node.launch_all_gather(part[: self._chunk], self._shared.grads).wait()
        self._sliced.grads.copy_(part[self._chunk :])

    def take_values(self, part: Tensor) -> None:
        """Fills `part` with values; the node's ranks hold the same shared ones."""
        start = self._world.node.index * self._chunk
        part[: self._chunk] = self._shared.values[start : start + self._chunk]
        part[self._chunk :] = self._sliced.values

    def put_values(self, part: Tensor) -> None:
        """Replaces the values. Collective over the node."""
        self._world.node.launch_all_gather(part[: self._chunk], self._shared.values).wait()
        self._sliced.values.copy_(part[self._chunk :])

    def add_values(self, change: Tensor) -> None:
        """Adds to the values. Collective over the node."""
        self._shared.values += self._world.node.all_gather(change[: self._chunk])
        self._sliced.values += change[self._chunk :]

    def launch_average(self, part: Tensor, name: str) -> Average:
        """Starts averaging over the nodes, in place. Collective over the ranks of this part."""
        return self._world.peers.launch_average(part[: self._sent], name)
