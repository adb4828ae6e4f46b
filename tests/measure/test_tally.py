"""What is added up on ranks and gathered gives means over windows and spreads over ranks."""

import pytest
import torch

from harness.measure.clock import Times
from harness.measure.phase import Phase
from harness.measure.summary import Spread
from harness.measure.tally import COLUMNS, Column, Tally, Totals, per_node
from harness.measure.traffic import Bytes

NAMES = (
    "train/loss",
    "train/top1",
    "time/step_ms",
    "time/data_ms",
    "time/forward_ms",
    "time/backward_ms",
    "time/slice_wait_ms",
    "time/exchange_wait_ms",
    "time/optimizer_ms",
    "traffic/cross_node_mb_per_step",
    "traffic/in_node_mb_per_step",
)
"""Other tools may ask for these; more may be added."""


def times(**milliseconds: float) -> Times:
    return dict.fromkeys(Phase, 0.0) | {Phase(name): value for name, value in milliseconds.items()}


def totals(*tallies: Tally, nodes: int = 1) -> Totals:
    return Totals(torch.stack([tally.vector() for tally in tallies]), nodes)


def test_scores_are_means_over_micro_batches_then_ranks() -> None:
    one, other = Tally(), Tally()
    for loss, top1 in ((1.0, 0.0), (2.0, 0.5), (6.0, 1.0)):
        one.add_scores(torch.tensor(loss, requires_grad=True), torch.tensor(top1))
    other.add_scores(torch.tensor(5.0), torch.tensor(0.1))
    found = totals(one, other)
    assert found.loss == (3.0 + 5.0) / 2
    assert round(found.top1, 6) == (0.5 + 0.1) / 2


def test_scores_keep_float64() -> None:
    tally = Tally()
    tally.add_scores(torch.tensor(1 / 3, dtype=torch.float64), torch.tensor(0.0).double())
    assert totals(tally).loss == 1 / 3


def test_times_are_means_over_windows_and_spreads_over_ranks() -> None:
    one, other = Tally(), Tally()
    one.add_times([times(data=10, forward=20), times(data=30)])
    one.add_times([])
    other.add_times([times(data=1, exchange_wait=9)])
    other.add_times([times(data=3, exchange_wait=11)])
    found = totals(one, other)
    assert found.windows == 2
    assert found.phases_ms["data"] == Spread(minimum=2, mean=11, maximum=20)
    assert found.phases_ms["forward"] == Spread(minimum=0, mean=5, maximum=10)
    assert found.phases_ms["exchange_wait"] == Spread(minimum=0, mean=5, maximum=10)
    assert found.step_ms == Spread(minimum=12, mean=21, maximum=30)
    assert set(found.phases_ms) == {phase.value for phase in Phase}
    assert sum(spread.mean for spread in found.phases_ms.values()) == found.step_ms.mean


def test_windows_that_a_card_has_not_finished_are_not_in_the_mean() -> None:
    """Bytes are known at once, times later: each has its own number of windows."""
    tally = Tally()
    tally.add_times([times(data=10)])
    for _ in range(4):
        tally.add_bytes(Bytes(2e6, 1e6))
    found = totals(tally)
    assert found.step_ms.mean == 10
    assert (found.in_node_mb, found.cross_node_mb) == (2, 1)


def test_bytes_are_a_ranks_inside_and_a_links_across() -> None:
    tallies = [Tally() for _ in range(4)]
    for rank, tally in enumerate(tallies):
        tally.add_bytes(Bytes(in_node=1e6 * rank, cross_node=3e6))
        tally.add_bytes(Bytes(in_node=1e6 * rank, cross_node=5e6))
    found = totals(*tallies, nodes=2)
    assert found.in_node_mb == (0 + 1 + 2 + 3) / 4
    assert found.cross_node_mb == 2 * 4


def test_the_names_that_stay() -> None:
    tally = Tally()
    tally.add_times([times(data=4, optimizer=6)])
    tally.add_bytes(Bytes(2e6, 1e6))
    tally.add_scores(torch.tensor(1.0), torch.tensor(0.5))
    metrics = totals(tally).metrics()
    assert set(NAMES) <= set(metrics)
    assert metrics["time/step_ms"] == metrics["time_max/step_ms"] == 10
    assert metrics["time/optimizer_ms"] == metrics["time_min/optimizer_ms"] == 6


def test_nothing_tallied_is_zero_and_not_a_division_by_it() -> None:
    found = totals(Tally(), Tally())
    assert (found.windows, found.loss, found.step_ms.mean) == (0, 0.0, 0.0)
    assert found.metrics() == {}


def test_a_column_is_all_that_a_metric_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = Column("dropped", "windows", 1e3, "train/thousands_dropped", per_node)
    monkeypatch.setattr("harness.measure.tally.COLUMNS", (dropped, *COLUMNS))
    tallies = [Tally() for _ in range(4)]
    for rank, tally in enumerate(tallies):
        tally.add_times([times(data=1), times(data=3)])
        tally.add("dropped", 2000.0 * rank)
    metrics = totals(*tallies, nodes=2).metrics()
    assert metrics["train/thousands_dropped"] == (0 + 1 + 2 + 3) / 2
    assert metrics["time/data_ms"] == 2
