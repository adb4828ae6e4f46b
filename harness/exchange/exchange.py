"""What the trainer knows of an exchange, and the choice of one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from harness.config import ClassifierConfig, ExchangeConfig
from harness.exchange.averaging import Averaging, MovingPiece
from harness.exchange.carried import Strip
from harness.exchange.delayed import Delayed
from harness.exchange.flat import Flat
from harness.exchange.isolated import Isolated
from harness.exchange.lateness import Lateness, LatenessMeter
from harness.exchange.parts import Chunk, Part
from harness.exchange.synchronous import Average, Synchronous
from harness.exchange.torch_ddp import KINDS, InBackward, PostLocal, PowerSgd
from harness.parallel.ddp import PowerSgdErrors
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
        means; so does what is `carried`; and scales that wires agreed on are found anew."""


def route_of(exchange: ExchangeConfig, classifier: ClassifierConfig) -> str:
    """`flat` or `hierarchical`: what `exchange.route=auto` stands for."""
    if exchange.route != "auto":
        return exchange.route
    pure = exchange.kind in ("synchronous", *KINDS) and classifier.layout == "replicated"
    return "flat" if pure and exchange.compression in ("none", "fp16") else "hierarchical"


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
    `errors` are those of `through_ddp`.
    """
    has_replicas = classifier.layout == "node"
    passes, compression = exchange.backward_passes_per_step, exchange.compression
    cut = exchange.bucket_mb * 1e6
    if exchange.kind == "synchronous" and route_of(exchange, classifier) == "flat":
        averages = [Average(shared, world.everyone, compression)]
        if has_replicas:
            averages.append(Average(sliced, world.replicas, compression))
        return Synchronous(averages, cut, passes)
    if errors is not None:
        return PowerSgd(errors, shared)
    if exchange.kind in KINDS and world.topology.world_size == 1:
        return InBackward()
    if exchange.kind == "ddp_post_local_sgd":
        return PostLocal(exchange, shared, world, first_window)
    chunk = Chunk(shared, world.node)
    if exchange.kind in ("synchronous", "delayed"):
        part = Part(shared, sliced, has_replicas, world.peers)
        return Delayed(chunk, part, exchange, first_window, LatenessMeter(sample_every))
    outer = (exchange.outer_lr, exchange.outer_momentum) != (1.0, 0.0)
    if exchange.kind == "isolated" or (world.topology.nodes == 1 and not outer):
        # A node that averages with nobody has nothing to send, and nothing late to land.
        return Isolated(chunk, Part(shared, sliced, has_replicas, world.peers))
    meter = LatenessMeter(sample_every)
    pieces = [
        MovingPiece(
            Part(shared, sliced, has_replicas, world.peers, number, exchange.pieces),
            exchange,
            f"piece.{number}",
            meter,
        )
        for number in range(exchange.pieces)
    ]
    return Averaging(chunk, pieces, exchange, first_window, meter)
