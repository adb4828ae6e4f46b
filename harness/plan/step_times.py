"""The duration of each piece of a window, from which cost model and simulator are built."""

from dataclasses import dataclass

from harness.exchange.kinds import Crosses
from harness.plan.machines import Cluster
from harness.plan.transfers import Launch, Transfer, Transfers
from harness.plan.workload import Workload

OPTIMIZER_PASSES = {"sgd": 5, "adamw": 7}
"""Passes over memory of an optimizer step: values, gradients and states, read and written."""
ROW_COST, SEARCH_PASSES = 6.5, 3
"""Time of an element in a row that steps by itself, relative to one of a whole tensor; and passes
over memory of a search for rows whose gradient is not zero. Both measured on a processor."""
ENCODING_PASSES = 10
"""Passes over memory of packing and unpacking, if the cost of encoding was not measured."""
POWER_SGD_PASSES = 12
"""Passes over the gradient: two reads for the factors, one write back, the residual kept and added
back, and copies to and from DDP's bucket."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of a window: seconds on one rank, and transfers between nodes."""

    passes: int
    """Micro-batches per window, K."""
    steps: int
    """Optimizer steps per window."""
    delay: int
    """Delay of the exchange in windows."""
    lands_first: bool
    """Whether a late exchange waits for the one of `delay` windows ago before it launches, not
    after."""
    data: float
    """Seconds per micro-batch to get its images."""
    forward: float
    """Seconds per micro-batch of the forward pass."""
    backward: float
    """Seconds per micro-batch of the backward pass, backbone and classifier."""
    backbone_backward: float
    """Seconds of the backbone's backward pass, which is the last part of `backward`."""
    overhead: float
    """Seconds per micro-batch of everything else on the rank."""
    slice_wait: float
    """Seconds per micro-batch of the slice group's collectives inside the node."""
    gathers: tuple[Transfer, ...]
    """Blocking transfers of the slice group between nodes, in each micro-batch."""
    node: float
    """Seconds per step to send shared gradients to their owners and values back."""
    optimizer: float
    """Seconds per step of the optimizer."""
    encode: float
    """Seconds per window of packing and unpacking."""
    buckets: tuple[Launch, ...]
    """Transfers between nodes during the last backward pass; empty if nodes step alone."""
    exchange: Transfer
    """Transfer between nodes after the last backward pass; nothing if buckets are used instead."""
    disturbance: float
    """Seconds per window that a late transfer takes from the ranks' processors."""
    jitter: float
    """Standard deviation of a micro-batch's compute on a rank, divided by its mean."""
    shares_cores: bool
    """Whether a node's ranks wait for its cores instead of for each other."""

    @property
    def compute(self) -> float:
        """Seconds of a micro-batch that vary from one to the next."""
        return self.data + self.forward + self.backward + self.overhead

    @property
    def micro_batch(self) -> float:
        """Seconds of a micro-batch with its slice group's collectives, through rested ports."""
        return self.compute + self.slice_wait + sum(each.seconds for each in self.gathers)

    @property
    def stretch(self) -> float:
        """Seconds per window that buckets take from the cores while the backward pass runs."""
        # The last bucket is sent when the backward pass has ended, so it delays nothing.
        return sum(each.transfer.taken for each in self.buckets[:-1])

    @property
    def after(self) -> float:
        """Seconds that follow a step's last backward pass, without exchanges."""
        return self.node + self.optimizer


def pieces_of(cluster: Cluster, work: Workload) -> Pieces:
    """The pieces of the workload's window, on its numbers of nodes and ranks of these machines."""
    there = cluster.on(work.nodes, work.ranks_per_node)
    costs = _Costs(there, work)
    forward, backward, backbone_backward = costs.network()
    transfers = Transfers(there, work)
    return Pieces(
        passes=work.passes,
        steps=work.steps,
        delay=work.config.exchange.delay,
        lands_first=work.config.exchange.traits.lands_first,
        data=costs.slowdown * cluster.image_seconds * work.config.train.batch_size,
        forward=forward,
        backward=backward,
        backbone_backward=backbone_backward,
        overhead=costs.slowdown * cluster.micro_batch_seconds,
        slice_wait=transfers.slice_wait(),
        gathers=transfers.gathers(),
        node=costs.node(),
        optimizer=costs.optimizer(),
        encode=costs.encode(),
        buckets=transfers.buckets() if work.overlaps else (),
        exchange=Transfer() if work.overlaps else transfers.exchange(),
        disturbance=transfers.disturbance(),
        jitter=cluster.jitter,
        shares_cores=there.slowdown > 1,
    )


