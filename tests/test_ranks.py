"""The helper that runs a function on ranks: results, failures and hangs all come back."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RanksFailed, run_on_ranks


def sum_of_ranks(offset: int) -> tuple[int, float]:
    total = torch.tensor([float(dist.get_rank() + offset)])
    dist.all_reduce(total)
    return dist.get_rank(), total.item()


def raise_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError(f"rank {rank} found something wrong")
    dist.barrier()


def hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(1000)


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)


def number_of_threads() -> int:
    return torch.get_num_threads()


def test_results_come_back_in_rank_order() -> None:
    assert run_on_ranks(sum_of_ranks, 3, 10) == [(0, 33.0), (1, 33.0), (2, 33.0)]


def test_a_rank_has_one_thread() -> None:
    assert run_on_ranks(number_of_threads, 1) == [1]


def test_a_raising_rank_shows_its_traceback_and_does_not_wait_for_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailed, match="rank 1 found something wrong"):
        run_on_ranks(raise_on, 2, 1, timeout=100)
    assert time.monotonic() - start < 60


def test_a_hanging_rank_shows_where_it_stands() -> None:
    with pytest.raises(RanksFailed) as caught:
        run_on_ranks(hang_on, 2, 0, timeout=2)
    assert "rank 0 of 2: failed" in str(caught.value)
    assert "in hang_on" in str(caught.value)


def test_a_rank_that_dies_without_a_word_is_a_failure() -> None:
    with pytest.raises(RanksFailed, match="rank 0 of 2: failed, exit code -9"):
        run_on_ranks(die_on, 2, 0)
