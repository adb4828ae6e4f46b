"""Picks the route of a synchronous exchange, from measured times of this very run."""

import sys

from harness.config import Config
from harness.data.images import Dataset
from harness.exchange.exchange import differing_routes
from harness.parallel.world import World
from harness.train.checkpoint.meta import passed_alike
from harness.train.trial import Trial, slowest

ROUTES = ("hierarchical", "flat")
WARM_WINDOWS = 2
ROUNDS = 2
"""One route, then the other, and both again: a machine's speed drifts."""
ROUND_MS, FEWEST, MOST = 1500, 2, 8
"""How long a route is timed in a round, and in how many windows."""
ALIKE = 0.98
"""A flat route that takes this share of the other's time or more is not taken: it sends more."""


def routed(config: Config, dataset: Dataset, world: World) -> Config:
    """The config with `exchange.route` decided, where it is `auto` and there is a choice.

    A run that goes on with as many ranks keeps its route, or sums would be rounded in another
    order. All ranks decide from the same numbers. Collective over the world.
    """
    exchange, topology = config.exchange, world.topology
    if exchange.route != "auto" or not exchange.traits.has_routes:
        return config
    if not differing_routes(exchange, topology.nodes, topology.ranks_per_node):
        return config
    kept = passed_alike(config, topology.world_size)
    if kept and kept.route:
        return config.exchanging(route=kept.route)
    times = measured_ms(config, dataset, world)
    hierarchical, flat = (times[route] for route in ROUTES)
    route = "flat" if flat < ALIKE * hierarchical else "hierarchical"
    if world.is_first:
        print(
            f"exchange.route={route}: a window takes {hierarchical:.1f} ms by the hierarchical "
            f"route, {flat:.1f} ms by the flat one",
            file=sys.stderr,
            flush=True,
        )
    return config.exchanging(route=route)


def measured_ms(config: Config, dataset: Dataset, world: World) -> dict[str, float]:
    """A window by each route, the slowest rank's, in the better of the rounds.

    One after the other: a card has no room for both. Collective over the world.
    """
    found: dict[str, list[float]] = {route: [] for route in ROUTES}
    for _ in range(ROUNDS):
        for route in ROUTES:
            trial = Trial(config.exchanging(route=route), dataset, world)
            (first_ms,) = slowest([trial.window_ms(WARM_WINDOWS)], world)
            windows = max(FEWEST, min(MOST, round(ROUND_MS / first_ms)))
            found[route] += slowest([trial.window_ms(windows)], world)
            trial.close()
    return {route: min(times) for route, times in found.items()}
