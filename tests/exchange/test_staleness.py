"""How far a late gradient shrinks the stable learning rate, on a parabola, by the real exchange.

f = c/2 x^2 with the gradient of one window ago. The largest stable lr * c is 0.10 under momentum
0.9, 0.253 with Nesterov's, 1.0 without momentum; without a delay it is 3.8 under momentum 0.9.
"""

from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.config import ExchangeConfig, OptimizerConfig
from harness.exchange.averaging import Averaging, MovingPiece, OuterNesterov, Rotation
from harness.exchange.delayed import Delayed
from harness.exchange.flat import Flat
from harness.exchange.parts import Chunk, Cut, Part
from harness.exchange.slowmo import SlowMomentum
from harness.measure.phase import Phase
from harness.parallel.group import Group
from harness.train.optimizer import make_optimizer
from harness.train.stability import Dynamics, largest_stable_product
from tests.alone import group_of_one, meters, world_of_one
from tests.ranks import run_on_ranks

WINDOWS, LAST = 800, 100

HEAVY_BALL = OptimizerConfig(lr=1.0, momentum=0.9, nesterov=False, weight_decay=0.0)
NESTEROV = OptimizerConfig(lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.0)
PLAIN = OptimizerConfig(lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0)


def late(shared: Flat, sliced: Flat, delay: int, synchronous: int = 0) -> Delayed:
    world = world_of_one()
    config = ExchangeConfig(kind="delayed", delay=delay, synchronous_windows=synchronous)
    part = Part(shared, sliced, False, world.peers)
    return Delayed(Chunk(shared, world.node), part, config)


def trajectories(
    config: OptimizerConfig, rates: list[float], delay: int, windows: int, synchronous: int = 0
) -> Tensor:
    """x after each window, [windows, rates], from x = 1; lr is 1 and the curvatures are `rates`."""
    curvatures = torch.tensor([rates], dtype=torch.float64)
    x = nn.Parameter(torch.ones_like(curvatures))
    shared, sliced = Flat([x], 1, x), Flat([], 1, x)
    optimizer = make_optimizer(config, (shared, sliced))
    exchange = late(shared, sliced, delay, synchronous)
    found = []
    for _ in range(windows):
        shared.grads.zero_()
        (curvatures / 2 * x * x).sum().backward()
        if exchange.gradients_ready(last=True):
            optimizer.step()
        found.append(x.detach()[0].clone())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("config", "delay", "stable", "unstable"),
    [
        pytest.param(HEAVY_BALL, 1, 0.09, 0.11, id="momentum, one window late"),
        pytest.param(NESTEROV, 1, 0.24, 0.27, id="nesterov, one window late"),
        pytest.param(PLAIN, 1, 0.97, 1.03, id="plain, one window late"),
        pytest.param(HEAVY_BALL, 0, 3.75, 3.85, id="momentum, in time"),
        pytest.param(PLAIN, 0, 1.97, 2.03, id="plain, in time"),
    ],
)
def test_the_stable_learning_rate(
    config: OptimizerConfig, delay: int, stable: float, unstable: float
) -> None:
    assert_converges_then_diverges(trajectories(config, [stable, unstable], delay, WINDOWS))


def assert_converges_then_diverges(values: Tensor) -> None:
    """Of [windows, 2]: the first trajectory dies out, the second grows."""
    sizes = values.abs()
    early, late = (part.max(dim=0).values for part in (sizes[LAST : 2 * LAST], sizes[-LAST:]))
    assert late[0] < 0.2 * early[0]
    assert late[1] > 5 * early[1]


def around(limit: float) -> list[float]:
    return [0.95 * limit, 1.05 * limit]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_the_limit_is_the_late_exchanges_own(delay: int, nesterov: bool, momentum: float) -> None:
    settings = OptimizerConfig(lr=1.0, momentum=momentum, nesterov=nesterov, weight_decay=0.0)
    limit = largest_stable_product(Dynamics(momentum, nesterov, delay))
    assert_converges_then_diverges(trajectories(settings, around(limit), delay, 2 * WINDOWS))


AVERAGING = {
    f"{'nesterov' if nesterov else 'ball'} {momentum} K{passes} d{delay} P{pieces} "
    f"outer {outer_lr} {outer_momentum}": Dynamics(
        momentum, nesterov, delay, True, passes, pieces, outer_lr, outer_momentum
    )
    for momentum, nesterov, passes, delay, pieces, outer_lr, outer_momentum in (
        (0.0, False, 1, 1, 1, 1.0, 0.0),
        (0.9, False, 1, 0, 1, 1.0, 0.0),
        (0.9, False, 2, 1, 1, 1.0, 0.0),
        (0.9, True, 2, 1, 1, 1.0, 0.0),
        (0.9, True, 3, 2, 1, 1.0, 0.0),
        (0.8, True, 1, 1, 2, 1.0, 0.0),
        (0.9, False, 2, 1, 2, 1.0, 0.0),
        (0.9, True, 2, 2, 2, 1.0, 0.0),
        (0.5, True, 2, 1, 1, 0.7, 0.9),
        (0.5, False, 1, 1, 2, 0.7, 0.5),
    )
} | {
    f"slow momentum {momentum} K{passes} d{delay}": Dynamics(
        0.5, False, delay, True, passes, 1, 0.8, momentum, outer_nesterov=False
    )
    for momentum, passes, delay in ((0.6, 1, 0), (0.6, 2, 1), (0.3, 1, 1))
}


