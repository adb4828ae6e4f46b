"""Chooses the route of a synchronous exchange from times measured in this run."""

import sys

from harness.config import Config
from harness.data.images import Dataset
from harness.exchange.carriers import differing_routes
from harness.parallel.world import World
from harness.train.checkpoint.meta import passed_alike
from harness.train.trial import Trial, slowest

ROUTES = ("hierarchical", "flat")
WARM_WINDOWS = 2
ROUNDS = 2
"""Rounds of measurement. Each times both routes, because a machine's speed drifts."""
ROUND_MS, MOST = 1500, 8
"""Duration of one round in ms, and the most windows in it."""
CLEAR = 1.25
"""Ratio of the routes' times from which one round is enough: no drift is as large. On a slow link
a round takes many seconds."""
ALIKE = 0.98
"""The flat route is chosen only if its time is below this share of the hierarchical route's,
because it sends more bytes."""


def choose_route(config: Config, dataset: Dataset, world: World) -> Config:
    """The config with `exchange.route` decided, if it is `auto` and both routes exist.

    A resumed run on the same number of ranks keeps its route, because the other route rounds sums
    in another order. All ranks decide from the same numbers. Collective over the world.
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
            f"exchange.route={route}: a window takes {hierarchical:.1f} ms on the hierarchical "
            f"route and {flat:.1f} ms on the flat one",
            file=sys.stderr,
            flush=True,
        )
    return config.exchanging(route=route)


def measured_ms(config: Config, dataset: Dataset, world: World) -> dict[str, float]:
    """Milliseconds of a window on each route: the slowest rank, in the faster of the rounds.

    The routes are built one after the other, because a card has no room for both. Collective over
    the world.
    """
    found: dict[str, list[float]] = {route: [] for route in ROUTES}
    for _ in range(ROUNDS):
        for route in ROUTES:
            trial = Trial(config.exchanging(route=route), dataset, world)
            (first_ms,) = slowest([trial.window_ms(WARM_WINDOWS)], world)
            windows = max(1, min(MOST, round(ROUND_MS / first_ms)))
            found[route] += slowest([trial.window_ms(windows)], world)
            trial.close()
        fastest, other = sorted(min(times) for times in found.values())
        if other > CLEAR * fastest:
            break
    return {route: min(times) for route, times in found.items()}
