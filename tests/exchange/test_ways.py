"""Gradients averaged beside the backward pass, on both routes, equal the mean of all ranks'."""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from harness.config import Config, ExchangeConfig
from harness.exchange.carriers import route_of
from harness.exchange.exchange import Exchange, make_exchange
from harness.exchange.flat import Flat, RankParameters
from harness.measure.traffic import Bytes
from harness.model.anatomy import Anatomy, Sketch
from harness.parallel.topology import Topology
from harness.parallel.world import World
from harness.train.ledger import expected_bytes
from tests.alone import meters, world_of_one
from tests.grid import world_of_ranks
from tests.ranks import run_on_ranks

SHAPES = ((37, 31), (1100,), (13,), (50, 41), (5,))
"""Buckets that two ranks cannot share evenly; of the smallest some rank has nothing."""
BUCKET_MB = 0.004
WINDOWS, PASSES = 5, 2
ROUTES = ("flat", "hierarchical")
WIRES = ("none", "fp16", "int8", "int4")
GRIDS = {"2x2": (4, 2), "2x3": (6, 3), "3x1": (3, 1), "1x3": (3, 3)}
"""Ranks, and those of a node."""


def exchange_of(route: str, compression: str) -> ExchangeConfig:
    return ExchangeConfig.model_validate(
        {
            "kind": "synchronous",
            "route": route,
            "compression": compression,
            "bucket_mb": BUCKET_MB,
            "backward_passes_per_step": PASSES,
        }
    )


def synchronous(world: World, shared: Flat, route: str, compression: str) -> Exchange:
    exchange, sliced = exchange_of(route, compression), Flat([], 1, shared.values)
    return make_exchange(exchange, RankParameters(shared, sliced, "replicated"), world)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]


def gradient(rank: int, window: int, one_pass: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * window + 10 * rank + one_pass)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


@dataclass(frozen=True)
class Trained:
    averages: list[Tensor]
    """By window, of the flat gradient."""
    owed: Tensor
    """At the end, what this rank has not sent of each element."""
    agreed: Tensor
    """The same, when all have agreed."""
    sent: Bytes


def train(ranks_per_node: int, route: str, compression: str) -> Trained:
    """Gradients come in another order on every rank, and in every pass."""
    counted, shared = meters(), None
    world = world_of_ranks(ranks_per_node, counted=counted)
    shared = Flat(parameters(), world.node.size, torch.zeros(1, dtype=torch.float64))
    rank, weights = world.topology.rank, [parameter for parameter, _, _ in shared.spans]
    exchange = synchronous(world, shared, route, compression)
    averages = []
    for window in range(WINDOWS):
        shared.grads.zero_()
        for one_pass in range(PASSES):
            order = torch.randperm(len(weights), generator=_generator(rank, window, one_pass))
            given = dict(zip(SHAPES, gradient(rank, window, one_pass), strict=True))
            products = [weights[n] * given[tuple(weights[n].shape)] for n in order.tolist()]
            torch.stack([product.sum() for product in products]).sum().backward()
            assert exchange.gradients_ready(one_pass == PASSES - 1) == (one_pass == PASSES - 1)
        averages.append(shared.grads[: shared.elements].clone())
    sent, owed = counted.traffic.total, of_strips(exchange, shared)
    exchange.agree_on([])
    return Trained(averages, owed, of_strips(exchange, shared), sent)


def _generator(rank: int, window: int, one_pass: int) -> torch.Generator:
    return torch.Generator().manual_seed(7 + 1000 * window + 10 * rank + one_pass)


def of_strips(exchange: Exchange, shared: Flat) -> Tensor:
    """All that is carried, each element at most once."""
    found, times = torch.zeros(2, shared.elements, dtype=torch.float64)
    for strip in exchange.carried():
        found[strip.start : strip.stop] += strip.tensor
        times[strip.start : strip.stop] += 1
    assert (times <= 1).all()
    return found


def all_trained(ranks_per_node: int) -> dict[tuple[str, str], Trained]:
    return {(route, wire): train(ranks_per_node, route, wire) for route in ROUTES for wire in WIRES}


@cache
def trained(grid: str) -> list[dict[tuple[str, str], Trained]]:
    ranks, ranks_per_node = GRIDS[grid]
    return run_on_ranks(all_trained, ranks, ranks_per_node, timeout=200.0)


def expected(ranks: int, window: int) -> Tensor:
    flat = Flat(parameters(), 1, torch.zeros(1, dtype=torch.float64))
    mean = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for rank in range(ranks):
        for one_pass in range(PASSES):
            for total, own in zip(mean, gradient(rank, window, one_pass), strict=True):
                total += own / ranks
    by_shape = dict(zip(SHAPES, mean, strict=True))
    return torch.cat([by_shape[tuple(p.shape)].flatten() for p, _, _ in flat.spans])


CASES = [(grid, route, wire) for grid in GRIDS for route in ROUTES for wire in WIRES]


@pytest.mark.parametrize(("grid", "route", "wire"), CASES)
def test_all_ranks_have_the_same_to_the_bit(grid: str, route: str, wire: str) -> None:
    first, *others = [each[route, wire] for each in trained(grid)]
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(first.averages, other.averages, strict=True))


@pytest.mark.parametrize(("grid", "route", "wire"), CASES)
def test_it_is_the_mean_of_all_gradients(grid: str, route: str, wire: str) -> None:
    """Of a lossy wire but for what one message may leave, which does not add up."""
    ranks = GRIDS[grid][0]
    found = trained(grid)[0][route, wire].averages
    lacking = torch.zeros_like(found[0])
    left = {"none": 1e-14, "fp16": 1e-2, "int8": 0.1, "int4": 2.0}[wire]
    for window, average in enumerate(found):
        lacking += expected(ranks, window) - average
        assert lacking.abs().max() < left
    if wire != "none":
        assert lacking.abs().max() > left / 100, "the bound would show nothing"


