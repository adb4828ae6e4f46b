"""The protocol that training uses for every exchange, and the choice of an exchange."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from harness.config import ExchangeConfig
from harness.errors import UserError
from harness.exchange.averaging import Averaging, MovingPiece, OuterNesterov, Rotation, Sender
from harness.exchange.carried import Strip
from harness.exchange.carriers import carrier_of, over, way_of_shared
from harness.exchange.delayed import Delayed
from harness.exchange.drawn_rows import Draw, DrawnRows
from harness.exchange.flat import RankParameters
from harness.exchange.isolated import Isolated
from harness.exchange.kinds import KindName, Path
from harness.exchange.lateness import Lateness, LatenessMeter
from harness.exchange.parts import WHOLE, Chunk, Cut, Part
from harness.exchange.slowmo import SlowMomentum
from harness.exchange.synchronous import Synchronous
from harness.exchange.torch_ddp import InBackward, PostLocal, PowerSgd
from harness.exchange.ways import direct
from harness.exchange.wire import Carrier
from harness.parallel.ddp import PowerSgdErrors
from harness.parallel.topology import Layout
from harness.parallel.world import World


class Exchange(Protocol):
    """How nodes agree. All calls are collective over the world, in the same order on all ranks.

    An exchange only averages; training divides the loss by `passes_per_step`.
    """

    passes_per_step: int
    """Backward passes whose gradients are added up before a step."""

    averages_in_backward: bool
    """Whether gradients are sent during the backward pass, before anybody can know whether they are
    finite."""

    def changed_in_backward(self) -> list[Tensor]:
        """What sending during the backward pass changes beside the gradients, and later windows
        use. Nothing may be in flight."""

    def gradients_ready(self, last: bool) -> bool:
        """Called after each backward pass; `last` is true for the last one of its window. Returns
        True if the gradients are ready for a step."""

    def after_step(self) -> None:
        """Called after each step that `gradients_ready` asked for."""

    def dropped(self) -> bool:
        """Called instead of `gradients_ready` for a step that is dropped on all ranks, whose
        gradients nobody sends; not called if it `averages_in_backward`. Returns True if there are
        gradients of an earlier window to step with."""

    def at_mean(self) -> AbstractContextManager[Tensor | None]:
        """Inside the block all nodes hold the mean of their values, to be evaluated; afterwards
        their own again.

        If nodes may differ, it yields the squares of their distance from the mean; see
        `mean_values`.
        """

    def divergence_before_drain(self) -> Callable[[], Tensor] | None:
        """Snapshots the values. The returned function computes, later and collectively over the
        world, the squares of this snapshot's distance from the mean, as `at_mean` yields them.
        Returns None if nodes never differ."""

    def lateness(self) -> Lateness:
        """How late the results were that landed since the last call. Does not wait."""

    def drain(self, step: Callable[[], None]) -> None:
        """Applies everything in flight; `step` updates with the current gradients."""

    def carried(self) -> list[Strip]:
        """State carried between windows beside the values and the optimizer's state."""

    def agree_on(self, states: Sequence[Tensor]) -> None:
        """After a `drain`: makes all ranks that hold the same elements continue with the same
        state, since a checkpoint stores it once. If nodes step on their own, `states`, the
        optimizer's, become their means; so does what is `carried`."""


def steps_alone(exchange: ExchangeConfig) -> bool:
    """Whether each rank steps only its chunk of what its node shares and sends its values to the
    others; otherwise all ranks step all of it with the same gradients."""
    return exchange.traits.steps_chunks


def steps_own_gradients(exchange: ExchangeConfig, layout: Layout) -> bool:
    """Whether a slice steps with the gradients that its rank has just computed, which no others are
    averaged with."""
    if layout == "replicated":
        return False
    traits = exchange.traits
    return traits.local_steps or (traits.path is Path.BUCKETS and layout == "world")


def make_exchange(
    exchange: ExchangeConfig,
    parameters: RankParameters,
    world: World,
    first_window: int = 0,
    sample_every: int = 0,
    errors: PowerSgdErrors | None = None,
    draw: Draw | None = None,
) -> Exchange:
    """The exchange that the config names, over the parameters of this rank.

    A resumed run starts at `first_window`; lateness is sampled every `sample_every` windows;
    `errors` are those of `through_ddp`; `draw` is for `slice_rows=drawn`. Collective over the
    world.
    """
    given = _Given(exchange, parameters, world, first_window, sample_every, errors, draw)
    return MAKERS[exchange.chosen_kind](given)


