"""The largest stable learning rate on a parabola, for each kind of exchange.

On f = c/2 x^2 every update rule here is a linear map of its state: it is stable as long as no
eigenvalue of the map exceeds 1 in magnitude. Only the product lr * c matters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from harness.config import Config

Rows = NDArray[np.float64]
"""Rows of a linear map: some components of the state, [numbers, states]."""

SMALLEST, LARGEST, STEP = 1e-6, 1e3, 1.03
"""The grid of lr * c that is searched for the first unstable product: from, to, factor."""
NEUTRAL = 1e-9
"""Tolerance above 1 for the eigenvalue of a direction without curvature."""


def runs_of(precision: str) -> int:
    """Number of runs in which a batch goes through the network to find the curvature.

    Each run has two images or more, and its own batch statistics. The estimate runs without
    autocast, so activations are larger than in a bf16 run, and its batches are split in two.
    """
    return 2 if precision == "bf16" else 1


@dataclass(frozen=True)
class Dynamics:
    """The settings of a run that decide when its updates become unstable."""

    momentum: float
    nesterov: bool
    delay: int = 0
    """Windows."""
    averaging: bool = False
    """True: nodes step on their own gradients and average their movements. False: gradients are
    averaged."""
    passes: int = 1
    """Steps per window, with averaging."""
    pieces: int = 1
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    alone: bool = False
    """averaging: by one node, which is apart from nobody."""
    outer_nesterov: bool = True
    """False: the outer optimizer has the momentum of a heavy ball."""
    slice_pieces: int | None = None
    """averaging: pieces of a slice that has a pace of its own."""


@lru_cache
def largest_stable_product(dynamics: Dynamics) -> float:
    """The product lr * curvature up to which the run is stable from 0 on, to a relative 1e-6.

    Stable products above the first unstable one are ignored. 0 if no stable product was found.
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
    """For each kind of motion that must decay, the function from lr * curvature to its linear
    map."""
    if not dynamics.averaging:
        return [partial(_late_gradient, dynamics)]
    if dynamics.slice_pieces is not None:
        # A direction that lies in both chunk and slice is at least as stable as the worse of both:
        # not proven, but true of all directions in tests/train/test_stability.py.
        paces = dynamics.pieces, dynamics.slice_pieces
        alike = [replace(dynamics, pieces=pace, slice_pieces=None) for pace in paces]
        return [each for one in alike for each in _maps(one)]
    # The direction with curvature may lie in one piece, or spread evenly over all of them.
    in_one, evenly = np.eye(dynamics.pieces)[0], np.full(dynamics.pieces, dynamics.pieces**-0.5)
    directions = [in_one, evenly][: dynamics.pieces]
    apart = [partial(_nodes_apart, dynamics, each) for each in directions]
    if dynamics.alone:
        apart = []
    if (dynamics.outer_lr, dynamics.outer_momentum) != (1.0, 0.0):
        return apart + [partial(_nodes_together, dynamics, each) for each in directions]
    # What is in flight cancels out in the mean of the nodes, so the mean follows plain SGD.
    return [*apart, partial(_late_gradient, replace(dynamics, delay=0))]


def _radius(matrix: Rows) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def _late_gradient(dynamics: Dynamics, product: float) -> Rows:
    """One window of `delayed`. The state is x now and in the last `delay` windows, and the
    velocity."""
    size = dynamics.delay + 2
    state = np.eye(size)
    values, velocity = state[:-1], state[-1]
    step, velocity = _sgd(dynamics, product * values[-1], velocity)
    return np.vstack((values[0] - step, values[:-1], velocity))


def _sgd(dynamics: Dynamics, gradient: Rows, velocity: Rows) -> tuple[Rows, Rows]:
    """The step to subtract from the values, and the new velocity: torch's SGD with lr 1."""
    velocity = dynamics.momentum * velocity + gradient
    return (gradient + dynamics.momentum * velocity if dynamics.nesterov else velocity), velocity


@dataclass
class _Nodes:
    """`averaging` when only one direction of parameter space has curvature.

    Each field gives, by piece, the coordinates along that direction as rows over the initial state:
    [pieces, states].
    """

    direction: Rows
    """Unit vector, [pieces, 1]."""
    values: Rows
    velocity: Rows
    unsent: Rows
    """Movement since the piece was last sent."""
    flight: list[Rows]
    """Movements in flight, the oldest first: [states] each, one per window."""
    outer_velocity: Rows

    def cycle(self, dynamics: Dynamics, product: float, apart: bool) -> None:
        """Runs one window per piece; see `exchange.averaging` for the order of operations."""
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
        """Between nodes the mean of what they sent is 0, so landing takes this node's movement
        back. For the mean of the nodes, the outer optimizer's step replaces the movement."""
        sent = self.flight.pop(0)
        self.values[piece] -= sent
        if not apart:
            beta = dynamics.outer_momentum
            velocity = beta * self.outer_velocity[piece] + sent
            self.outer_velocity[piece] = velocity
            outer = sent + beta * velocity if dynamics.outer_nesterov else velocity
            self.values[piece] += dynamics.outer_lr * outer


def _nodes_apart(dynamics: Dynamics, direction: Rows, product: float) -> Rows:
    """The map of a node's deviation from the mean: its own movements that have not landed yet."""
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
    """The map of the nodes' mean under an outer optimizer."""
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
    """The settings that decide how large lr may be in a window; None if unknown, as for AdamW.

    On one node an average is the node's own value: plain SGD, unless there is an outer optimizer.
    `isolated` nodes are undelayed SGD each. What a lossy wire holds back, and what PowerSGD leaves
    out, is treated as noise: the limits are those of the exact averages.
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
        # Drawn rows are sent as soon as they have moved.
        slice_pieces=(1 if given.slice_rows == "drawn" else given.slice_pace) if local else None,
        outer_lr=given.outer_lr,
        outer_momentum=given.outer_momentum,
        outer_nesterov=traits.outer_nesterov,
    )
