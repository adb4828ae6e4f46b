"""The largest stable learning rate on a parabola, for each way of exchanging.

On f = c/2 x^2 every update rule here is a linear map of what it remembers: it is stable as long as
no eigenvalue of the map is larger than 1. All that counts is the product lr * c.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from harness.config import Config

Rows = NDArray[np.float64]
"""Some numbers of a state, [numbers, states]."""

SMALLEST, LARGEST, STEP = 1e-6, 1e3, 1.03
"""The grid of lr * c on which the first unstable one is looked for."""
NEUTRAL = 1e-9
"""How far above 1 an eigenvalue of a direction without curvature may come out."""


def runs_of(precision: str) -> int:
    """The number of runs in which a batch goes through the network to find the curvature.

    Each has two images or more. Without autocast activations are larger. Batch statistics are each
    run's own.
    """
    return 2 if precision == "bf16" else 1


@dataclass(frozen=True)
class Dynamics:
    """What of a run's settings decides when its updates run away."""

    momentum: float
    nesterov: bool
    delay: int = 0
    """Windows."""
    averaging: bool = False
    """Nodes step on their own gradient, and their movements are averaged; else gradients are."""
    passes: int = 1
    """averaging: steps in a window."""
    pieces: int = 1
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    alone: bool = False
    """averaging: by one node, which is apart from nobody."""
    outer_nesterov: bool = True
    """False: the outer optimizer has the momentum of a heavy ball."""


@lru_cache
def largest_stable_product(dynamics: Dynamics) -> float:
    """The lr * curvature below which the run is stable, down to 0; within 1e-6 of it.

    Above it there may be stable ones again: they do not count. 0: none was found.
    """
    maps = _maps(dynamics)

    def stable(product: float) -> bool:
        return all(_radius(each(product)) <= 1 + NEUTRAL for each in maps)

    below, above = 0.0, SMALLEST
    while stable(above):
        below, above = above, above * STEP
        if above > LARGEST:
            return LARGEST
    while above - below > 1e-6 * above:
        middle = (below + above) / 2
        below, above = (middle, above) if stable(middle) else (below, middle)
    return below


def _maps(dynamics: Dynamics) -> Sequence[Callable[[float], Rows]]:
    """Product -> the linear map, for each kind of motion that must die out."""
    if not dynamics.averaging:
        return [partial(_late_gradient, dynamics)]
    # A direction of parameter space may lie in one piece, or evenly over all of them.
    in_one, evenly = np.eye(dynamics.pieces)[0], np.full(dynamics.pieces, dynamics.pieces**-0.5)
    directions = [in_one, evenly][: dynamics.pieces]
    apart = [partial(_nodes_apart, dynamics, each) for each in directions]
    if dynamics.alone:
        apart = []
    if (dynamics.outer_lr, dynamics.outer_momentum) != (1.0, 0.0):
        return apart + [partial(_nodes_together, dynamics, each) for each in directions]
    # What is under way cancels out in the mean of the nodes: it follows plain SGD.
    return [*apart, partial(_late_gradient, replace(dynamics, delay=0))]


def _radius(matrix: Rows) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def _late_gradient(dynamics: Dynamics, product: float) -> Rows:
    """One window of `delayed`: x now and of the last `delay` windows, and the velocity."""
    size = dynamics.delay + 2
    state = np.eye(size)
    values, velocity = state[:-1], state[-1]
    step, velocity = _sgd(dynamics, product * values[-1], velocity)
    return np.vstack((values[0] - step, values[:-1], velocity))


def _sgd(dynamics: Dynamics, gradient: Rows, velocity: Rows) -> tuple[Rows, Rows]:
    """What is taken off the values, and the new velocity: torch's SGD with lr 1."""
    velocity = dynamics.momentum * velocity + gradient
    return (gradient + dynamics.momentum * velocity if dynamics.nesterov else velocity), velocity


