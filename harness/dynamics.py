"""Which of a run's settings decide how large its learning rate may be: for `stability`."""

from harness.config import Config
from harness.train.stability import Dynamics

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
    given, optimizer = config.exchange, config.optimizer
    if optimizer.name != "sgd":
        return None
    alone = nodes == 1 and given.kind in LOCAL_STEPS
    outer = (given.outer_lr, given.outer_momentum) != (1.0, 0.0)
    late = given.kind in LATE and window >= given.synchronous_windows
    local = given.kind in LOCAL_STEPS
    if alone and not outer:
        late = local = False
    return Dynamics(
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov and optimizer.momentum > 0,
        delay=given.delay if late else 0,
        averaging=local,
        passes=given.backward_passes_per_step if local else 1,
        alone=local and alone,
        pieces=given.pieces if local else 1,
        outer_lr=given.outer_lr,
        outer_momentum=given.outer_momentum,
    )
