"""The number of classes, or the link rate, from which one way of training overtakes another."""

from dataclasses import dataclass

from harness.config import Config
from harness.errors import UserError
from harness.exchange.kinds import KindName
from harness.exchange.preference import MIN_LATE_SPEEDUP
from harness.plan.cost_model import predict
from harness.plan.machines import Cluster
from harness.plan.ways import crossing, on_each_route, with_exchange

MOST_CLASSES = 100_000_000
SLOWEST, FASTEST = 1e4, 1e12
"""Range of link rates that is searched, bytes/s."""
SCALE = 40
"""Number of rates that are tried, evenly spaced on a log scale, to bracket the crossings."""


@dataclass(frozen=True)
class Rates:
    """The range of link rates on which the late exchange pays, bytes/s."""

    slowest: float
    """Lower end; SLOWEST if it pays there too."""
    fastest: float
    """Upper end; FASTEST if it pays there too."""
    best: float
    """The largest speed-up within the range."""


def classes_for_world(cluster: Cluster, config: Config, kind: KindName) -> int | None:
    """The smallest number of classes at which `world` is faster than `node`; None means never.

    `kind` is the exchange of both, synchronous or delayed.
    """
    passes = config.exchange.backward_passes_per_step

    def difference(classes: float) -> float:
        data = config.data.model_copy(update={"num_classes": round(classes)})
        given = config.model_copy(update={"data": data})
        world, node = (
            _step_ms(cluster, with_exchange(given, layout, kind, passes))
            for layout in ("world", "node")
        )
        return node - world

    least = max(2, cluster.ranks)
    if difference(least) > 0:
        return least
    found = crossing(difference, least, MOST_CLASSES)
    return None if found is None else round(found)


def rates_for_late(cluster: Cluster, config: Config, layout: str) -> Rates | None:
    """The link rates at which `delayed` with node slices beats `synchronous` with `layout`.

    None if it pays at no rate.
    """
    passes = config.exchange.backward_passes_per_step
    late = with_exchange(config, "node", "delayed", passes)
    waiting = with_exchange(config, layout, "synchronous", passes)

    def gain(rate: float) -> float:
        there = cluster.with_rate(rate)
        return _step_ms(there, waiting) / _step_ms(there, late) - MIN_LATE_SPEEDUP

    tried = [SLOWEST * (FASTEST / SLOWEST) ** (n / SCALE) for n in range(SCALE + 1)]
    gains = [gain(rate) for rate in tried]
    paying = [number for number, each in enumerate(gains) if each > 0]
    if not paying:
        return None
    # The gain is positive on one interval: a very slow link cannot be hidden, and a very fast one
    # leaves nothing to hide. Each end is refined between the two tried rates around it.
    first, last = paying[0], paying[-1]
    below = crossing(gain, tried[first - 1], tried[first]) if first else SLOWEST
    above = crossing(gain, tried[last], tried[last + 1]) if last < SCALE else FASTEST
    return Rates(below or SLOWEST, above or FASTEST, max(gains) + MIN_LATE_SPEEDUP)


def _step_ms(cluster: Cluster, config: Config) -> float:
    """Milliseconds of a step by the faster of its routes."""
    return min(predict(cluster, each).step_ms for each in on_each_route(config))


def applies(cluster: Cluster, config: Config) -> bool:
    """Whether the questions make sense: there are several nodes, and both layouts are possible."""
    sliced = with_exchange(config, "world", "synchronous", 1)
    if cluster.nodes == 1 or sliced.why_nothing_is_shared():
        return False
    try:
        predict(cluster, sliced)
    except UserError:
        return False
    return True
