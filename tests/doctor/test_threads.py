"""The threads with which the doctor measures a rank are those that it trains with."""

import pytest

from harness.config import Config
from harness.doctor.doctor import _threads
from harness.doctor.seat import Seat


def seats(*cores: tuple[int, ...]) -> list[Seat]:
    return [
        Seat(rank=rank, size=len(cores), local_rank=rank, host="h", machine="m", cores=of)
        for rank, of in enumerate(cores)
    ]


def config(threads: int) -> Config:
    return Config.model_validate({"name": "a", "train": {"steps": 1, "threads": threads}})


@pytest.mark.parametrize(
    ("cores", "threads"),
    [
        (((0, 1, 2, 3), (0, 1, 2, 3)), 2),
        (((0, 1), (2, 3)), 2),  # pinned to cores of their own
        (((0,), (0,)), 1),
    ],
)
def test_cores_are_divided_as_in_training(cores: tuple[tuple[int, ...], ...], threads: int) -> None:
    found = seats(*cores)
    assert [_threads(config(0), found, seat) for seat in found] == [threads, threads]
    asked = config(3)
    assert _threads(asked, found, found[0]) == 3
