"""Collectives that differ between ranks are named, however the groups are numbered."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist

from harness.measure.phase import Phase
from harness.parallel.group import Group
from harness.parallel.order import Order
from tests.alone import meters
from tests.ranks import run_on_ranks

WORLD = (0, 1, 2, 3)


class Threads:
    """Stands in for `Ranks`: one thread for each rank."""

    def __init__(self) -> None:
        self._barrier = Barrier(len(WORLD))
        self._values: list[Any] = [None] * len(WORLD)

    def of(self, rank: int) -> "Threads":
        twin = Threads.__new__(Threads)
        twin.__dict__ = self.__dict__ | {"rank": rank}
        return twin

    def gather_objects(self, value: Any, name: str) -> list[Any]:
        self._values[self.__dict__["rank"]] = value
        self._barrier.wait(20)
        found = list(self._values)
        self._barrier.wait(20)
        return found


def differences(orders: Sequence[Order]) -> list[str]:
    """What every rank is told."""
    threads, told = Threads(), [""] * len(WORLD)

    def ask(rank: int) -> None:
        told[rank] = orders[rank].difference(threads.of(rank).gather_objects)

    running = [Thread(target=ask, args=(rank,)) for rank in WORLD]
    for each in running:
        each.start()
    for each in running:
        each.join()
    return told


def four() -> list[Order]:
    return [Order() for _ in WORLD]


def launch(orders: Sequence[Order], rank: int, *, size: int = 8, group: str = "all") -> None:
    ranks = WORLD if group == "all" else (0, 1) if group == "left" else (2, 3)
    orders[rank].add("all_reduce", group, ranks, torch.zeros(size, 2))


def test_the_same_order_is_not_told_of() -> None:
    orders = four()
    for _ in range(3):
        for rank in WORLD:
            launch(orders, rank)
            launch(orders, rank, group="left" if rank < 2 else "right", size=rank // 2 + 1)
        assert differences(orders) == [""] * 4


def test_the_first_rank_and_collective_that_differ_are_named_on_all_ranks() -> None:
    orders = four()
    for rank in WORLD:
        launch(orders, rank)
    assert differences(orders) == [""] * 4
    for rank in WORLD:
        launch(orders, rank)
        launch(orders, rank, size=9 if rank == 2 else 8)
        launch(orders, rank)
    (line,) = set(differences(orders))
    assert line == (
        "ranks launch different collectives: rank 2 launched all_reduce of float32[9x2], where "
        "rank 0 launched all_reduce of float32[8x2]; both in the group of ranks 0, 1, 2, 3"
    )


def test_a_difference_in_a_part_of_the_ranks_is_told_to_all() -> None:
    orders = four()
    launch(orders, 0, group="left")
    launch(orders, 1, group="left", size=3)
    for rank in (2, 3):
        launch(orders, rank, group="right")
    (line,) = set(differences(orders))
    assert "rank 1 launched all_reduce of float32[3x2]" in line


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_thread_that_is_ahead_on_one_rank_is_no_difference(ahead: int) -> None:
    orders = four()
    for rank in WORLD:
        launch(orders, rank)
    for _ in range(ahead):
        launch(orders, 3)
    assert differences(orders) == [""] * 4
    for rank in WORLD[:3]:
        for number in range(ahead):
            launch(orders, rank, size=1 if number == ahead - 1 and rank == 0 else 8)
    (line,) = set(differences(orders))
    assert line.startswith("ranks launch different collectives: rank 0 launched")


def test_the_last_collective_is_shown() -> None:
    shown: list[str] = []
    order = Order(shown.append)
    order.add("all_gather", "all", WORLD, torch.zeros(3))
    order.add("all_gather", "all", WORLD, torch.zeros(4, dtype=torch.bfloat16))
    assert shown == [
        "1: all_gather of float32[3] over ranks 0, 1, 2, 3",
        "2: all_gather of bfloat16[4] over ranks 0, 1, 2, 3",
    ]


def on_real_ranks() -> str:
    """Rank 2 averages integers where the others average numbers of the same size: Gloo completes
    that without a word."""
    rank, order = dist.get_rank(), Order()
    quiet = replace(meters(), order=order)
    group = Group(WORLD, rank, 1, dist.group.WORLD, quiet, Phase.NODE_WAIT)
    group.all_gather(torch.zeros(2, 3))
    group.launch_sum(torch.zeros(8, dtype=torch.int32 if rank == 2 else torch.float32)).wait()

    def gather(value: Any, name: str) -> list[Any]:
        found: list[Any] = [None] * len(WORLD)
        dist.all_gather_object(found, value)
        return found

    return order.difference(gather)


def test_real_collectives_are_remembered() -> None:
    (line,) = set(run_on_ranks(on_real_ranks, len(WORLD)))
    assert line == (
        "ranks launch different collectives: rank 2 launched all_reduce of int32[8], where rank 0 "
        "launched all_reduce of float32[8]; both in the group of ranks 0, 1, 2, 3"
    )
