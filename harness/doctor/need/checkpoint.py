"""Size of a checkpoint, and the host memory that writing one takes."""

from harness.doctor.need.sizes import Sizes
from harness.exchange.kinds import Crosses


def _exchange_states(sizes: Sizes) -> int:
    """States per element that the exchange resumes from."""
    exchange = sizes.config.exchange
    loses = exchange.compression != "none" or exchange.traits.crosses is Crosses.FACTORS
    return int(exchange.has_outer or (loses and exchange.traits.error_feedback))


def saving_bytes(sizes: Sizes) -> int:
    """Host memory taken while writing: all states of the node, and a copy of a file's content."""
    anatomy = sizes.anatomy
    states = sizes.optimizer_states + _exchange_states(sizes)
    of_slice = sizes.classes * anatomy.per_class
    file = (1 + states) * max(anatomy.backbone_elements, of_slice)
    return states * sizes.parameters + (file + sizes.backbone.largest) * sizes.element_bytes


def checkpoint_bytes(sizes: Sizes) -> int:
    """Size on disk."""
    whole = sizes.anatomy.backbone_elements + sizes.anatomy.classifier_elements
    states = 1 + sizes.optimizer_states + _exchange_states(sizes)
    return whole * sizes.element_bytes * states
