"""Every layout and exchange equals its plain sequential program, in float64, on real ranks."""

import json
from functools import cache
from typing import Any

import pytest

from tests.horovodrun import horovodrun
from tests.laws.cases import AVERAGING_IS_SYNCHRONOUS, WATCHED, Case, cases_for

GRIDS = {
    "two nodes of two": (4, "localhost:2,127.0.0.1:2"),
    "one node of two": (2, "localhost:2"),
    "two nodes of one": (2, "localhost:1,127.0.0.1:1"),
}
PARTS = {"two nodes of two": 2, "one node of two": 1, "two nodes of one": 1}
"""Launches that share a grid's cases."""
GRID_CASES = [
    pytest.param(grid, case, id=f"{grid}-{case.name}")
    for grid, (ranks, _) in GRIDS.items()
    for case in cases_for(ranks)
]
EXACT = [param for param in GRID_CASES if not param.values[1].near]
NEAR = [param for param in GRID_CASES if param.values[1].near]
LATE = [param for param in GRID_CASES if param.values[1].delay]


def has_nothing_late(grid: str, case: Case) -> bool:
    """One node's average is its own values: nothing changes when it lands."""
    return grid == "one node of two" and case.kind == "averaging"


@cache
def results(grid: str, part: int) -> dict[str, Any]:
    """One horovodrun trains a part of a grid's cases: all of them would take too long."""
    ranks, hosts = GRIDS[grid]
    found = horovodrun(
        ["-m", "tests.laws.program", str(part), str(PARTS[grid])],
        np=ranks,
        hosts=hosts,
        timeout=600,  # shared machines are at times a third as fast
        environment={"HOROVOD_CYCLE_TIME": "5"},
    )
    lines = [json.loads(line) for line in found.lines(0) if line.startswith("{")]
    return {line["case"]: line for line in lines}


def result(grid: str, case: Case) -> Any:
    part = cases_for(GRIDS[grid][0]).index(case) % PARTS[grid]
    return results(grid, part)[case.name]


@pytest.mark.parametrize(("grid", "case"), EXACT)
def test_parameters_equal_the_sequential_program(grid: str, case: Case) -> None:
    found = result(grid, case)
    assert found["deviation"] < 1e-12
    assert found["moved"] > 1e-2, "nothing was learned: the comparison would show nothing"


@pytest.mark.parametrize(("grid", "case"), EXACT)
def test_losses_equal_the_sequential_program(grid: str, case: Case) -> None:
    assert result(grid, case)["loss_deviation"] < 1e-12


@pytest.mark.parametrize(("grid", "case"), NEAR)
def test_fewer_bytes_stay_near_the_sequential_program(grid: str, case: Case) -> None:
    found = result(grid, case)
    assert 1e-9 < found["deviation"] < 0.2 * found["moved"]


@pytest.mark.parametrize(("grid", "case"), LATE)
def test_a_delay_shows(grid: str, case: Case) -> None:
    found = result(grid, case)["from_on_time"]
    if has_nothing_late(grid, case):
        assert found < 1e-12
    else:
        assert found > 1e-4, "the tolerance could not tell late from now"


@pytest.mark.parametrize(("grid", "case"), GRID_CASES)
def test_replicas_are_equal_to_the_bit(grid: str, case: Case) -> None:
    assert result(grid, case)["differing"] == 0


@pytest.mark.parametrize("case", WATCHED)
def test_an_evaluation_leaves_no_trace(case: Case) -> None:
    assert result("two nodes of two", case)["changed_by_watching"] == 0


@pytest.mark.parametrize(("grid", "case"), GRID_CASES)
def test_all_ranks_enter_the_same_collectives_in_the_same_order(grid: str, case: Case) -> None:
    found = result(grid, case)
    assert found["same_order"]
    assert found["collectives"] >= 6


@pytest.mark.parametrize(("grid", "case"), GRID_CASES)
def test_counted_bytes_equal_the_formula(grid: str, case: Case) -> None:
    found = result(grid, case)
    assert found["counted"] == pytest.approx(found["formula"], rel=1e-12)


@pytest.mark.parametrize(("grid", "case"), GRID_CASES)
def test_phases_add_up_to_the_window(grid: str, case: Case) -> None:
    found = result(grid, case)
    assert found["phase_sum_ms"] == pytest.approx(found["step_ms"], rel=1e-9)


@pytest.mark.parametrize("case", [c for c in cases_for(4) if c.is_horovods and not c.near])
def test_synchronous_equals_horovods_own_optimizer(case: Case) -> None:
    assert result("two nodes of two", case)["from_distributed_optimizer"] < 1e-12


def test_averaging_at_once_with_plain_sgd_is_synchronous() -> None:
    """Both equal the same program: K=1, delay 0, no momentum."""
    assert len(AVERAGING_IS_SYNCHRONOUS) == 2
    for case in AVERAGING_IS_SYNCHRONOUS:
        assert result("two nodes of two", case)["deviation"] < 1e-12