@dataclass
class _Nodes:
    """`averaging` where only one direction of parameter space has curvature.

    How far along it, by piece: [pieces, states] each.
    """

    direction: Rows
    """Of length 1: [pieces, 1]."""
    values: Rows
    velocity: Rows
    unsent: Rows
    """What moved since the piece was last sent."""
    flight: list[Rows]
    """What is under way, the oldest first: [states] each, one a window."""
    outer_velocity: Rows

    def cycle(self, dynamics: Dynamics, product: float, apart: bool) -> None:
        """As many windows as there are pieces; see `exchange.averaging` for their order."""
        pieces, delay = dynamics.pieces, dynamics.delay
        for window in range(pieces):
            for _ in range(dynamics.passes):
                slope = product * (self.direction * self.values).sum(0)
                gradient = self.direction * slope
                step, self.velocity = _sgd(dynamics, gradient, self.velocity)
                self.values = self.values - step
                self.unsent = self.unsent - step
            if delay:
                self._land(dynamics, (window - delay) % pieces, apart)
            self.flight.append(self.unsent[window].copy())
            self.unsent[window] = 0
            if not delay:
                self._land(dynamics, window, apart)

    def _land(self, dynamics: Dynamics, piece: int, apart: bool) -> None:
        """Nodes apart: what one sent is taken back. Together: the outer step takes its place."""
        sent = self.flight.pop(0)
        self.values[piece] -= sent
        if not apart:
            beta = dynamics.outer_momentum
            velocity = beta * self.outer_velocity[piece] + sent
            self.outer_velocity[piece] = velocity
            outer = sent + beta * velocity if dynamics.outer_nesterov else velocity
            self.values[piece] += dynamics.outer_lr * outer


def _nodes_apart(dynamics: Dynamics, direction: Rows, product: float) -> Rows:
    """How far a node is from the mean of all: by what of its own has not landed yet."""
    pieces, delay = dynamics.pieces, dynamics.delay
    state = np.eye(2 * pieces + delay)
    velocity, unsent, flight = np.split(state, [pieces, 2 * pieces])
    values = unsent.copy()
    for age, sent in enumerate(reversed(flight)):
        values[(-1 - age) % pieces] += sent
    column, outer = direction[:, None], np.zeros_like(values)
    nodes = _Nodes(column, values, velocity, unsent, list(flight), outer)
    nodes.cycle(dynamics, product, apart=True)
    return np.vstack((nodes.velocity, nodes.unsent, *nodes.flight))


def _nodes_together(dynamics: Dynamics, direction: Rows, product: float) -> Rows:
    """The mean of all nodes under an outer optimizer."""
    pieces = dynamics.pieces
    state = np.eye(4 * pieces + dynamics.delay)
    cuts = [pieces, 2 * pieces, 3 * pieces, 4 * pieces]
    values, velocity, unsent, outer_velocity, flight = np.split(state, cuts)
    column = direction[:, None]
    nodes = _Nodes(column, values, velocity, unsent, list(flight), outer_velocity)
    nodes.cycle(dynamics, product, apart=False)
    return np.vstack(
        (nodes.values, nodes.velocity, nodes.unsent, nodes.outer_velocity, *nodes.flight)
    )


def dynamics_of(config: Config, window: int, nodes: int) -> Dynamics | None:
    """What decides how large lr may be in a window; None: not known, for AdamW.

    On one node an average is the node's own: plain SGD, but for an outer optimizer. `isolated`
    nodes are undelayed SGD each. What a lossy wire holds back, and what PowerSGD leaves out, is
    taken for noise: their limits are those of the exact averages.
    """
    given, optimizer = config.exchange, config.optimizer
    if optimizer.name != "sgd":
        return None
    traits = given.traits
    local = traits.local_steps and traits.meets
    late = traits.late and window >= given.synchronous_windows
    alone = nodes == 1 and local
    if alone and not given.has_outer:
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
        outer_nesterov=traits.outer_nesterov,
    )
