"""The interface of an exchange to the trainer, and the choice of one by its kind."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harness.config import ExchangeConfig
from harness.exchange.averaging import Averaging, MovingPiece, Outer
from harness.exchange.carried import Strip
from harness.exchange.delayed import Delayed
from harness.exchange.flat import Flat, RankParameters
from harness.exchange.isolated import Isolated
from harness.exchange.kinds import KindName, Path
from harness.exchange.lateness import Lateness, LatenessMeter
from harness.exchange.parts import Chunk, Part
from harness.exchange.slowmo import SlowMomentum
from harness.exchange.synchronous import Synchronous
from harness.exchange.torch_ddp import InBackward, PostLocal, PowerSgd
from harness.exchange.ways import Stops, Way, direct, through_nodes
from harness.parallel.ddp import PowerSgdErrors
from harness.parallel.group import Group
from harness.parallel.world import World


class Exchange(Protocol):
    """How nodes agree. All calls are collective over the world, in the same order on all ranks.

    An exchange only averages: the trainer divides the loss by `passes_per_step`.
    """

    passes_per_step: int
    """Backward passes whose gradients add up before a step."""

    def after_backward(self, last: bool) -> bool:
        """Call after each backward pass; `last`: of its window. True: step with the gradients."""

    def after_step(self) -> None:
        """Call after each step that `after_backward` asked for."""

    def averaged(self) -> AbstractContextManager[Tensor | None]:
        """A context in which all nodes hold the mean of their values, for an evaluation.

        If nodes may differ it yields their squared distances from the mean; see `mean_values`.
        """

    def apart(self) -> Callable[[], Tensor] | None:
        """Takes a snapshot of the values. After a `drain`, the returned function computes the
        squared distances from the mean that `averaged` would have yielded for the snapshot; it is
        collective over the world. None if nodes do not differ."""

    def lateness(self) -> Lateness:
        """The lateness of the results used since the last call. Does not wait."""

    def drain(self, step: Callable[[], None]) -> None:
        """Applies all exchanges under way; `step` updates the values with the gradients."""

    def carried(self) -> list[Strip]:
        """The state from window to window, besides the values and the optimizer's state."""

    def agree_on(self, states: Sequence[Tensor]) -> None:
        """Makes all ranks with the same elements continue with the same state, which a checkpoint
        keeps once; call it after a `drain`. If nodes step locally, `states` (of the optimizer)
        and what is `carried` become their means over the nodes."""


def route_of(exchange: ExchangeConfig, nodes: int, ranks_per_node: int) -> str:
    """`flat` or `hierarchical`: how the gradients that all ranks hold are averaged.

    `auto` before it was measured counts as hierarchical, which sends the fewest bytes.
    """
    if exchange.traits.path is not Path.BUCKETS:
        return "flat" if exchange.is_torchs else "hierarchical"
    if not differing_routes(exchange, nodes, ranks_per_node):
        return "flat"
    return "hierarchical" if exchange.route == "auto" else exchange.route


def differing_routes(exchange: ExchangeConfig, nodes: int, ranks_per_node: int) -> bool:
    """Whether the two routes differ: with one node, or one rank per node, they are the same."""
    return exchange.traits.has_routes and nodes > 1 and ranks_per_node > 1


def steps_alone(exchange: ExchangeConfig) -> bool:
    """Whether each rank steps its own chunk of its node's shared parameters and then sends the
    values to the others; if not, all ranks step all of them with the same gradients."""
    return exchange.traits.steps_chunks


def make_exchange(
    exchange: ExchangeConfig,
    parameters: RankParameters,
    world: World,
    first_window: int = 0,
    sample_every: int = 0,
    errors: PowerSgdErrors | None = None,
) -> Exchange:
    """The exchange that the config names, over the parameters of this rank.

    A resumed run continues at `first_window`; lateness is sampled every `sample_every` windows;
    `errors` are those of `through_ddp`. Collective over the world.
    """
    given = _Given(exchange, parameters, world, first_window, sample_every, errors)
    return MAKERS[exchange.kind](given)


