"""The result of a calibration: measured times of the pieces of a training step."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config.yaml_files import MOST_JSON_BYTES, read_text
from harness.errors import UserError, one_line
from harness.measure.summary import Record

PRINTED = "calibration: "
"""Start of the line with a calibration that is printed."""


class Point(Record):
    """The time of one operation of one size, run by all ranks at the same time.

    Medians over repetitions (for transfers the fastest), means over ranks.
    """

    size: float
    """Bytes, elements or floating-point operations, depending on the operation."""
    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Processor time of all threads of the rank; wall time minus this is waiting."""


class Calibration(Record):
    """Times measured on the ranks of a launch; ranks that share cores were timed sharing them."""

    hosts: tuple[str, ...]
    """Host name of every node."""
    nodes: int
    ranks_per_node: int
    cores_per_node: float | None
    """Cores that a node's ranks have for themselves, by their affinities; None on cards."""
    threads: int
    """Threads of a rank."""
    device: str
    """The card's name, or cpu."""
    memory_bytes: int
    """Memory that a rank can have: its card's, or the free memory of the node (or within the limit
    of the container) divided by its ranks."""
    commit: str | None
    """Git commit of the harness; None if unknown."""
    measured_at: str
    """Date and time, UTC."""
    config: dict[str, Any]
    """The config that was measured, by dotted key."""

    product: Point
    """One second of plain matrix products, by floating-point operations."""
    backbone: tuple[Point, ...]
    """Forward and backward pass of a micro-batch through the backbone, by operations."""
    backbone_alone_seconds: float
    """Wall time of the same passes while the ranks that share the rank's cores rest."""
    backbone_variation: float
    """Standard deviation of a micro-batch's time, estimated from quartiles, over its median."""
    classifier: tuple[Point, ...]
    """Logits, loss and their backward pass, by operations."""
    optimizer: tuple[Point, ...]
    """Step of the optimizer, by bytes of parameters."""
    encode: dict[str, tuple[Point, ...]]
    """Codec -> encoding and decoding for the wire, by elements."""
    gather: tuple[Point, ...]
    """All-gather inside the node, by bytes of a rank's block."""
    flat: tuple[Point, ...]
    """All-reduce over all ranks through torch, by bytes of the buffer, back to back."""
    flat_after_rest: tuple[Point, ...]
    """The same after a pause in which the link's token bucket fills up."""
    peers: tuple[Point, ...]
    """All-reduce of each local rank with its peers through Horovod, by bytes of the buffer."""
    host_copy: tuple[Point, ...] = ()
    """Copy from a card to pinned host memory, by bytes; empty on cores, which need no copy."""
    idle: Point
    """A pause, of which the processor time counts: what a rank's threads use while idle."""
    under_way: tuple[Point, ...]
    """All-reduce as in `peers`, launched before such a pause and waited for after it, when it is
    long complete."""
    window: Point
    """A window of training in which nodes do not communicate, with classes sliced over the node."""
    window_phases: dict[str, float]
    """Phase -> its mean seconds in that window."""

    @property
    def on_cards(self) -> bool:
        return self.cores_per_node is None


def read_calibration(path: Path) -> Calibration:
    """Reads a calibration's file. Raises UserError if it is missing or holds something else."""
    try:
        return Calibration.model_validate_json(read_text(path, "calibration", MOST_JSON_BYTES))
    except ValidationError as error:
        raise UserError(f"{path} holds no calibration: {one_line(error)}") from error