@pytest.mark.parametrize(("grid", "route", "wire"), CASES)
def test_what_lacks_in_the_end_is_what_all_owe_once_they_have_agreed(
    grid: str, route: str, wire: str
) -> None:
    """Each element is owed by those who sent it: by all ranks, or by a node's one that has it."""
    ranks, ranks_per_node = GRIDS[grid]
    found = [each[route, wire] for each in trained(grid)]
    lacking = sum(expected(ranks, window) for window in range(WINDOWS)) - sum(found[0].averages)
    through = route_of(_config(route), ranks // ranks_per_node, ranks_per_node) == "hierarchical"
    agreed = torch.stack([each.agreed for each in found])
    shown = agreed[:ranks_per_node].sum(0) if through else agreed[0]
    assert (shown - lacking).abs().max() < 1e-12
    if wire != "none":
        assert shown.abs().max() > 1e-6


@pytest.mark.parametrize(("grid", "wire"), [(grid, wire) for grid in GRIDS for wire in WIRES])
def test_the_way_through_nodes_sends_the_least_over_their_links(grid: str, wire: str) -> None:
    ranks, per_node = GRIDS[grid]
    by_route = [
        sum((each[route, wire].sent for each in trained(grid)), Bytes()) for route in ROUTES
    ]
    flat, through = by_route
    if ranks == per_node:
        assert flat.cross_node == through.cross_node == 0
    elif per_node == 1:
        assert flat == through
    else:
        assert through.cross_node < 0.8 * flat.cross_node


@pytest.mark.parametrize(("grid", "route", "wire"), CASES)
def test_bytes_are_those_of_the_formula(grid: str, route: str, wire: str) -> None:
    """From the shapes alone, in the order in which a network has them."""
    ranks, per_node = GRIDS[grid]
    topology = Topology(0, ranks // per_node, per_node)
    config = Config.model_validate(
        {
            "classifier": {"layout": "replicated"},
            "exchange": exchange_of(route, wire).model_dump(exclude_unset=True),
            "train": {"precision": "fp64", "steps": 1},
        }
    )
    sketch = Sketch(tuple(torch.Size(shape) for shape in SHAPES), features=1, channels=1, frozen=0)
    no_classes = replace(Anatomy.of(config, topology, sketch), classes=0, has_bias=False)
    found = expected_bytes(config, no_classes)
    for each in trained(grid):
        sent = each[route, wire].sent
        assert sent.in_node == pytest.approx(WINDOWS * found.in_node)
        assert sent.cross_node == pytest.approx(WINDOWS * found.cross_node)


def _config(route: str) -> ExchangeConfig:
    return ExchangeConfig.model_validate({"kind": "synchronous", "route": route})


@pytest.mark.parametrize("route", ["auto", *ROUTES])
@pytest.mark.parametrize(("nodes", "ranks_per_node"), [(1, 1), (1, 4), (4, 1)])
def test_where_routes_do_not_differ_the_flat_one_is_taken(
    route: str, nodes: int, ranks_per_node: int
) -> None:
    assert route_of(_config(route), nodes, ranks_per_node) == "flat"


def test_on_a_grid_the_route_is_the_configs_and_by_default_that_of_the_fewest_bytes() -> None:
    routes = [route_of(_config(route), 2, 2) for route in ("auto", *ROUTES)]
    assert routes == ["hierarchical", "flat", "hierarchical"]


@pytest.mark.parametrize("route", ["auto", *ROUTES])
@pytest.mark.parametrize("compression", WIRES)
def test_alone_gradients_stay_as_they_are_and_nothing_is_sent(route: str, compression: str) -> None:
    counted = meters()
    world = world_of_one(counted)
    shared = Flat(parameters(), 1, torch.zeros(1, dtype=torch.float64))
    exchange = synchronous(world, shared, route, compression)
    shared.grads.copy_(torch.arange(len(shared.grads)))
    before = shared.grads.clone()
    assert exchange.gradients_ready(last=True)
    assert torch.equal(shared.grads, before)
    assert exchange.carried() == []
    assert counted.traffic.total == Bytes()


def taken_back() -> list[bool]:
    return [as_before(route) for route in ROUTES]


def as_before(route: str) -> bool:
    """Whether a window is the same again, put back by what the exchange says that it changes."""
    world = world_of_ranks(2)
    shared = Flat(parameters(), world.node.size, torch.zeros(1, dtype=torch.float64))
    exchange, weights = synchronous(world, shared, route, "int8"), [p for p, *_ in shared.spans]

    def window(number: int) -> Tensor:
        shared.grads.zero_()
        given = dict(zip(SHAPES, gradient(world.topology.rank, number, 0), strict=True))
        for last in (False, True):
            products = [each * given[tuple(each.shape)] for each in weights]
            torch.stack([product.sum() for product in products]).sum().backward()
            exchange.gradients_ready(last)
        return shared.grads.clone()

    window(0)  # so that something is owed
    before = [tensor.clone() for tensor in exchange.changed_in_backward()]
    first = window(1)
    for tensor, old in zip(exchange.changed_in_backward(), before, strict=True):
        tensor.copy_(old)
    return torch.equal(window(1), first)


def test_a_window_can_be_taken_back_with_all_that_wires_keep() -> None:
    """On a wire of four ranks its reducers keep errors too."""
    assert run_on_ranks(taken_back, 4, timeout=100.0) == [[True, True]] * 4
