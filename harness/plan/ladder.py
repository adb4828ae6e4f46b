"""The predicted ladder of an experiment on a cluster: images/s, with one more lever per rung."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.compare.levers import Lever, Levers
from harness.config import Config
from harness.plan.cost_model import with_chosen_pieces
from harness.plan.machines import Cluster
from harness.plan.ways import Way, way_of, with_exchange

PASSES, COMPRESSION, PIECES, DELAY = 2, "int8", 2, 1
"""How far levers are pulled that the experiment does not pull."""
NOTE = (
    "time to accuracy is not predicted, because fewer bytes, rarer exchanges, local steps and "
    "lateness change what is learned from an image. To measure it, run harness compare with a "
    "variant per rung; it prints this ladder with both"
)


@dataclass(frozen=True)
class PlannedRung:
    """A variant with one more lever than the rung below."""

    lever: Lever | None
    """The lever that this rung adds; None for the baseline."""
    setting: str
    """How far the lever is pulled, as text; empty for the baseline and if there is no choice."""
    way: Way

    @property
    def name(self) -> str:
        if self.lever is None:
            return "baseline"
        return f"{self.lever} ({self.setting})" if self.setting else str(self.lever)


def planned_ladder(config: Config, cluster: Cluster) -> list[PlannedRung]:
    """The rungs from the baseline up; levers that the experiment does not pull have no rung."""
    top = _top(config, cluster)
    rungs = []
    for number, lever in enumerate((None, *top.in_order)):
        way = way_of(_climbed(config, top.in_order[:number], top), cluster)
        rungs.append(PlannedRung(lever, top.setting(lever) if lever else "", way))
    return rungs


def _top(config: Config, cluster: Cluster) -> Levers:
    """The levers of the top rung.

    If the experiment averages, K, compression, pieces and delay are its own, else the defaults.
    """
    exchange = config.exchange
    if not (exchange.traits.on_ladder and exchange.traits.local_steps):
        return Levers(
            frozenset(Lever), COMPRESSION, PASSES, PIECES, PIECES, DELAY, exchange.carrier
        )
    passes, compression = exchange.backward_passes_per_step, exchange.compression
    idle = {Lever.RARER} if passes == 1 else set()
    idle |= {Lever.FEWER_BYTES} if compression == "none" else set()
    pieces = with_chosen_pieces(
        cluster, config, cluster.nodes, cluster.ranks_per_node
    ).exchange.pieces
    of_slice = exchange.slice_pieces or pieces
    delay = exchange.delay or DELAY
    return Levers(
        frozenset(Lever) - idle,
        compression,
        passes,
        pieces,
        of_slice,
        delay,
        exchange.carrier,
    )


def _climbed(config: Config, pulled: Sequence[Lever], top: Levers) -> Config:
    """The experiment with the levers `pulled`, each as far as in `top`."""
    averages = Lever.LOCAL_STEPS in pulled
    found = with_exchange(
        config,
        "node" if Lever.SLICED in pulled else "replicated",
        "averaging" if averages else "synchronous",
        top.passes if Lever.RARER in pulled else 1,
        top.compression if Lever.FEWER_BYTES in pulled else "none",
        top.pieces if averages else 1,
    )
    route = "hierarchical" if Lever.HIERARCHICAL in pulled else "flat"
    sliced = averages and Lever.SLICED in pulled
    paced = sliced and top.slice_pieces != top.pieces
    values = found.exchange.model_dump() | {
        "route": "auto" if averages else route,
        "slice_pieces": top.slice_pieces if paced else None,
        "slice_rows": config.exchange.slice_rows if sliced else "all",
        "delay": top.delay if Lever.LATE in pulled else 0,
    }
    return found.model_copy(update={"exchange": type(found.exchange)(**values)})


def ladder_lines(config: Config, cluster: Cluster) -> list[str]:
    """The lines of the ladder in `harness plan`; empty for one node, which exchanges nothing."""
    if cluster.nodes == 1:
        return []
    rungs = planned_ladder(config, cluster)
    lines = [
        "the predicted ladder: each rung keeps the levers of the rung below and adds one",
        f"{'rung':24} {'images/s':>10} {'x rung below':>17} {'x baseline':>15}",
    ]
    below: PlannedRung | None = None
    for before, rung in zip((None, *rungs), rungs, strict=False):
        if not rung.way.feasible:
            lines.append(f"{rung.name:24} infeasible: {rung.way.infeasible_because}")
            continue
        line = f"{rung.name:24} {rung.way.rate:10,.0f}"
        if rung.lever:
            line += f" {_ratio(rung, below):>17} {_ratio(rung, rungs[0]):>15}"
        if below is not None and before is not below:
            line += f"  rung below: {below.name}"
        lines.append(line)
        below = rung
    return [*lines, NOTE]


def _ratio(rung: PlannedRung, other: PlannedRung | None) -> str:
    """The ratio of rates, or `-` if the other rung is infeasible."""
    rate = 0.0 if other is None else other.way.rate
    return f"{rung.way.rate / rate:.2f}x" if rate else "-"
