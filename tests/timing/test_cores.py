"""Turns in which nobody shares a core, and each node's own cores, of ranks in places by hand."""

import pytest

from harness.timing.cores import Place, own_cores, turns_of

HERE, THERE = "here", "there"


@pytest.mark.parametrize(
    ("places", "turns"),
    [
        # Two lab hosts with a core each, two ranks on both.
        ([(HERE, (0,)), (HERE, (0,)), (HERE, (1,)), (HERE, (1,))], [0, 1, 0, 1]),
        # Four hosts of one rank on two cores.
        ([(HERE, (0,)), (HERE, (1,)), (HERE, (0,)), (HERE, (1,))], [0, 0, 1, 1]),
        # Emulated nodes: all ranks may run on both cores.
        ([(HERE, (0, 1))] * 4, [0, 0, 1, 1]),
        # Machines of their own, with cores to spare.
        ([(HERE, (0, 1))] * 2 + [(THERE, (0, 1))] * 2, [0, 0, 0, 0]),
    ],
)
def test_ranks_on_the_same_cores_take_turns(places: list[Place], turns: list[int]) -> None:
    assert turns_of(places) == turns


def test_a_core_is_divided_among_all_that_may_run_on_it() -> None:
    assert own_cores([(HERE, (0,)), (HERE, (0,)), (HERE, (1,)), (HERE, (1,))], 2) == 1.0
    assert own_cores([(HERE, (0, 1))] * 4, 2) == 1.0
    assert own_cores([(HERE, (0,)), (HERE, (1,)), (HERE, (0,)), (HERE, (1,))], 1) == 0.5
    assert own_cores([(HERE, (0, 1)), (THERE, (0, 1))], 1) == 2.0
    # One that may run on both cores takes half of each.
    assert own_cores([(HERE, (0, 1)), (HERE, (0,))], 1) == pytest.approx(0.5 / 1.5 + 0.5 / 0.5)
