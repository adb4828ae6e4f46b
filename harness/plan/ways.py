"""Every way of training an experiment on a cluster, predicted, and which of them to take."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.compare.levers import COMPRESSIONS
from harness.config import Config
from harness.doctor.finding import in_bytes
from harness.errors import UserError
from harness.exchange.kinds import KINDS, PLANNED, KindName
from harness.plan.cost_model import predict
from harness.plan.machines import Cluster
from harness.tracking.prediction import Prediction

LAYOUTS = ("replicated", "node", "world")
PASSES = (1, 2, 4, 8)
WIRES = tuple(wire for wire in COMPRESSIONS if wire != "sign")
"""What signs do to accuracy is not known: they are predicted where an experiment asks for them."""
PIECES = (1, 2)
"""Of what is averaged late."""
DECIDED = (
    "kind",
    "route",
    "backward_passes_per_step",
    "delay",
    "compression",
    "pieces",
    "max_pieces",
    "outer_lr",
    "outer_momentum",
)
"""The settings of an experiment's exchange that a way overrides."""
PAYS = 1.05
"""Times the throughput from which on a way is said to pay: less drowns in what times vary."""
ENOUGH = 0.9
"""Share of the fastest way's images per second that is as good: what is gained beyond costs more
accuracy than time."""


@dataclass(frozen=True)
class Way:
    """One layout, exchange, number of passes, compression and pieces, on the cluster."""

    config: Config
    prediction: Prediction | None
    """None where it cannot be."""
    obstacle: str = ""
    """Why not."""

    @property
    def feasible(self) -> bool:
        return not self.obstacle

    @property
    def waits(self) -> bool:
        return not self.config.exchange.traits.late

    @property
    def passes(self) -> int:
        """K."""
        return self.config.exchange.backward_passes_per_step

    @property
    def rate(self) -> float:
        """Images a second; 0 where it cannot be."""
        found = self.prediction
        return found.images_per_second if found is not None and self.feasible else 0.0

    @property
    def overrides(self) -> str:
        """As `harness train` takes them beside the experiment, whatever that says itself."""
        exchange = self.config.exchange
        told = [f"exchange.{key}={getattr(exchange, key)}" for key in DECIDED]
        return " ".join([f"classifier.layout={self.config.classifier.layout}", *told])

    @property
    def harm(self) -> tuple[int, int, int, int]:
        """What it does to accuracy, least first: rarer steps, then parameters that are averaged
        more rarely, piece by piece, then fewer bits, then staleness.

        The order of remedies backwards: hide, then shrink, then make rare.
        """
        exchange = self.config.exchange
        return (
            exchange.backward_passes_per_step,
            exchange.pieces,
            COMPRESSIONS.index(exchange.compression),
            PLANNED.index(exchange.kind),
        )


def all_ways(config: Config, cluster: Cluster) -> list[Way]:
    return [
        quickest_way(with_exchange(config, layout, kind, passes, compression, pieces), cluster)
        for layout in LAYOUTS
        for kind in PLANNED
        if layout != "world" or not KINDS[kind].local_steps  # a node has not all classes
        for passes in PASSES
        for compression in WIRES
        for pieces in (PIECES if KINDS[kind].in_pieces else (1,))
    ]


def with_exchange(
    config: Config,
    layout: str,
    kind: KindName,
    passes: int,
    compression: str = "none",
    pieces: int = 1,
) -> Config:
    """The experiment in another way; late ways are one window late."""
    values = config.exchange.model_dump() | {
        "kind": kind,
        "route": "auto",
        "delay": int(KINDS[kind].late),
        "backward_passes_per_step": passes,
        "compression": compression,
        "pieces": pieces,
        "max_pieces": 0,
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
    }
    return config.model_copy(
        update={
            "exchange": type(config.exchange)(**values),
            "classifier": config.classifier.model_copy(update={"layout": layout}),
        }
    )


def on_each_route(config: Config) -> list[Config]:
    """The experiment by all routes that it can take: two where it waits."""
    if not config.exchange.traits.has_routes:
        return [config]
    return [config.exchanging(route=route) for route in ("flat", "hierarchical")]


def quickest_way(config: Config, cluster: Cluster) -> Way:
    """By the better of its routes."""
    return max((way_of(each, cluster) for each in on_each_route(config)), key=lambda way: way.rate)


def way_of(config: Config, cluster: Cluster) -> Way:
    try:
        found = predict(cluster, config)
    except UserError as error:
        return Way(config, None, str(error))
    if found.memory_mb * 1e6 > cluster.memory_bytes:
        has = in_bytes(cluster.memory_bytes)
        return Way(config, found, f"needs {in_bytes(found.memory_mb * 1e6)}, a rank has {has}")
    return Way(config, found)


def recommended(ways: Sequence[Way]) -> Way | None:
    """Of the ways that are fast enough, that which costs the least accuracy; None: none can be.

    A late way is none of them unless it pays beside all that wait with as many micro-batches.
    """
    feasible = [way for way in ways if way.feasible]
    if not feasible:
        return None
    fastest = max(way.rate for way in feasible)
    enough = [way for way in feasible if way.rate >= ENOUGH * fastest and _pays(way, feasible)]
    least = min(way.harm for way in enough)
    return max((way for way in enough if way.harm == least), key=lambda way: way.rate)


def _pays(way: Way, feasible: Sequence[Way]) -> bool:
    if way.waits:
        return True
    waiting = [other.rate for other in feasible if other.waits and other.passes == way.passes]
    return way.rate >= PAYS * max(waiting, default=0.0)


def strongest_baseline(ways: Sequence[Way], passes: int | None = None) -> Way | None:
    """The fastest that is data parallel and waits, of so many passes or of any."""
    found = [
        way
        for way in ways
        if way.feasible
        and way.config.classifier.layout == "replicated"
        and way.waits
        and passes in (None, way.passes)
    ]
    return max(found, key=lambda way: way.rate, default=None)


def crossing(
    difference: Callable[[float], float], low: float, high: float, steps: int = 60
) -> float | None:
    """Where a function of a positive number changes its sign, by halving on a scale of logarithms.

    None where it has one sign at both ends.
    """
    at_low = difference(low)
    if (at_low > 0) == (difference(high) > 0):
        return None
    for _ in range(steps):
        middle = math.sqrt(low * high)
        if (difference(middle) > 0) == (at_low > 0):
            low = middle
        else:
            high = middle
    return high
