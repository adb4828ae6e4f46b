"""Utilisation: the share of time and of processor speed used by the model, next to the processor's
own counter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from harness.measure.data_bound import WAITS
from harness.measure.phase import Phase
from harness.measure.summary import RankCost

SHOWN = (Phase.DATA, Phase.SLICE_WAIT, Phase.NODE_WAIT, Phase.EXCHANGE_WAIT)
NODES_SHOWN = 16
"""Nodes with metrics of their own, two each: more would make MLflow's page unreadable."""


@dataclass(frozen=True)
class Capacity:
    """The work of a rank's window and the speed of its processor; 0 if unknown."""

    flop_per_window: float = 0.0
    """Model operations in a window."""
    matmul_flop_per_second: float = 0.0
    """Speed of a plain matrix product."""
    cores: float = 0.0
    """Cores that the rank can keep busy: its threads, or its share if ranks outnumber the cores. 0
    on cards, whose counter is not this process's CPU time."""


UNKNOWN = Capacity()


def utilisation_metrics(costs: Sequence[RankCost]) -> dict[str, float]:
    """Metrics by MLflow's names: means over ranks, and the mean of each node. What is known of no
    rank is left out."""
    found: dict[str, float] = {}
    for phase in SHOWN:
        found |= _known(f"utilisation/{phase}_percent", costs, _share(phase))
    found |= _pair("utilisation/", costs)
    rates = [cost.images_per_second for cost in costs]
    for section, value in (("", fmean(rates)), ("_min", min(rates)), ("_max", max(rates))):
        found[f"throughput{section}/images_per_second_per_rank"] = value
    found["utilisation/model_flop_per_second_per_rank"] = fmean(
        cost.flop_per_second for cost in costs
    )
    found |= _known("utilisation/matmul_percent", costs, lambda cost: cost.matmul_percent)
    for node in range(min(NODES_SHOWN, costs[-1].node + 1)):
        found |= _pair(f"utilisation/node_{node}_", [cost for cost in costs if cost.node == node])
    return found


def summary_bars(costs: Sequence[RankCost]) -> dict[str, float]:
    """One number per run: computed share, counter, and share of the plain product's speed."""
    if not costs:
        return {}
    reached = _known("summary/matmul_percent", costs, lambda cost: cost.matmul_percent)
    return _pair("summary/", costs) | reached


def utilisation_line(costs: Sequence[RankCost]) -> str:
    """The utilisation in one line of the closing report."""
    if not costs:
        return "not measured"
    bars = summary_bars(costs)
    computed = bars.get("summary/computed_percent")
    words = [
        "computing and waiting cannot be separated"
        if computed is None
        else f"{computed:.0f} % of a step spent computing"
    ]
    if (counter := bars.get("summary/counter_percent")) is not None:
        words.append(f"{counter:.0f} % by the processor's counter")
    rate = fmean(cost.flop_per_second for cost in costs) / 1e9
    words.append(f"{rate:,.2f} GFLOP/s per rank")
    if (reached := bars.get("summary/matmul_percent")) is not None:
        words[-1] += f", {reached:.0f} % of a plain matrix product"
    return " · ".join(words)


def _share(phase: Phase) -> Callable[[RankCost], float | None]:
    """Percentage of a step in the phase; None for a wait that is inside the backward pass."""
    waits = phase in WAITS
    return lambda cost: None if waits and cost.waits_in_backward else cost.percent(phase)


def _pair(prefix: str, costs: Sequence[RankCost]) -> dict[str, float]:
    """The computed share, and the processor counter's share."""
    found = _known(f"{prefix}computed_percent", costs, lambda cost: cost.computed_percent)
    return found | _known(f"{prefix}counter_percent", costs, lambda cost: cost.counter_percent)


def _known(
    name: str, costs: Sequence[RankCost], value: Callable[[RankCost], float | None]
) -> dict[str, float]:
    """The mean over the ranks with a known value; empty if there is none."""
    values = [found for cost in costs if (found := value(cost)) is not None]
    return {name: fmean(values)} if values else {}