@dataclass(frozen=True)
class _Given:
    """The ingredients of an exchange."""

    exchange: ExchangeConfig
    parameters: RankParameters
    world: World
    first_window: int
    sample_every: int
    errors: PowerSgdErrors | None
    draw: Draw | None

    @property
    def chunk(self) -> Chunk:
        return Chunk(self.parameters.shared, self.world.node)

    def part(self, cut: Cut = WHOLE) -> Part:
        """The part that this rank exchanges with its peers, or a piece of it."""
        own = self.parameters
        return Part(own.shared, own.sliced, own.slice_crosses, self._peers, cut)

    @cached_property
    def _peers(self) -> Carrier:
        return carrier_of(self.exchange, self.world)

    def meter(self) -> LatenessMeter:
        return LatenessMeter(self.sample_every)


def _synchronous(given: _Given) -> Exchange:
    exchange, own, world = given.exchange, given.parameters, given.world
    ways = [way_of_shared(exchange, own.shared, world)]
    if own.slice_crosses:
        replicas = over(world.replicas, exchange, world, "slices")
        ways.append(direct(own.sliced, replicas, exchange.compression))
    return Synchronous(ways, exchange.bucket_bytes, exchange.backward_passes_per_step)


def _delayed(given: _Given) -> Exchange:
    return Delayed(given.chunk, given.part(), given.exchange, given.first_window, given.meter())


def _averaging(given: _Given, outer: type[OuterNesterov] = OuterNesterov) -> Exchange:
    exchange, meter = given.exchange, given.meter()
    if given.world.topology.nodes == 1 and not exchange.has_outer:
        # A single node has nobody to average with: it sends nothing and nothing lands late. An
        # outer optimizer still changes its steps.
        return _isolated(given)
    senders: list[Sender] = [
        Rotation(
            [
                MovingPiece(given.part(cut), exchange, f"{name}.{cut.number}", meter, outer)
                for cut in cuts
            ]
        )
        for name, cuts in cuts_of(exchange).items()
    ]
    if exchange.slice_rows == "drawn":
        senders.append(_drawn_rows(given))
    return Averaging(given.chunk, senders, exchange, given.first_window, meter)


def _drawn_rows(given: _Given) -> DrawnRows:
    exchange, sliced = given.exchange, given.parameters.sliced
    if reason := why_rows_are_not_drawn(exchange, given.world.topology.nodes):
        raise UserError(reason)
    if given.draw is None:
        raise ValueError("exchange.slice_rows=drawn needs the draw of a window's classes")
    return DrawnRows(sliced, given.part(Cut(chunk=False)), exchange, given.draw)


def why_rows_are_not_drawn(exchange: ExchangeConfig, nodes: int) -> str:
    """Why this exchange cannot send drawn rows between so many nodes, as an error says it; "" if it
    can."""
    if exchange.slice_rows == "all" or exchange.compression == "none" or nodes <= 2:
        return ""
    return (
        f"exchange.slice_rows=drawn with compression={exchange.compression} needs two nodes, there "
        f"are {nodes}: among more the wire keeps remainders, which belong to rows that the next "
        f"window does not send; use compression=none or slice_rows=all"
    )


def cuts_of(exchange: ExchangeConfig) -> dict[str, list[Cut]]:
    """By name, the pieces that are sent in turn: of chunk and slice together, of each at a pace of
    its own, or of the chunk alone, beside drawn rows of the slice."""
    pieces, of_slice = exchange.pieces, exchange.slice_pace
    if exchange.slice_rows == "drawn":
        return {"piece": [Cut(number, pieces, slice=False) for number in range(pieces)]}
    if of_slice is None:
        return {"piece": [Cut(number, pieces) for number in range(pieces)]}
    return {
        "piece": [Cut(number, pieces, slice=False) for number in range(pieces)],
        "slice": [Cut(number, of_slice, chunk=False) for number in range(of_slice)],
    }


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
"""The function that builds each kind."""
