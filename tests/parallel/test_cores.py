"""Turns in which nobody shares a core, and each rank's own cores, of ranks in places by hand."""

import pytest

from harness.parallel.cores import Cores, Place, own_cores, turns_of

HERE, THERE = "here", "there"
PINNED = [(HERE, (0,)), (HERE, (0,)), (HERE, (1,)), (HERE, (1,))]
"""Two lab hosts with a core each, two ranks on both."""
FOUR_HOSTS = [(HERE, (0,)), (HERE, (1,)), (HERE, (0,)), (HERE, (1,))]
EMULATED = [(HERE, (0, 1))] * 4
"""All may run on both cores."""
TWO_MACHINES = [(HERE, (0, 1))] * 2 + [(THERE, (0, 1))] * 2


@pytest.mark.parametrize(
    ("places", "turns"),
    [
        (PINNED, [0, 1, 0, 1]),
        (FOUR_HOSTS, [0, 0, 1, 1]),
        (EMULATED, [0, 0, 1, 1]),
        (TWO_MACHINES, [0, 0, 0, 0]),
    ],
)
def test_ranks_on_the_same_cores_take_turns(places: list[Place], turns: list[int]) -> None:
    assert turns_of(places) == turns


@pytest.mark.parametrize(
    ("places", "own"), [(PINNED, 0.5), (FOUR_HOSTS, 0.5), (EMULATED, 0.5), (TWO_MACHINES, 1.0)]
)
def test_a_core_is_divided_among_all_that_may_run_on_it(places: list[Place], own: float) -> None:
    assert [own_cores(places, rank) for rank in range(4)] == pytest.approx([own] * 4)


def test_a_rank_that_may_run_on_two_cores_takes_half_of_each() -> None:
    places = [(HERE, (0, 1)), (HERE, (0,))]
    assert own_cores(places, 0) == pytest.approx(0.5 / 1.5 + 0.5 / 0.5)
    assert own_cores(places, 1) == pytest.approx(1 / 1.5)


@pytest.mark.parametrize(("ranks", "cores", "threads"), [(4, 2, 1), (8, 16, 2), (3, 64, 21)])
def test_a_rank_has_as_many_threads_as_cores(ranks: int, cores: int, threads: int) -> None:
    own = own_cores([(HERE, tuple(range(cores)))] * ranks, 0)
    found = Cores(ranks_here=ranks, own=own, per_node=cores, turn=0, turns=1)
    assert found.threads(0) == threads
    assert found.threads(5) == 5
