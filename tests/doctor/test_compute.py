"""A rank below 80 % of the others' median is reported; slowness of all ranks is not judged."""

import pytest
import torch

from harness.doctor.compute import Speed, best_speeds, judge_compute, measure_speed, slow_ranks
from tests.doctor.seats import FOUR, seats


def speeds(*gflops: float, share: float | None = 1.0) -> list[Speed]:
    return [Speed(device="cpu", flop_per_second=each * 1e9, cpu_share=share) for each in gflops]


@pytest.mark.parametrize(
    ("gflops", "slow"),
    [
        ((100, 101, 99, 100), []),
        ((100, 81, 100, 100), []),
        ((100, 79, 100, 100), [1]),
        ((100, 30, 100, 30), [1, 3]),
        ((100,), []),
        ((100, 79), [1]),
        ((100, 81), []),
        # A slow half does not make the fast half suspect.
        ((100, 100, 50, 50), [2, 3]),
        ((100, 1, 1, 1), []),
    ],
)
def test_who_is_slow(gflops: tuple[float, ...], slow: list[int]) -> None:
    assert slow_ranks(speeds(*gflops)) == slow


def test_a_slow_rank_is_told_with_figures() -> None:
    found = speeds(100, 100, 100, share=0.98)
    (finding,) = judge_compute(FOUR, [*found[:2], speeds(30, share=0.31)[0], found[2]])
    assert finding.level == "fail"
    assert finding.found == (
        "rank 2 on h3 (cpu): 30.0 GFLOP/s, 30% of the others' median of 100.0 GFLOP/s; "
        "it got 31% of its cores"
    )
    assert "limit on the processor" in finding.advice


def test_slow_ranks_of_one_host_are_one_line() -> None:
    two = seats(("h1", 2), ("h2", 2))
    (finding,) = judge_compute(two, speeds(100, 100, 52, 50))
    assert finding.found.startswith("ranks 2, 3 on h2 (cpu): 50.0 GFLOP/s, 50% of")


@pytest.mark.parametrize(("slow", "level"), [(60, "warn"), (45, "fail")])
def test_where_ranks_share_cores_only_half_is_a_fault(slow: float, level: str) -> None:
    (finding,) = judge_compute(FOUR, speeds(100, 100, slow, 100, share=0.5))
    assert finding.level == level
    assert judge_compute(FOUR, speeds(100, 100, 60, 100))[0].level == "fail"


def test_a_slow_card() -> None:
    cards = [
        Speed(device="NVIDIA H200", flop_per_second=each * 1e12, cpu_share=None)
        for each in (50, 50, 20, 50)
    ]
    (finding,) = judge_compute(FOUR, cards)
    assert "rank 2 on h3 (NVIDIA H200): 20.0 TFLOP/s, 40%" in finding.found
    assert "heat" in finding.advice


def test_the_best_round_of_each_counts() -> None:
    rounds = [speeds(10, 100), speeds(90, 20), speeds(50, 50)]
    assert [best.flop_per_second for best in best_speeds(rounds)] == [90e9, 100e9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_product_is_measured(dtype: torch.dtype) -> None:
    speed = measure_speed(torch.device("cpu"), 0.02, dtype)
    assert 1e7 < speed.flop_per_second < 1e14
    assert speed.cpu_share is not None
    assert 0 < speed.cpu_share < 1.5
