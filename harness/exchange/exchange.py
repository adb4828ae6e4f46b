"""What the trainer knows of an exchange, and the choice of one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harness.config import ClassifierConfig, ExchangeConfig
from harness.exchange.averaging import Averaging, MovingPiece, Outer
from harness.exchange.carried import Strip
from harness.exchange.delayed import Delayed
from harness.exchange.flat import Flat
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
    """How nodes come to agree. All calls are collective over the world, in one order.

    An exchange only ever averages: the trainer divides the loss by `passes_per_step`.
    """

    passes_per_step: int
    """Backward passes whose gradients add up before a step."""

    def after_backward(self, last: bool) -> bool:
        """After each backward pass, `last` of its window. True: step with what is in the grads."""

    def after_step(self) -> None:
        """After each step that `after_backward` asked for."""

    def averaged(self) -> AbstractContextManager[Tensor | None]:
        """In it all nodes hold the mean of their values, to be judged; after it their own again.

        Where nodes may differ it yields the squares of their distance from it; see `mean_values`.
        """

    def apart(self) -> Callable[[], Tensor] | None:
        """How far nodes are apart now, for after a `drain`: what comes back tells the squares that
        `averaged` yields, and is collective over the world. None where they do not differ."""

    def lateness(self) -> Lateness:
        """How late what landed since the last call was. Waits for nothing."""

    def drain(self, step: Callable[[], None]) -> None:
        """Applies all that is under way; `step` updates with what is in the grads."""

    def carried(self) -> list[Strip]:
        """What goes on from window to window beside the values and the optimizer's state."""

    def agree_on(self, states: Sequence[Tensor]) -> None:
        """Behind a `drain`: all that hold the same elements go on alike, from what a checkpoint
        keeps once. Where nodes step on their own, `states`, which are the optimizer's, become their
        means; so does what is `carried`."""


def route_of(exchange: ExchangeConfig, nodes: int, ranks_per_node: int) -> str:
    """`flat` or `hierarchical`: how the gradients that all ranks hold are averaged.

    `auto` that nobody has measured: hierarchical, which sends the fewest bytes, where both differ.
    """
    if exchange.traits.path is not Path.BUCKETS:
        return "flat" if exchange.is_torchs else "hierarchical"
    if not differing_routes(exchange, nodes, ranks_per_node):
        return "flat"
    return "hierarchical" if exchange.route == "auto" else exchange.route


def differing_routes(exchange: ExchangeConfig, nodes: int, ranks_per_node: int) -> bool:
    """Whether there is a choice: one node, and one rank on each, have one way alone."""
    return exchange.traits.has_routes and nodes > 1 and ranks_per_node > 1


def steps_alone(exchange: ExchangeConfig) -> bool:
    """Whether each rank steps its own chunk of what its node shares, and sends the others its
    values; else all ranks step all of it with the same gradients."""
    return exchange.traits.steps_chunks


def make_exchange(
    exchange: ExchangeConfig,
    classifier: ClassifierConfig,
    shared: Flat,
    sliced: Flat,
    world: World,
    first_window: int = 0,
    sample_every: int = 0,
    errors: PowerSgdErrors | None = None,
) -> Exchange:
    """The exchange that the config names, over the flat parameters of this rank.

    A resumed run goes on at `first_window`; every `sample_every` windows lateness is sampled;
    `errors` are those of `through_ddp`. Collective over the world.
    """
    crosses, flats = classifier.layout == "node", (shared, sliced)
    given = _Given(exchange, crosses, *flats, world, first_window, sample_every, errors)
    return MAKERS[exchange.kind](given)


@dataclass(frozen=True)
class _Given:
    """What an exchange is made of."""

    exchange: ExchangeConfig
    slice_crosses: bool
    """The ranks of other nodes own the same slice of the classes, and average it."""
    shared: Flat
    sliced: Flat
    world: World
    first_window: int
    sample_every: int
    errors: PowerSgdErrors | None

    @property
    def chunk(self) -> Chunk:
        return Chunk(self.shared, self.world.node)

    def part(self, number: int = 0, pieces: int = 1) -> Part:
        """What this rank exchanges with its peers, or one of several pieces of it."""
        flats = self.shared, self.sliced
        return Part(*flats, self.slice_crosses, self.world.peers, number, pieces)

    def meter(self) -> LatenessMeter:
        return LatenessMeter(self.sample_every)


def _synchronous(given: _Given) -> Exchange:
    exchange, world = given.exchange, given.world
    ways = [_way_of_shared(exchange, given.shared, world)]
    if given.slice_crosses:
        replicas = _over(world.replicas, exchange, world, "slices")
        ways.append(direct(given.sliced, replicas, exchange.compression))
    return Synchronous(ways, exchange.bucket_bytes, exchange.backward_passes_per_step)


def _delayed(given: _Given) -> Exchange:
    return Delayed(given.chunk, given.part(), given.exchange, given.first_window, given.meter())


def _averaging(given: _Given, outer: type[Outer] = Outer) -> Exchange:
    exchange, meter = given.exchange, given.meter()
    if given.world.topology.nodes == 1 and not exchange.has_outer:
        # A node that averages with nobody has nothing to send, and nothing late to land.
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
    # A rank alone has no DDP around its network, and no errors.
    return InBackward() if given.errors is None else PowerSgd(given.errors, given.shared)


def _post_local_sgd(given: _Given) -> Exchange:
    if given.world.topology.world_size == 1:
        return InBackward()
    return PostLocal(given.exchange, given.shared, given.world, given.first_window)


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
"""The function that makes each kind; a node or a rank that is alone may get a simpler one."""


def _way_of_shared(exchange: ExchangeConfig, shared: Flat, world: World) -> Way:
    """Of the gradients that all ranks hold, by the route. Collective over the world."""
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
    """The group, able to carry the wire. Collective over the world."""
    return group if exchange.compression == "none" else world.reducing(group, purpose)
