"""How long each piece of a window takes: what cost model and simulator put together."""

import math
from dataclasses import dataclass

from harness.measure.traffic import Bytes
from harness.study.cluster import Cluster
from harness.study.workload import Workload

FLOAT = 4
OPTIMIZER_PASSES = {"sgd": 5, "adamw": 7}
"""Over memory, of what a rank steps: values, gradients and states, read and written."""
ENCODING_PASSES = 10
POWER_SGD_PASSES = 12
"""Over the gradient: two reads for the factors, one write back, what was not sent, kept and added,
and copies to and from DDP's bucket."""
POWER_SGD_COLLECTIVES = 3
"""In turn: vectors as they are, then one factor, then the other."""


@dataclass(frozen=True)
class Transfer:
    """What all ranks of a node have under way at the same time, through its port."""

    start: float = 0.0
    """Seconds until bytes move."""
    wire: float = 0.0
    """Seconds of the port, at its lasting rate."""
    own: float = 0.0
    """Seconds that a rank's thread needs for it at least."""
    burst: float = 0.0
    """Of `wire`, what a port that has rested takes at once."""
    taken: float = 0.0
    """Seconds of the ranks' compute that its threads take, where no core is idle."""

    @property
    def seconds(self) -> float:
        """Through a port that has rested, nothing else under way."""
        return self.start + max(self.wire - min(self.burst, self.wire), self.own)


@dataclass(frozen=True)
class Launch:
    """A transfer that starts during the last backward pass."""

    arrival: float
    """When, as a share of the backbone's backward pass."""
    transfer: Transfer


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
    """Between nodes, overlapped with the last backward pass; empty on the hierarchical route."""
    exchange: Transfer
    """Between nodes, after the last backward pass; nothing on the flat route."""
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
    flat = work.route == "flat"
    exchange = Transfer() if flat else costs.exchange()
    return Pieces(
        passes=work.passes,
        steps=work.steps,
        delay=work.config.exchange.delay,
        lands_first=work.config.exchange.kind == "averaging",
        data=costs.slowdown * cluster.image_seconds * work.config.train.batch_size,
        forward=forward,
        backward=backward,
        backbone_backward=backbone_backward,
        overhead=costs.slowdown * cluster.micro_batch_seconds,
        slice_wait=costs.slice_wait(),
        gathers=costs.gathers(),
        node=costs.node(),
        optimizer=costs.optimizer(),
        encode=costs.encode(),
        buckets=costs.buckets() if flat else (),
        exchange=exchange,
        disturbance=costs.disturbance(),
        jitter=cluster.jitter,
        shares_cores=there.slowdown > 1,
    )


