"""Steps of rings and trees, counted by hand."""

import pytest

from harness.plan.transfers import Hops, of_all_reduce, of_crossing, of_gather, quickest, step_of

STEP, LATENCY = 3e-5, 1e-6


def test_a_ring_crosses_between_nodes_once_for_each() -> None:
    assert of_gather(4, 8, on_cards=True) == Hops(4, 27)
    assert of_gather(1, 8, on_cards=True) == Hops(0, 7)
    assert of_gather(4, 1, on_cards=True) == Hops(3, 0)
    assert of_all_reduce(4, 8, on_cards=True)[0] == Hops(8, 54)


def test_on_cores_every_hop_counts_as_one_between_nodes() -> None:
    assert of_gather(4, 8, on_cards=False) == Hops(31)
    assert of_all_reduce(4, 8, on_cards=False) == (Hops(62),)


def test_two_nodes_swap_what_a_lossy_wire_sends() -> None:
    assert of_crossing(2, lossy=True, on_cards=False) == (Hops(1),)
    assert of_crossing(2, lossy=False, on_cards=False) == (Hops(2),)
    assert of_crossing(3, lossy=True, on_cards=True) == of_all_reduce(3, 1, on_cards=True)


def test_a_tree_is_quicker_where_nodes_are_many() -> None:
    """512 machines of eight cards: nine steps up and nine down in place of 512 twice."""
    ways = of_all_reduce(512, 8, on_cards=True)
    assert quickest(ways, STEP, LATENCY) == pytest.approx(2 * (9 * STEP + 7 * LATENCY))
    ring, _ = ways
    assert ring.seconds(STEP, LATENCY) == pytest.approx(2 * (512 * STEP + 3583 * LATENCY))
    assert quickest(of_all_reduce(3, 1, on_cards=True), STEP, 0.0) == pytest.approx(4 * STEP)


@pytest.mark.parametrize("on_cards", [True, False])
@pytest.mark.parametrize("nodes", [2, 3, 16])
def test_a_step_is_told_from_what_all_of_them_took(nodes: int, on_cards: bool) -> None:
    ways = of_all_reduce(nodes, 4, on_cards)
    assert step_of(ways, quickest(ways, STEP, LATENCY), LATENCY) == pytest.approx(STEP)
