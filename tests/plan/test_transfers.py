"""Steps of rings and trees, counted by hand."""

import pytest

from harness.plan.transfers import (
    CollectiveSteps,
    all_reduce_steps,
    crossing_steps,
    gather_steps,
    quickest,
    step_seconds_of,
)

STEP, LATENCY = 3e-5, 1e-6


def test_a_ring_crosses_between_nodes_once_for_each() -> None:
    assert gather_steps(4, 8, on_cards=True) == CollectiveSteps(4, 27)
    assert gather_steps(1, 8, on_cards=True) == CollectiveSteps(0, 7)
    assert gather_steps(4, 1, on_cards=True) == CollectiveSteps(3, 0)
    assert all_reduce_steps(4, 8, on_cards=True)[0] == CollectiveSteps(8, 54)


def test_on_cores_every_hop_counts_as_one_between_nodes() -> None:
    assert gather_steps(4, 8, on_cards=False) == CollectiveSteps(31)
    assert all_reduce_steps(4, 8, on_cards=False) == (CollectiveSteps(62),)


def test_two_nodes_swap_what_a_lossy_wire_sends() -> None:
    assert crossing_steps(2, lossy=True, on_cards=False) == (CollectiveSteps(1),)
    assert crossing_steps(2, lossy=False, on_cards=False) == (CollectiveSteps(2),)
    assert crossing_steps(3, lossy=True, on_cards=True) == all_reduce_steps(3, 1, on_cards=True)


def test_a_tree_is_quicker_where_nodes_are_many() -> None:
    """512 machines of eight cards: nine steps up and nine down in place of 512 twice."""
    ways = all_reduce_steps(512, 8, on_cards=True)
    assert quickest(ways, STEP, LATENCY) == pytest.approx(2 * (9 * STEP + 7 * LATENCY))
    ring, _ = ways
    assert ring.seconds(STEP, LATENCY) == pytest.approx(2 * (512 * STEP + 3583 * LATENCY))
    assert quickest(all_reduce_steps(3, 1, on_cards=True), STEP, 0.0) == pytest.approx(4 * STEP)


@pytest.mark.parametrize("on_cards", [True, False])
@pytest.mark.parametrize("nodes", [2, 3, 16])
def test_a_step_is_told_from_what_all_of_them_took(nodes: int, on_cards: bool) -> None:
    ways = all_reduce_steps(nodes, 4, on_cards)
    assert step_seconds_of(ways, quickest(ways, STEP, LATENCY), LATENCY) == pytest.approx(STEP)