class _Costs:
    def __init__(self, cluster: Cluster, work: Workload) -> None:
        self._cluster = cluster
        self._work = work
        self._exchange = work.config.exchange
        self.slowdown = cluster.slowdown

    def network(self) -> tuple[float, float, float]:
        """Forward; backward; the backbone's part of that."""
        cluster, work = self._cluster, self._work
        plain = cluster.product_flop_per_second / self.slowdown
        backbone = work.backbone_flops / plain / cluster.backbone_efficiency
        classifier = work.classifier_flops / plain / cluster.classifier_efficiency
        backbone_backward = backbone * (1 - cluster.forward_share)
        if self._exchange.kind == "ddp_powersgd":
            backbone_backward += self._power_sgd()
        forward = backbone * cluster.forward_share + classifier / 3
        return forward, classifier * 2 / 3 + backbone_backward, backbone_backward

    def _power_sgd(self) -> float:
        """Factors of gradients, with what they leave: three products and passes over memory."""
        elements, rank = self._work.shared, self._exchange.matrix_rank
        plain = self._cluster.product_flop_per_second / self.slowdown
        products = 3 * 2.0 * elements * rank / plain / self._cluster.classifier_efficiency
        return products + self._memory(POWER_SGD_PASSES * elements)

    def slice_wait(self) -> float:
        group = self._work.ranks_per_node
        if group == 1 or self._work.config.classifier.layout == "replicated":
            return 0.0
        return sum(self._inside(gather.in_node, group - 1) for gather in self._work.gathers)

    def gathers(self) -> tuple[Transfer, ...]:
        ranks = self._work.nodes * self._work.ranks_per_node
        return tuple(
            self._flat(gather, ranks - 1) for gather in self._work.gathers if gather.cross_node
        )

    def node(self) -> float:
        """Gradients zeroed; on the hierarchical route averaged by their owners, and values sent."""
        work, cluster, group = self._work, self._cluster, self._work.ranks_per_node
        whole = work.shared * work.element_bytes
        if work.route == "flat" or group == 1:
            zeroed = self._memory(work.shared + work.sliced)
            if self._exchange.kind != "ddp_post_local_sgd" or group == 1:
                return zeroed
            return zeroed + self._inside(2 * (group - 1) / group * whole, 2 * (group - 1))
        line = cluster.shared or cluster.node
        sent = 2 * (group - 1) / group * whole
        return self.slowdown * (
            sent / line.bytes_per_second + 2 * (group - 1) * line.latency_seconds
        )

    def optimizer(self) -> float:
        passes = OPTIMIZER_PASSES[self._work.config.optimizer.name]
        return self._memory(passes * self._work.owned)

    def encode(self) -> float:
        """Late and hierarchical exchanges copy what they send at least."""
        work, kind = self._work, self._exchange.compression
        if work.nodes == 1 or self._exchange.kind in ("isolated", "ddp_powersgd"):
            return 0.0
        if self._exchange.kind == "ddp_post_local_sgd":
            return 0.0
        elements = work.shared + work.sliced if work.route == "flat" else work.part
        if kind == "none":
            return 0.0 if work.route == "flat" else self._memory(ENCODING_PASSES * elements)
        known = self._cluster.encode_seconds
        if known is None:
            return self._memory(ENCODING_PASSES * elements)
        return self.slowdown * float(getattr(known, kind)) * elements

    def buckets(self) -> tuple[Launch, ...]:
        """Flat all-reduces, each its share of the bytes."""
        work, exchange = self._work, self._exchange
        ranks = work.nodes * work.ranks_per_node
        if work.nodes == 1:
            return self._buckets_in_node(ranks)
        if exchange.kind == "ddp_powersgd":
            steps = POWER_SGD_COLLECTIVES * 2 * (ranks - 1)
            return (Launch(1.0, self._flat(work.window, steps)),)
        if exchange.kind == "ddp_post_local_sgd":
            return (Launch(1.0, self._flat(_across(work), 2 * (ranks - 1))),)
        elements = sum(bucket.elements for bucket in work.buckets)
        return tuple(
            Launch(
                bucket.arrival,
                self._flat(work.window * (bucket.elements / elements), 2 * (ranks - 1)),
            )
            for bucket in work.buckets
        )

    def _buckets_in_node(self, ranks: int) -> tuple[Launch, ...]:
        if ranks == 1:
            return ()
        seconds = self._inside(self._work.window.in_node, 2 * (ranks - 1))
        return (Launch(1.0, Transfer(start=seconds)),)

    def exchange(self) -> Transfer:
        """All peers of a node at once: one rank's bytes by so many ranks through one port."""
        work, cluster = self._work, self._cluster
        if not work.exchanged:
            return Transfer()
        hops = 2 * (work.nodes - 1) * cluster.link.step_seconds
        late = self._exchange.delay > 0
        cpu = cluster.late.cpu_seconds_per_byte if late else cluster.link.cpu_seconds_per_byte
        thread = work.exchanged / (cluster.late.bytes_per_second or math.inf)
        return Transfer(
            start=cluster.late.start_seconds + hops,
            wire=work.exchanged * work.ranks_per_node / cluster.link.bytes_per_second,
            own=max(thread, self.slowdown * cpu * work.exchanged),
            burst=cluster.link.burst_seconds,
        )

    def disturbance(self) -> float:
        """While a late transfer is under way its thread works on the ranks' cores."""
        if not self._exchange.delay or not self._work.exchanged:
            return 0.0
        late = self._cluster.late
        return self.slowdown * (late.cpu_seconds + late.cpu_seconds_per_byte * self._work.exchanged)

    def _flat(self, sent: Bytes, steps: int) -> Transfer:
        """A ring of all ranks; what it sends inside nodes costs their processors too."""
        link = self._cluster.link
        own = self.slowdown * link.cpu_seconds_per_byte * (sent.cross_node + sent.in_node)
        taken = own + self.slowdown * link.cpu_seconds
        return Transfer(
            start=steps * link.step_seconds,
            wire=sent.cross_node * self._work.ranks_per_node / link.bytes_per_second,
            own=own,
            burst=link.burst_seconds,
            taken=taken if self._cluster.cores_are_busy else 0.0,
        )

    def _inside(self, sent: float, steps: int) -> float:
        node = self._cluster.node
        return self.slowdown * (sent / node.bytes_per_second + steps * node.latency_seconds)

    def _memory(self, elements: float) -> float:
        rate = self._cluster.memory_bytes_per_second
        return self.slowdown * elements * self._work.element_bytes / rate


def _across(work: Workload) -> Bytes:
    """Of post-local SGD's average over all ranks: what a ring of them sends across, and inside."""
    per_node = work.ranks_per_node
    return Bytes(in_node=work.window.cross_node * (per_node - 1), cross_node=work.window.cross_node)
