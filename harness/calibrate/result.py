"""What one short calibration measured on the ranks: times of the pieces that steps are made of."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config.yaml_files import MOST_JSON_BYTES, read_text
from harness.errors import UserError, one_line
from harness.measure.summary import Record


class Point(Record):
    """One operation of one size, all ranks at once; medians over repetitions, means over ranks."""

    size: float
    """Bytes, elements or floating-point operations, as the name of the list says."""
    seconds: float
    cpu_seconds: float
    """Of the processor, all threads of the rank; wall time less this is waiting."""


class Calibration(Record):
    """Times as measured, on ranks that share cores where they do."""

    hosts: tuple[str, ...]
    """Of the nodes."""
    nodes: int
    ranks_per_node: int
    cores_per_node: float | None
    """Cores that a node's ranks have for themselves, by their affinities; None on cards."""
    threads: int
    """Of a rank."""
    device: str
    memory_bytes: int
    """That a rank can have: a card's, or a node's divided by its ranks."""
    commit: str | None
    measured_at: str
    """Date and time, UTC."""
    config: dict[str, Any]
    """What was measured, by dotted key."""

    product: Point
    """A second of plain matrix products, by operations."""
    backbone: tuple[Point, ...]
    """A micro-batch through the backbone, forward and backward, by its operations."""
    backbone_alone_seconds: float
    """The same while the ranks that share its cores rest."""
    backbone_variation: float
    """Standard deviation of a micro-batch's time by its mean, from its quartiles."""
    classifier: tuple[Point, ...]
    """Logits, loss and their backward pass, by operations."""
    optimizer: tuple[Point, ...]
    """Step, by bytes of parameters."""
    encode: dict[str, tuple[Point, ...]]
    """Packing and unpacking for the wire, by elements."""
    gather: tuple[Point, ...]
    """In the node: all-gather, by bytes of a rank's block."""
    flat: tuple[Point, ...]
    """All ranks: all-reduce through torch, by bytes of the buffer, one after the other."""
    flat_after_rest: tuple[Point, ...]
    """The same after the link has rested."""
    peers: tuple[Point, ...]
    """Each local rank with its peers: all-reduce through Horovod, by bytes of the buffer."""
    host_copy: tuple[Point, ...] = ()
    """From a card to pinned host memory, by bytes; empty on cores, whose exchanges need none."""
    idle: Point
    """A pause: what a rank's threads take of the processor while they have nothing to do."""
    under_way: tuple[Point, ...]
    """As `peers`, launched before such a pause, and waited for when it is long done."""
    window: Point
    """A window of nodes that do not meet, classes sliced over the node, as training runs it."""
    window_phases: dict[str, float]
    """Of it, seconds, means."""

    @property
    def on_cards(self) -> bool:
        return self.cores_per_node is None


def read_calibration(path: Path) -> Calibration:
    try:
        return Calibration.model_validate_json(read_text(path, "calibration", MOST_JSON_BYTES))
    except ValidationError as error:
        raise UserError(f"{path} holds no calibration: {one_line(error)}") from error
