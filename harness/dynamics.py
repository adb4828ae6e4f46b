"""Which of a run's settings decide how large its learning rate may be: for `stability`."""

from harness.config import Config
from harness.stability import Dynamics

LATE = ("delayed", "averaging")
"""Kinds of exchange that have something under way when a window ends."""
LOCAL_STEPS = ("averaging", "ddp_post_local_sgd")
"""Kinds whose nodes step on their own, and average what comes of it."""


def dynamics_of(config: Config, window: int, nodes: int) -> Dynamics | None:
    """What decides how large lr may be in a window; None: not known, for AdamW.

    On one node an average is the node's own: plain SGD, but for an outer optimizer. `isolated`
    nodes are undelayed SGD each. What a lossy wire holds back, and what PowerSGD leaves out, is
    taken for noise: their limits are those of the exact averages.
    """
    exchange, optimizer = config.exchange, config.optimizer
    if optimizer.name != "sgd":
        return None
    alone = nodes == 1 and exchange.kind in LOCAL_STEPS
    outer = (exchange.outer_lr, exchange.outer_momentum) != (1.0, 0.0)
    late = exchange.kind in LATE and window >= exchange.synchronous_windows
    local = exchange.kind in LOCAL_STEPS
    if alone and not outer:
        late = local = False
    return Dynamics(
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov and optimizer.momentum > 0,
        delay=exchange.delay if late else 0,
        averaging=local,
        passes=exchange.backward_passes_per_step if local else 1,
        alone=local and alone,
        pieces=exchange.pieces if local else 1,
        outer_lr=exchange.outer_lr,
        outer_momentum=exchange.outer_momentum,
    )
