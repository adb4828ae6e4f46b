"""A cluster in figures: what a prediction needs to know of machines, owned or not; a YAML file."""

import math
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from harness.config.mistakes import read_model
from harness.config.section import Section, Text


class Line(Section):
    """What a collective inside a node takes: a start, and its bytes at a rate."""

    latency_seconds: float = Field(default=2e-5, ge=0)
    """For each step of it, s."""
    bytes_per_second: float = Field(gt=0)
    """That a rank sends while all of its node do, bytes/s."""


class Link(Section):
    """The network, at one node's port."""

    bytes_per_second: float = Field(gt=0)
    """Of payload that lasts, each way, bytes/s: about 0.95 of the port's rate over TCP."""
    step_seconds: float = Field(default=5e-5, ge=0)
    """One step of a ring between nodes, with waking the ranks up, s."""
    burst_seconds: float = Field(default=0.0, ge=0)
    """A link that has rested carries at once what else takes it so long (token buckets), s."""
    cpu_seconds: float = Field(default=0.0, ge=0)
    """Of a rank's processor for each all-reduce, whatever its size, s; 0: cards do it."""
    cpu_seconds_per_byte: float = Field(default=0.0, ge=0)
    """Of the ranks' processors per byte that a rank sends and is waited for, s; 0: cards do it."""


class Late(Section):
    """Horovod's background thread, by which late and hierarchical exchanges go."""

    start_seconds: float = Field(default=2e-3, ge=0)
    """From a launch until bytes move: half a cycle and the ranks' agreement on it, s."""
    cpu_seconds: float = Field(default=0.0, ge=0)
    """Taken from a rank's processor by each exchange, whatever its size, s; 0 where it is idle."""
    cpu_seconds_per_byte: float = Field(default=0.0, ge=0)
    """Taken from the ranks' processors per byte that a rank sends, s; 0 where cores are idle."""
    bytes_per_second: float | None = Field(default=None, gt=0)
    """That one rank's thread can send and add up in host memory; none: whatever the link can."""
    step_seconds: float | None = Field(default=None, ge=0)
    """One step of a ring of peers, in host memory, s; none: the link's."""
    copy_bytes_per_second: float | None = Field(default=None, gt=0)
    """Between a card and host memory, by which its exchanges go, bytes/s; none: no copies."""


class Stalls(Section):
    """A node that now and then is slow."""

    every_seconds: float = Field(gt=0)
    """Between two beginnings on one node, mean, s."""
    for_seconds: float = Field(ge=0)
    """How long, s."""
    speed: float = Field(default=0.0, ge=0, lt=1)
    """Share of its speed that is left meanwhile."""
    nodes: int = Field(default=1, ge=1)
    """How many nodes are so."""


class Encoding(Section):
    """Packing, unpacking and remembering what was not sent, s an element."""

    fp16: float = Field(gt=0)
    int8: float = Field(gt=0)
    int4: float = Field(gt=0)
    sign: float | None = Field(default=None, gt=0)
    """None: not measured, of a calibration that is older than this wire."""


class Cluster(Section):
    """Times are those of a rank that has a core, or a card, to itself."""

    name: Text = "cluster"
    """What tables call it."""
    nodes: int = Field(ge=1)
    """Machines."""
    ranks_per_node: int = Field(ge=1)
    """Cards, or processes, on each."""
    cores_per_node: float | None = Field(default=None, gt=0)
    """Cores that a node's ranks have to share, where they compute on cores; none: cards."""
    sharing_penalty: float = Field(default=0.0, ge=0)
    """Share by which work grows each time the ranks on a core double: caches are shared too."""
    product_flop_per_second: float = Field(gt=0)
    """Of a rank in a plain matrix product, 1/s."""
    backbone_efficiency: float = Field(gt=0)
    """Share of that which the backbone's forward and backward pass reach."""
    classifier_efficiency: float = Field(gt=0)
    """Share of that which logits, loss and their backward pass reach."""
    forward_share: float = Field(default=1 / 3, gt=0, lt=1)
    """Of a micro-batch's backbone time, in the forward pass."""
    micro_batch_seconds: float = Field(default=0.0, ge=0)
    """What a micro-batch takes beside all that is named here: the step's own bookkeeping, s."""
    image_seconds: float = Field(default=0.0, ge=0)
    """Reading an image in the step, s; 0 where it is read ahead."""
    memory_bytes: float = Field(gt=0)
    """That a rank can have, bytes."""
    memory_bytes_per_second: float = Field(gt=0)
    """Read and written by a plain pass over tensors, a rank's, bytes/s."""
    encode_seconds: Encoding | None = None
    """Of compression, an element; none: ten passes of float32 over memory."""
    node: Line
    """Gathering features inside a node."""
    shared: Line | None = None
    """Inside a node: gradients zeroed, averaged by their owners, values sent out; none: `node`."""
    link: Link
    """Between nodes."""
    link_known: bool = True
    """False where `link` is made up, because all figures are of one machine: none of more."""
    late: Late = Late()
    """Late exchanges."""
    jitter: float = Field(default=0.0, ge=0, le=1)
    """Standard deviation of a micro-batch's time on a rank by its mean."""
    stalls: Stalls | None = None
    """Nodes that are slow now and then; for the simulator."""
    measured: dict[str, Any] | None = None
    """Where the figures come from, if they were measured: commit, date, config."""

    @model_validator(mode="after")
    def _stalls_end(self) -> "Cluster":
        stalls = self.stalls
        if stalls is not None and stalls.for_seconds >= stalls.every_seconds:
            raise ValueError(
                f"stalls.for_seconds={stalls.for_seconds:g} is not below "
                f"stalls.every_seconds={stalls.every_seconds:g}"
            )
        return self

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def on_cards(self) -> bool:
        return self.cores_per_node is None

    @property
    def slowdown(self) -> float:
        """Times longer that work on a rank takes because ranks share cores."""
        if self.cores_per_node is None:
            return 1.0
        ranks_on_a_core = max(1.0, self.ranks_per_node / self.cores_per_node)
        return ranks_on_a_core * (1 + self.sharing_penalty * math.log2(ranks_on_a_core))

    @property
    def cores_are_busy(self) -> bool:
        """Ranks leave no core idle: what threads do for transfers is taken from them."""
        return self.cores_per_node is not None and self.ranks_per_node >= self.cores_per_node

    def on(self, nodes: int, ranks_per_node: int) -> "Cluster":
        """The same machines, more or fewer of them. Cores of a node stay as many."""
        return self.model_copy(update={"nodes": nodes, "ranks_per_node": ranks_per_node})

    def with_rate(self, bytes_per_second: float) -> "Cluster":
        """The same, with another lasting rate of payload on each node's link."""
        link = self.link.model_copy(update={"bytes_per_second": bytes_per_second})
        return self.model_copy(update={"link": link})

    def write(self, path: Path) -> None:
        values = self.model_dump(mode="json", exclude_none=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def read_cluster(path: Path) -> Cluster:
    """Raises UserError for a file that is missing, no YAML, or holds something else."""
    return read_model(path, Cluster, "cluster")