def two_nodes() -> dict[str, Tensor]:
    """Of every setting: the largest of both nodes' x after each window, [windows, 2]."""
    return {name: averaged_trajectories(dynamics) for name, dynamics in AVERAGING.items()}


def averaged_trajectories(dynamics: Dynamics) -> Tensor:
    """On c/2 (u x)^2, with u in one piece and evenly over all: the largest of both.

    Rows of x are the pieces. The first step pulls the nodes apart.
    """
    rank, pieces = dist.get_rank(), dynamics.pieces
    peers = Group((0, 1), rank, 2, dist.group.WORLD, meters(), Phase.EXCHANGE_WAIT)
    curvatures = torch.tensor(around(largest_stable_product(dynamics)) * 2, dtype=torch.float64)
    directions = torch.full((pieces, 4), pieces**-0.5, dtype=torch.float64)
    directions[:, :2] = torch.eye(pieces)[:, :1]
    x = nn.Parameter(directions.clone())
    shared, sliced = Flat([x], 1, x, owner=0), Flat([], 1, x)
    config = ExchangeConfig(
        kind="averaging" if dynamics.outer_nesterov else "slowmo",
        delay=dynamics.delay,
        backward_passes_per_step=dynamics.passes,
        pieces=pieces,
        outer_lr=dynamics.outer_lr,
        outer_momentum=dynamics.outer_momentum,
    )
    moving = [
        MovingPiece(
            Part(shared, sliced, False, peers, Cut(number, pieces)),
            config,
            f"p{number}",
            outer=OuterNesterov if dynamics.outer_nesterov else SlowMomentum,
        )
        for number in range(pieces)
    ]
    exchange = Averaging(Chunk(shared, group_of_one()), [Rotation(moving)], config)
    settings = OptimizerConfig(
        lr=1.0, momentum=dynamics.momentum, nesterov=dynamics.nesterov, weight_decay=0.0
    )
    optimizer, found = make_optimizer(settings, (shared, sliced)), []
    for window in range(WINDOWS):
        for _ in range(dynamics.passes):
            shared.grads.zero_()
            if window == 0:
                x.grad += rank * directions
            (curvatures / 2 * (directions * x).sum(0).square()).sum().backward()
            exchange.gradients_ready(last=True)
            optimizer.step()
            exchange.after_step()
        sizes = (directions * x.detach()).sum(0).abs()
        found.append(sizes.view(2, 2).amax(0))
    return torch.stack(found)


@cache
def of_two_nodes() -> list[dict[str, Tensor]]:
    return run_on_ranks(two_nodes, 2, timeout=120)


@pytest.mark.parametrize("name", AVERAGING)
def test_the_limit_is_the_averaging_exchanges_own(name: str) -> None:
    one, other = (found[name] for found in of_two_nodes())
    assert_converges_then_diverges(torch.maximum(one, other))


def test_the_first_late_window_steps_with_the_gradient_of_the_one_before() -> None:
    """x0 = 1: nothing lands in window 0; windows 1 and 2 both step with gradients taken at 1."""
    one_late, two_late = (trajectories(PLAIN, [0.25], delay, 4)[:, 0] for delay in (1, 2))
    assert one_late.tolist() == [1.0, 0.75, 0.5, 0.3125]
    assert two_late.tolist() == [1.0, 1.0, 0.75, 0.5]


def test_a_start_in_time_then_late() -> None:
    """Windows 0 and 1 wait; window 2 is the first late one and has nothing to step with."""
    found = trajectories(PLAIN, [0.5], 1, 5, synchronous=2)[:, 0]
    assert found.tolist() == [0.5, 0.25, 0.25, 0.125, 0.0]


def test_draining_applies_what_is_under_way_and_leaves_nothing() -> None:
    x = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    shared, sliced = Flat([x], 1, x), Flat([], 1, x)
    exchange = late(shared, sliced, 2)
    landed: list[float] = []
    for gradient in (1.0, 2.0, 3.0):
        shared.grads.fill_(gradient)
        if exchange.gradients_ready(last=True):
            landed.append(shared.grads.item())
    exchange.drain(lambda: landed.append(shared.grads.item()))
    exchange.drain(lambda: landed.append(-1.0))
    assert landed == [1.0, 2.0, 3.0]
