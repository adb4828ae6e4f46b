"""A cluster in figures: what a prediction needs to know of machines, read from a YAML file."""

import math
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from harness.config import Config
from harness.config.mistakes import validated
from harness.config.section import Section, Text
from harness.config.yaml_files import read_yaml
from harness.errors import UserError


class Line(Section):
    """The cost of a collective inside a node: a latency per step, and a rate for its bytes."""

    latency_seconds: float = Field(default=2e-5, ge=0)
    """Latency of each step, s."""
    bytes_per_second: float = Field(gt=0)
    """Rate at which a rank sends while all ranks of its node do, bytes/s."""


class Link(Section):
    """The network, seen at one node's port."""

    bytes_per_second: float = Field(gt=0)
    """Lasting rate of payload, each way, bytes/s; over TCP about 0.95 of the port's rate."""
    step_seconds: float = Field(default=5e-5, ge=0)
    """One step of a ring between nodes, including waking the ranks up, s."""
    burst_seconds: float = Field(default=0.0, ge=0)
    """Burst of a rested link (token bucket), in seconds that it takes at the lasting rate, s."""
    cpu_seconds: float = Field(default=0.0, ge=0)
    """Processor time of a rank per all-reduce, independent of its size, s; 0 if cards do it."""
    cpu_seconds_per_byte: float = Field(default=0.0, ge=0)
    """Processor time per byte that a rank sends in a blocking exchange, s; 0 if cards do it."""


class Late(Section):
    """Horovod's background thread, which carries late exchanges."""

    start_seconds: float = Field(default=2e-3, ge=0)
    """From a launch until bytes move: half a cycle, and the ranks' agreement on it, s."""
    cpu_seconds: float = Field(default=0.0, ge=0)
    """Processor time taken from a rank per exchange of any size, s; 0 if cores are idle."""
    cpu_seconds_per_byte: float = Field(default=0.0, ge=0)
    """Processor time taken from the ranks per byte that a rank sends, s; 0 if cores are idle."""
    bytes_per_second: float | None = Field(default=None, gt=0)
    """Rate at which a rank's thread sends and adds in host memory, bytes/s; none: the link's."""
    step_seconds: float | None = Field(default=None, ge=0)
    """One step of a ring of peers, in host memory, s; none: the link's."""
    copy_bytes_per_second: float | None = Field(default=None, gt=0)
    """Rate of copies between card and host memory, bytes/s; none: no copies are needed."""


