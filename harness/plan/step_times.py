"""How long each piece of a window takes: what cost model and simulator put together."""

from dataclasses import dataclass

from harness.exchange.kinds import Crosses
from harness.plan.machines import Cluster
from harness.plan.transfers import Launch, Transfer, Transfers
from harness.plan.workload import Workload

OPTIMIZER_PASSES = {"sgd": 5, "adamw": 7}
"""Over memory, of what a rank steps: values, gradients and states, read and written."""
ENCODING_PASSES = 10
POWER_SGD_PASSES = 12
"""Over the gradient: two reads for the factors, one write back, what was not sent, kept and added,
and copies to and from DDP's bucket."""


@dataclass(frozen=True)
class Pieces:
    """Seconds on one rank, and transfers between nodes."""

    passes: int
    """Micro-batches in a window."""
    steps: int
    """Of the optimizer in a window."""
    delay: int
    lands_first: bool
    """A late exchange waits for the one `delay` windows ago before it launches, not after."""
    data: float
    """Of a micro-batch, as are the next ones."""
    forward: float
    backward: float
    """Of the backbone and the classifier."""
    backbone_backward: float
    """The last part of it."""
    overhead: float
    slice_wait: float
    """In the node."""
    gathers: tuple[Transfer, ...]
    """Between nodes, blocking."""
    node: float
    """Of a step: shared gradients to their owners, values back."""
    optimizer: float
    """Of a step."""
    encode: float
    """Of a window: packing, unpacking."""
    buckets: tuple[Launch, ...]
    """Between nodes, overlapped with the last backward pass; empty where ranks step alone."""
    exchange: Transfer
    """Between nodes, after the last backward pass; nothing where buckets are averaged beside it."""
    disturbance: float
    """Of a window: what a late transfer takes from the ranks' processors."""
    jitter: float
    """Standard deviation by mean, of the compute of a micro-batch on a rank."""
    shares_cores: bool
    """A node's ranks wait for its cores, not for each other."""

    @property
    def compute(self) -> float:
        """Of a micro-batch: what varies from one to the next."""
        return self.data + self.forward + self.backward + self.overhead

    @property
    def micro_batch(self) -> float:
        """With what its slice group takes, ports rested."""
        return self.compute + self.slice_wait + sum(each.seconds for each in self.gathers)

    @property
    def stretch(self) -> float:
        """Of a window: what buckets take of the cores while the backward pass still runs."""
        return sum(each.transfer.taken for each in self.buckets[:-1])

    @property
    def after(self) -> float:
        """Of a step: what follows its last backward pass, exchanges left out."""
        return self.node + self.optimizer


def pieces_of(cluster: Cluster, work: Workload) -> Pieces:
    """The nodes and ranks are the workload's; the machines are the cluster's."""
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
        """Forward; backward; the backbone's part of that."""
        cluster, work = self._cluster, self._work
        plain = cluster.product_flop_per_second / self.slowdown
        backbone = work.backbone_flops / plain / cluster.backbone_efficiency
        classifier = work.classifier_flops / plain / cluster.classifier_efficiency
        backbone_backward = backbone * (1 - cluster.forward_share)
        if self._traits.crosses is Crosses.FACTORS:
            backbone_backward += self._power_sgd()
        forward = backbone * cluster.forward_share + classifier / 3
        return forward, classifier * 2 / 3 + backbone_backward, backbone_backward

    def _power_sgd(self) -> float:
        """Factors of gradients, with what they leave: three products and passes over memory."""
        elements, rank = self._work.shared, self._exchange.powersgd_rank
        plain = self._cluster.product_flop_per_second / self.slowdown
        products = 3 * 2.0 * elements * rank / plain / self._cluster.classifier_efficiency
        return products + self._memory(POWER_SGD_PASSES * elements)

    def node(self) -> float:
        """Gradients zeroed; where ranks step alone averaged by their owners, and values sent."""
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
        passes = OPTIMIZER_PASSES[self._work.config.optimizer.name]
        return self._memory(passes * self._work.owned)

    def encode(self) -> float:
        """Late exchanges copy what they send at least; those that overlap pack alone."""
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
