"""The phases of a window's time: names for runs and for what reads them."""

from enum import StrEnum


class Phase(StrEnum):
    """What a rank does or waits for; one word each in metrics and tables."""

    DATA = "data"
    FORWARD = "forward"
    BACKWARD = "backward"
    SLICE_WAIT = "slice_wait"
    """Waits for the features or statistics of its slice group."""
    NODE_WAIT = "node_wait"
    """Waits for the backbone's gradients inside its node."""
    EXCHANGE_WAIT = "exchange_wait"
    """Waits for an exchange between nodes."""
    OPTIMIZER = "optimizer"
    OTHER = "other"
    """Everything between the phases: bookkeeping, logging, copies."""
