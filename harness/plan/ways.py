"""Predicts every way of training an experiment on a cluster."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from harness.compare.levers import pieces_text
from harness.config import Config
from harness.doctor.finding import format_bytes
from harness.errors import UserError
from harness.exchange.codecs import COMPRESSIONS
from harness.exchange.kinds import KINDS, PLANNED, KindName
from harness.exchange.preference import accuracy_cost
from harness.plan.cost_model import predict
from harness.plan.machines import Cluster
from harness.tracking.prediction import Prediction

LAYOUTS = ("replicated", "node", "world")
PASSES = (1, 2, 4, 8)
WIRES = tuple(wire for wire in COMPRESSIONS if wire != "sign")
"""Compressions to try. Signs are left out, because their cost in accuracy is not known; they are
predicted if an experiment asks for them."""
PIECES = (1, 2)
"""Numbers of pieces to try for exchanges that average in pieces."""
OVERRIDDEN = (
    "kind",
    "route",
    "backward_passes_per_step",
    "delay",
    "compression",
    "pieces",
    "slice_pieces",
    "slice_rows",
    "max_pieces",
    "outer_lr",
    "outer_momentum",
)
"""Exchange settings of the experiment that a way overrides."""


@dataclass(frozen=True)
class Way:
    """One combination of layout, exchange, K, compression and pieces, predicted on the cluster."""

    config: Config
    prediction: Prediction | None
    """None if the cluster cannot run the config."""
    infeasible_because: str = ""
    """Why the way is infeasible; empty if it is feasible."""

    @property
    def feasible(self) -> bool:
        return not self.infeasible_because

    @property
    def waits(self) -> bool:
        return not self.config.exchange.traits.late

    @property
    def passes(self) -> int:
        """K, micro-batches per step."""
        return self.config.exchange.backward_passes_per_step

    @property
    def rate(self) -> float:
        """Images per second; 0 if the way is infeasible."""
        found = self.prediction
        return found.images_per_second if found is not None and self.feasible else 0.0

    @property
    def text(self) -> str:
        """The way in the words of the table's columns."""
        exchange = self.config.exchange
        words = [f"{self.config.classifier.layout} {exchange.kind}", f"K = {self.passes}"]
        words.append(sent_as(exchange.compression))
        if max(exchange.pieces, exchange.slice_pieces or 1) > 1:
            words.append(pieces_text(exchange.pieces, exchange.slice_pieces))
        return ", ".join(words)

    @property
    def overrides(self) -> str:
        """The overrides that turn the experiment into this way, as `harness train` takes them."""
        exchange = self.config.exchange
        given = {key: getattr(exchange, key) for key in OVERRIDDEN}
        settings = [
            f"exchange.{key}={'null' if value is None else value}" for key, value in given.items()
        ]
        return " ".join([f"classifier.layout={self.config.classifier.layout}", *settings])

    @property
    def accuracy_cost(self) -> tuple[int, int, int, int]:
        """The expected cost in accuracy, as a key that sorts the least costly way first."""
        exchange = self.config.exchange
        pieces = max(exchange.pieces, exchange.slice_pieces or 1)
        return accuracy_cost(self.passes, pieces, exchange.compression, exchange.chosen_kind)


def all_ways(config: Config, cluster: Cluster) -> list[Way]:
    """Predicts all combinations, each by the faster of its routes."""
    return [
        quickest_way(with_exchange(config, layout, kind, passes, compression, pieces), cluster)
        for layout in LAYOUTS
        for kind in PLANNED
        # With slices over the world a node lacks classes, so it cannot take steps by itself.
        if layout != "world" or not KINDS[kind].local_steps
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
    """The experiment with another layout and exchange; late ways have a delay of one window."""
    values = config.exchange.model_dump() | {
        "kind": kind,
        "route": "auto",
        "delay": int(KINDS[kind].late),
        "backward_passes_per_step": passes,
        "compression": compression,
        "pieces": pieces,
        "slice_pieces": None,
        "slice_rows": "all",
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
    """The experiment on every route that it can take: two for a synchronous exchange, else one."""
    if not config.exchange.traits.has_routes:
        return [config]
    return [config.exchanging(route=route) for route in ("flat", "hierarchical")]


def quickest_way(config: Config, cluster: Cluster) -> Way:
    """The way on the faster of its routes."""
    return max((way_of(each, cluster) for each in on_each_route(config)), key=lambda way: way.rate)


def way_of(config: Config, cluster: Cluster) -> Way:
    """Predicts a config; a way is infeasible if ranks cannot run it or lack the memory."""
    if reason := config.why_nothing_is_shared() or config.why_no_class_rests():
        return Way(config, None, reason)
    try:
        found = predict(cluster, config)
    except UserError as error:
        return Way(config, None, str(error))
    if found.memory_mb * 1e6 > cluster.memory_bytes:
        has = format_bytes(cluster.memory_bytes)
        return Way(
            config, found, f"needs {format_bytes(found.memory_mb * 1e6)}, but a rank has {has}"
        )
    return Way(config, found)


def sent_as(compression: str) -> str:
    """The encoding of what crosses between nodes; without compression that of the parameters."""
    return "fp32" if compression == "none" else compression


def crossing(
    difference: Callable[[float], float], low: float, high: float, steps: int = 60
) -> float | None:
    """Where a function of a positive number changes sign, by bisection on a log scale.

    None if it has the same sign at both ends.
    """
    at_low = difference(low)
    if (at_low > 0) == (difference(high) > 0):
        return None
    for _ in range(steps):
        middle = math.sqrt(low * high)  # halves the interval of logarithms
        if (difference(middle) > 0) == (at_low > 0):
            low = middle
        else:
            high = middle
    return high
