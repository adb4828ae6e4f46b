"""What the trainer knows of an exchange, and the choice of one."""

from collections.abc import Callable
from typing import Protocol

from harness.config import ClassifierConfig, ExchangeConfig
from harness.exchange.averaging import Averaging
from harness.exchange.delayed import Delayed
from harness.exchange.flat import Flat
from harness.exchange.parts import Parts
from harness.exchange.synchronous import Synchronous
from harness.parallel.world import World


class Exchange(Protocol):
    """How nodes come to agree. All calls are collective over the world, in one order.

    An exchange only ever averages: the trainer divides the loss by `passes_per_step`.
    """

    passes_per_step: int
    """Backward passes whose gradients add up before a step."""

    def after_backward(self, last: bool) -> bool:
        """After each backward pass, `last` of its window. True: step with what is in the grads."""

    def after_step(self, last: bool) -> None:
        """After each micro-batch's step, or its absence."""

    def drain(self, step: Callable[[], None]) -> None:
        """Applies all that is under way; `step` updates with what is in the grads."""


def route_of(exchange: ExchangeConfig, classifier: ClassifierConfig) -> str:
    """`flat` or `hierarchical`: what `exchange.route=auto` stands for."""
    if exchange.route != "auto":
        return exchange.route
    pure = exchange.kind == "synchronous" and classifier.layout == "replicated"
    return "flat" if pure else "hierarchical"


def make_exchange(
    exchange: ExchangeConfig,
    classifier: ClassifierConfig,
    shared: Flat,
    sliced: Flat,
    world: World,
    first_window: int = 0,
) -> Exchange:
    """The exchange that the config names, over the flat parameters of this rank.

    A resumed run goes on at `first_window`.
    """
    has_replicas = classifier.layout == "node"
    passes = exchange.backward_passes_per_step
    bucket_bytes = exchange.bucket_mb * 1e6
    if exchange.kind == "synchronous" and route_of(exchange, classifier) == "flat":
        return Synchronous(shared, sliced, has_replicas, world, passes, bucket_bytes)
    parts = Parts(shared, sliced, has_replicas, world)
    waiting = max(0, exchange.synchronous_windows - first_window)
    if exchange.kind == "averaging":
        return Averaging(parts, shared, world.node, bucket_bytes, exchange.delay, waiting)
    return Delayed(parts, passes, exchange.delay, waiting)