@dataclass(frozen=True)
class _Given:
    """The arguments of `make_exchange`, for the maker of each kind."""

    exchange: ExchangeConfig
    parameters: RankParameters
    world: World
    first_window: int
    sample_every: int
    errors: PowerSgdErrors | None

    @property
    def chunk(self) -> Chunk:
        return Chunk(self.parameters.shared, self.world.node)

    def part(self, number: int = 0, pieces: int = 1) -> Part:
        """The part that this rank exchanges with its peers, or one of several pieces of it."""
        own = self.parameters
        return Part(own.shared, own.sliced, own.slice_crosses, self.world.peers, number, pieces)

    def meter(self) -> LatenessMeter:
        return LatenessMeter(self.sample_every)


def _synchronous(given: _Given) -> Exchange:
    exchange, own, world = given.exchange, given.parameters, given.world
    ways = [_way_of_shared(exchange, own.shared, world)]
    if own.slice_crosses:
        replicas = _over(world.replicas, exchange, world, "slices")
        ways.append(direct(own.sliced, replicas, exchange.compression))
    return Synchronous(ways, exchange.bucket_bytes, exchange.backward_passes_per_step)


def _delayed(given: _Given) -> Exchange:
    return Delayed(given.chunk, given.part(), given.exchange, given.first_window, given.meter())


def _averaging(given: _Given, outer: type[Outer] = Outer) -> Exchange:
    exchange, meter = given.exchange, given.meter()
    if given.world.topology.nodes == 1 and not exchange.has_outer:
        # A single node has nothing to send, and nothing arrives late.
        return _isolated(given)
    pieces = [
        MovingPiece(given.part(number, exchange.pieces), exchange, f"piece.{number}", meter, outer)
        for number in range(exchange.pieces)
    ]
    return Averaging(given.chunk, pieces, exchange, given.first_window, meter)


def _slowmo(given: _Given) -> Exchange:
    return _averaging(given, SlowMomentum)


def _isolated(given: _Given) -> Exchange:
    return Isolated(given.chunk, given.part())


def _ddp(given: _Given) -> Exchange:
    return InBackward()


def _power_sgd(given: _Given) -> Exchange:
    # A single rank has no DDP around its network, and no errors.
    shared = given.parameters.shared
    return InBackward() if given.errors is None else PowerSgd(given.errors, shared)


def _post_local_sgd(given: _Given) -> Exchange:
    if given.world.topology.world_size == 1:
        return InBackward()
    shared = given.parameters.shared
    return PostLocal(given.exchange, shared, given.world, given.first_window)


MAKERS: dict[KindName, Callable[[_Given], Exchange]] = {
    "synchronous": _synchronous,
    "delayed": _delayed,
    "averaging": _averaging,
    "slowmo": _slowmo,
    "isolated": _isolated,
    "ddp": _ddp,
    "ddp_powersgd": _power_sgd,
    "ddp_post_local_sgd": _post_local_sgd,
}
"""The maker of each kind."""


def _way_of_shared(exchange: ExchangeConfig, shared: Flat, world: World) -> Way:
    """How the gradients that all ranks hold are averaged. Collective over the world."""
    topology = world.topology
    if route_of(exchange, topology.nodes, topology.ranks_per_node) == "flat":
        everyone = _over(world.everyone, exchange, world, "shared")
        return direct(shared, everyone, exchange.compression)
    peers = topology.peer_groups[topology.local_rank]
    stops = Stops(
        node=world.beside(world.node.ranks, "node"),
        across=_over(world.beside(peers, "across"), exchange, world, "across"),
        spread=world.beside(world.node.ranks, "spread"),
        to_across=world.line("across"),
        to_spread=world.line("spread"),
        waiting=world.everyone.waiting,
    )
    return through_nodes(shared, stops, exchange.compression)


def _over(group: Group, exchange: ExchangeConfig, world: World, purpose: str) -> Group:
    """The group, or one that can carry a lossy wire. Collective over the world."""
    return group if exchange.compression == "none" else world.reducing(group, purpose)
