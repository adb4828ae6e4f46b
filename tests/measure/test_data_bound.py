"""When a step is said to wait for its images."""

import pytest

from harness.measure.data_bound import bound_by_data
from harness.measure.phase import Phase


def phases(data: float, exchange: float, node: float = 0.0) -> dict[str, float]:
    rest = 100 - data - exchange - node
    return {
        Phase.DATA: data,
        Phase.FORWARD: rest,
        Phase.EXCHANGE_WAIT: exchange,
        Phase.NODE_WAIT: node,
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (phases(42, 3), "images take 42 % of a step, and waiting for other ranks 3 %"),
        (phases(10, 9), "images take 10 % of a step, and waiting for other ranks 9 %"),
        (phases(10, 5, 6), ""),
        (phases(42, 43), ""),
        (phases(9, 0), ""),
        (phases(42, 42), ""),
        ({"forward": 1.0}, ""),
        ({}, ""),
    ],
)
def test_images_must_take_much_and_more_than_waits(given: dict[str, float], said: str) -> None:
    assert bound_by_data(given) == said