class _Costs:
    def __init__(self, cluster: Cluster, work: Workload) -> None:
        self._cluster = cluster
        self._work = work
        self._exchange = work.config.exchange
        self._traits = work.config.exchange.traits
        self.slowdown = cluster.slowdown

    def network(self) -> tuple[float, float, float]:
        """Seconds of the forward pass, of the backward pass, and of the backbone's part of that."""
        cluster, work = self._cluster, self._work
        plain = cluster.product_flop_per_second / self.slowdown
        backbone = work.backbone_flops / plain / cluster.backbone_efficiency
        classifier = work.classifier_flops / plain / cluster.classifier_efficiency
        share = cluster.forward_share if work.forward_share is None else work.forward_share
        backbone_backward = backbone * (1 - share)
        if self._traits.crosses is Crosses.FACTORS:
            backbone_backward += self._power_sgd()
        # One of the classifier's three matrix products is in the forward pass, two in backward.
        forward = backbone * share + classifier / 3
        return forward, classifier * 2 / 3 + backbone_backward, backbone_backward

    def _power_sgd(self) -> float:
        """Factors of gradients, with what they leave: three products and passes over memory."""
        elements, rank = self._work.shared, self._exchange.powersgd_rank
        plain = self._cluster.product_flop_per_second / self.slowdown
        products = 3 * 2.0 * elements * rank / plain / self._cluster.classifier_efficiency
        return products + self._memory(POWER_SGD_PASSES * elements)

    def node(self) -> float:
        """Seconds per step inside a node.

        Gradients are zeroed; if nodes step alone, they are also averaged by their owners, and
        values are sent back. Each way a ring of n ranks moves (n - 1) / n of the bytes in n - 1
        steps.
        """
        work, cluster, group = self._work, self._cluster, self._work.ranks_per_node
        whole = work.shared * work.element_bytes
        if work.overlaps or group == 1:
            zeroed = self._memory(work.shared + work.sliced)
            in_node = self._traits.is_torchs and self._traits.local_steps
            if not in_node or group == 1:
                return zeroed
            return zeroed + Transfers(cluster, work).inside(
                2 * (group - 1) / group * whole, 2 * (group - 1)
            )
        line = cluster.shared or cluster.node
        sent = 2 * (group - 1) / group * whole
        return self.slowdown * (
            sent / line.bytes_per_second + 2 * (group - 1) * line.latency_seconds
        )

    def optimizer(self) -> float:
        """Seconds of an optimizer step, which is limited by memory bandwidth."""
        work = self._work
        passes = OPTIMIZER_PASSES[work.config.optimizer.name]
        stepped = work.owned + ROW_COST * work.rows.moving
        return self._memory(passes * stepped + SEARCH_PASSES * work.rows.searched)

    def encode(self) -> float:
        """Seconds per window of packing and unpacking.

        Late exchanges at least copy what they send; overlapped ones only pack if they compress.
        """
        work, kind = self._work, self._exchange.compression
        if self._traits.is_torchs or not self._traits.meets:
            return 0.0
        if work.nodes * work.ranks_per_node == 1 or (work.nodes == 1 and not work.overlaps):
            return 0.0
        elements = work.encoded if work.overlaps else work.part
        if kind == "none":
            return 0.0 if work.overlaps else self._memory(ENCODING_PASSES * elements)
        known = self._cluster.encode_seconds
        seconds: float | None = getattr(known, kind) if known is not None else None
        if seconds is None:
            return self._memory(ENCODING_PASSES * elements)
        return self.slowdown * seconds * elements

    def _memory(self, elements: float) -> float:
        rate = self._cluster.memory_bytes_per_second
        return self.slowdown * elements * self._work.element_bytes / rate
