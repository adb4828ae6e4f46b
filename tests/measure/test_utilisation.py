"""What each rank did with its time, from tallies made by hand."""

import pytest
import torch

from harness.measure.clock import Times
from harness.measure.phase import Phase
from harness.measure.summary import RankCost
from harness.measure.tally import Tally, Totals
from harness.measure.traffic import Bytes
from harness.measure.utilisation import (
    Capacity,
    summary_bars,
    utilisation_line,
    utilisation_metrics,
)

CAPACITY = Capacity(flop_per_window=6e9, matmul_flop_per_second=4e10, cores=2)


def times(**milliseconds: float) -> Times:
    return dict.fromkeys(Phase, 0.0) | {Phase(name): value for name, value in milliseconds.items()}


def tally(cpu_seconds: float, capacity: Capacity = CAPACITY, **milliseconds: float) -> Tally:
    """Two windows of the same times."""
    found = Tally(capacity)
    for _ in range(2):
        found.add_times([times(**milliseconds)])
        found.add_bytes(Bytes())
        found.add_cpu(cpu_seconds)
    return found


def totals(*tallies: Tally, nodes: int = 1, images: float = 0) -> Totals:
    return Totals(torch.stack([each.vector() for each in tallies]), nodes, images)


def test_a_ranks_cost_by_hand() -> None:
    """A window of 400 ms: 120 of them useful, 500 ms of processor time on two cores."""
    busy = tally(0.5, data=20, forward=40, backward=70, optimizer=10, slice_wait=60, other=200)
    (cost,) = totals(busy, images=32).per_rank
    assert (cost.rank, cost.node) == (0, 0)
    assert cost.step_ms == 400
    assert cost.images_per_second == pytest.approx(80)
    assert cost.computed_percent == pytest.approx(30)
    assert cost.percent(Phase.SLICE_WAIT) == pytest.approx(15)
    assert cost.counter_percent == pytest.approx(62.5)
    assert cost.flop_per_second == pytest.approx(15e9)
    assert cost.matmul_percent == pytest.approx(37.5)
    assert sum(cost.percent(phase) for phase in Phase) == pytest.approx(100)


def test_the_counter_calls_a_spinning_wait_busy() -> None:
    """The point of showing both."""
    (cost,) = totals(tally(0.2, forward=10, exchange_wait=90)).per_rank
    assert cost.counter_percent == pytest.approx(100)
    assert cost.computed_percent == pytest.approx(10)


def test_a_card_has_no_counter_here_and_an_unmeasured_product_no_share() -> None:
    (cost,) = totals(tally(0.2, Capacity(flop_per_window=1e9), forward=10)).per_rank
    assert cost.counter_percent is None
    assert cost.matmul_percent is None
    names = utilisation_metrics([cost]).keys()
    assert not [name for name in names if "counter" in name or "matmul" in name]
    assert summary_bars([cost]) == {"summary/computed_percent": 100}


def test_a_rank_that_timed_nothing_divides_by_nothing() -> None:
    found = totals(Tally(CAPACITY), Tally(), images=8).per_rank
    for cost in found:
        assert (cost.step_ms, cost.images_per_second, cost.flop_per_second) == (0, 0, 0)
        assert (cost.computed_percent, cost.counter_percent) == (0, None)
    assert utilisation_line(found).startswith("0 % of a step spent computing")
    assert utilisation_line(()) == "not measured"
    assert summary_bars(()) == {}


def test_metrics_are_means_over_ranks_and_over_each_nodes() -> None:
    ranks = [
        tally(0.1, forward=20, node_wait=80),
        tally(0.2, forward=40, exchange_wait=60),
        tally(0.04, backward=60, data=40),
        tally(0.06, optimizer=180, data=20),
    ]
    found = utilisation_metrics(totals(*ranks, nodes=2, images=10).per_rank)
    expected = {
        "utilisation/computed_percent": (20 + 40 + 60 + 90) / 4,
        "utilisation/node_wait_percent": 80 / 4,
        "utilisation/exchange_wait_percent": 60 / 4,
        "utilisation/slice_wait_percent": 0,
        "utilisation/data_percent": (40 + 10) / 4,
        "utilisation/counter_percent": (50 + 100 + 20 + 15) / 4,
        "utilisation/node_0_computed_percent": 30,
        "utilisation/node_1_computed_percent": 75,
        "utilisation/node_0_counter_percent": 75,
        "utilisation/node_1_counter_percent": 17.5,
        "utilisation/model_flop_per_second_per_rank": (3 * 60e9 + 30e9) / 4,
        "utilisation/matmul_percent": (3 * 150 + 75) / 4,
        "throughput/images_per_second_per_rank": (3 * 100 + 50) / 4,
        "throughput_min/images_per_second_per_rank": 50,
        "throughput_max/images_per_second_per_rank": 100,
    }
    assert found == pytest.approx(expected)


def test_of_many_nodes_the_first_are_shown() -> None:
    costs = totals(*[tally(0.1, forward=10) for _ in range(20)], nodes=20).per_rank
    assert [cost.node for cost in costs] == list(range(20))
    shown = {name for name in utilisation_metrics(costs) if "/node_" in name}
    assert len(shown - {"utilisation/node_wait_percent"}) == 2 * 16


def test_a_line_for_the_user() -> None:
    line = utilisation_line(totals(tally(0.1, forward=30, exchange_wait=70)).per_rank)
    assert line == (
        "30 % of a step spent computing · 50 % by the processor's counter · "
        "60.00 GFLOP/s per rank, 150 % of a plain matrix product"
    )


def test_waiting_inside_the_backward_pass_is_not_called_computing() -> None:
    """As in torch's DistributedDataParallel."""
    rows = torch.stack([tally(0.1, backward=90, data=10).vector()])
    costs = Totals(rows, 1, 10, waits_in_backward=True).per_rank
    assert costs[0].computed_percent is None
    shown = utilisation_metrics(costs)
    assert not [name for name in shown if "computed" in name or "wait" in name]
    assert shown["utilisation/data_percent"] == 10
    assert "summary/computed_percent" not in summary_bars(costs)
    assert utilisation_line(costs).startswith(
        "computing and waiting cannot be separated · 50 % by the processor's counter"
    )


def test_a_cost_comes_back_from_its_file() -> None:
    (cost,) = totals(tally(0.1, forward=30)).per_rank
    assert RankCost.model_validate_json(cost.model_dump_json()) == cost
