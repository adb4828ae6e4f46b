"""Size of a checkpoint, and the host memory that its copies take."""

from harness.doctor.need.sizes import Sizes
from harness.exchange.kinds import Crosses


def _exchange_states(sizes: Sizes) -> int:
    """States per element that the exchange resumes from."""
    exchange = sizes.config.exchange
    loses = exchange.compression != "none" or exchange.traits.crosses is Crosses.FACTORS
    return int(exchange.has_outer or (loses and exchange.traits.error_feedback))


def copies_bytes(sizes: Sizes) -> int:
    """Host memory of the copies that a thread writes while training goes on: of the rank that
    writes the backbone and its slice."""
    anatomy = sizes.anatomy
    states = 1 + sizes.optimizer_states + _exchange_states(sizes)
    of_slice = sizes.classes * anatomy.per_class
    trained = states * (anatomy.backbone_elements + of_slice)
    return (trained + anatomy.frozen) * sizes.element_bytes


def saving_bytes(sizes: Sizes) -> int:
    """Host memory taken beside the copies while they are made: one state of the node in full."""
    states = sizes.optimizer_states + _exchange_states(sizes)
    return max(sizes.shared, sizes.sliced) * sizes.element_bytes if states else 0


def checkpoint_bytes(sizes: Sizes) -> int:
    """Size on disk."""
    whole = sizes.anatomy.backbone_elements + sizes.anatomy.classifier_elements
    states = 1 + sizes.optimizer_states + _exchange_states(sizes)
    return (whole * states + sizes.anatomy.frozen) * sizes.element_bytes
