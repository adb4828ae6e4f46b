"""The interval between checkpoints is the best one, and the useful share is what chance gives."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.plan.failures import Failures, advice

SECONDS = st.floats(0.1, 100.0)


def simulated(failures: Failures, interval: float, intervals: int, seed: int) -> float:
    """The useful share of a training in which every failure is drawn."""
    chance = random.Random(seed)
    now, done = 0.0, 0
    fails = chance.expovariate(1 / failures.between_seconds)
    while done < intervals:
        ends = now + interval + failures.save_seconds
        if fails > ends:
            now, done = ends, done + 1
            continue
        while True:  # it may fail again before it trains
            now = fails + failures.restart_seconds
            fails += chance.expovariate(1 / failures.between_seconds)
            if fails > now:
                break
    return done * interval / now


@pytest.mark.parametrize(
    ("failures", "interval"),
    [
        (Failures(1000, 5, 40), 100),
        (Failures(300, 2, 60), 400),
        (Failures(50, 10, 20), 30),
    ],
)
def test_the_useful_share_is_what_drawn_failures_leave(failures: Failures, interval: float) -> None:
    found = simulated(failures, interval, 200_000, seed=7)
    assert found == pytest.approx(failures.useful_share(interval), rel=0.01)


@settings(max_examples=200)
@given(SECONDS, st.floats(1.0, 1000.0), SECONDS)
def test_dalys_interval_is_nearly_the_best(saving: float, factor: float, restart: float) -> None:
    failures = Failures(saving * factor, saving, restart)
    best = max(
        failures.useful_share(failures.young_seconds * 1.02**step) for step in range(-200, 200)
    )
    assert failures.useful_share(failures.daly_seconds) >= 0.99 * best


def test_youngs_interval_is_the_square_root_of_twice_the_product() -> None:
    assert Failures(800, 4, 0).young_seconds == 80


def test_where_saving_takes_longer_than_machines_last_nothing_is_useful() -> None:
    hopeless = Failures(1, 5000, 10)
    assert hopeless.daly_seconds == 1
    assert hopeless.useful_share(1) == 0


def test_the_advice_counts_windows() -> None:
    lines = advice(Failures(7200, 1, 60), step_seconds=0.5)
    assert lines[0].startswith("one failure every 2 h on average")
    assert "a checkpoint every 120 s, train.checkpoint_every=240: 97.5" in lines[1]
    assert len(lines) == 3