class Stalls(Section):
    """Nodes that are slow from time to time."""

    every_seconds: float = Field(gt=0)
    """Mean time between the starts of two stalls of one node, s."""
    for_seconds: float = Field(ge=0)
    """Duration of a stall, s."""
    speed: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of its speed that a node keeps during a stall."""
    nodes: int = Field(default=1, ge=1)
    """Number of nodes that stall."""


class Encoding(Section):
    """Time to pack, to unpack and to keep what was not sent, s per element."""

    fp16: float = Field(gt=0)
    int8: float = Field(gt=0)
    int4: float = Field(gt=0)
    sign: float | None = Field(default=None, gt=0)
    """None: not measured, because the calibration is older than this compression."""


class Cluster(Section):
    """The machines; all times are those of a rank that has its cores, or a card, to itself."""

    name: Text = "cluster"
    """Name of the cluster in tables."""
    nodes: int = Field(ge=1)
    """Number of machines."""
    ranks_per_node: int = Field(ge=1)
    """Cards, or processes, on each machine."""
    cores_per_node: float | None = Field(default=None, gt=0)
    """Cores shared by a node's ranks if they compute on cores; none: they compute on cards."""
    threads: int = Field(default=1, ge=1)
    """Threads of a rank, which are the cores that it needs for the speeds here."""
    sharing_penalty: float = Field(default=0.0, ge=0)
    """Fraction by which work grows each time the threads on a core double: caches are shared
    too."""
    product_flop_per_second: float = Field(gt=0)
    """Speed of a rank in a plain matrix product, 1/s."""
    backbone_efficiency: float = Field(gt=0)
    """Fraction of that speed reached by the backbone's forward and backward pass."""
    classifier_efficiency: float = Field(gt=0)
    """Fraction of that speed reached by logits, loss and their backward pass."""
    forward_share: float = Field(default=1 / 3, gt=0, lt=1)
    """Fraction of the backbone's time in a micro-batch that is the forward pass."""
    micro_batch_seconds: float = Field(default=0.0, ge=0)
    """Overhead of a micro-batch beyond all that is named here, such as bookkeeping, s."""
    image_seconds: float = Field(default=0.0, ge=0)
    """Time to read an image within the step, s; 0 if it is read ahead."""
    memory_bytes: float = Field(gt=0)
    """Memory available to a rank, bytes."""
    memory_bytes_per_second: float = Field(gt=0)
    """Bytes that a rank reads and writes per second in a plain pass over tensors, bytes/s."""
    encode_seconds: Encoding | None = None
    """Cost of compression per element; none: ten passes of float32 over memory."""
    node: Line
    """Cost of gathering features inside a node."""
    shared: Line | None = None
    """Cost inside a node of zeroing gradients, averaging them by owner and sending values back;
    none: `node`."""
    link: Link
    """The network between nodes."""
    link_known: bool = True
    """False if `link` is a placeholder, because all figures come from a single machine."""
    late: Late = Late()
    """Cost of late exchanges."""
    jitter: float = Field(default=0.0, ge=0, le=1)
    """Standard deviation of a micro-batch's time on a rank, divided by its mean."""
    stalls: Stalls | None = None
    """Nodes that are slow from time to time; used by the simulator only."""
    measured: dict[str, Any] | None = None
    """Origin of the figures if they were measured: commit, date, config."""

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
        """Factor by which work on a rank takes longer because ranks share cores."""
        if self.cores_per_node is None:
            return 1.0
        on_a_core = max(1.0, self.ranks_per_node * self.threads / self.cores_per_node)
        return on_a_core * (1 + self.sharing_penalty * math.log2(on_a_core))

    @property
    def cores_are_busy(self) -> bool:
        """Whether ranks leave no core idle, so that transfer threads take time from them."""
        cores = self.cores_per_node
        return cores is not None and self.ranks_per_node * self.threads >= cores

    def on(self, nodes: int, ranks_per_node: int) -> "Cluster":
        """The cluster with other numbers of machines and ranks; a node's cores and memory stay the
        same, while each card brings its own memory."""
        shares = 1.0 if self.on_cards else self.ranks_per_node / ranks_per_node
        return self.model_copy(
            update={
                "nodes": nodes,
                "ranks_per_node": ranks_per_node,
                "memory_bytes": self.memory_bytes * shares,
            }
        )

    def with_rate(self, bytes_per_second: float) -> "Cluster":
        """The same cluster with another lasting rate of payload on each node's link."""
        link = self.link.model_copy(update={"bytes_per_second": bytes_per_second})
        return self.model_copy(update={"link": link})

    def write(self, path: Path) -> None:
        """Writes the YAML file that `read_cluster` reads."""
        values = self.model_dump(mode="json", exclude_none=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


OF_EXPERIMENTS = {"base", *Config.model_fields} - Cluster.model_fields.keys()
"""Keys that only an experiment has."""


def read_cluster(path: Path) -> Cluster:
    """Reads a cluster's file. Raises UserError if it is missing, not YAML, or not a cluster."""
    given = read_yaml(path, "cluster")
    if given.keys() & OF_EXPERIMENTS:
        raise UserError(
            f"{path} is an experiment, not a cluster; name it without --cluster, and give "
            f"--cluster a file of figures as in experiments/clusters/"
        )
    return validated(Cluster, given, str(path))
