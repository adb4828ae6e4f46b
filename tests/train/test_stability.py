"""The largest stable lr * curvature, by formulas where there are some; the rest by simulation.

tests/exchange/test_staleness.py holds it against the exchanges themselves.
"""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.train.stability import Dynamics, largest_stable_product

Array = NDArray[np.float64]
PLAIN = Dynamics(momentum=0.0, nesterov=False)
HEAVY_BALL = Dynamics(momentum=0.9, nesterov=False)
NESTEROV = Dynamics(momentum=0.9, nesterov=True)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 10])
def test_plain_sgd_late(delay: int) -> None:
    """x' = x - a x_late: 2 sin(pi / (4 d + 2)); Levin and May, 1976."""
    expected = 2 * math.sin(math.pi / (4 * delay + 2))
    assert largest_stable_product(replace(PLAIN, delay=delay)) == close(expected)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_momentum_in_time_and_one_window_late(momentum: float) -> None:
    """Of z^2 - (1 + m - a) z + m, and of z^2 - (1 + m) z + m + a."""
    ball = Dynamics(momentum, nesterov=False)
    ahead = Dynamics(momentum, nesterov=True)
    assert largest_stable_product(ball) == close(2 * (1 + momentum))
    assert largest_stable_product(ahead) == close(2 * (1 + momentum) / (1 + 2 * momentum))
    assert largest_stable_product(replace(ball, delay=1)) == close(1 - momentum)


def test_what_was_known() -> None:
    assert round(largest_stable_product(replace(NESTEROV, delay=1)), 3) == 0.253


@pytest.mark.parametrize("dynamics", [PLAIN, HEAVY_BALL, NESTEROV])
def test_more_delay_is_never_more_stable(dynamics: Dynamics) -> None:
    limits = [largest_stable_product(replace(dynamics, delay=delay)) for delay in range(5)]
    assert limits == sorted(limits, reverse=True)


@pytest.mark.parametrize("dynamics", [PLAIN, HEAVY_BALL, NESTEROV])
@pytest.mark.parametrize(
    ("passes", "delay", "pieces"), [(1, 1, 1), (4, 2, 1), (2, 1, 3), (3, 0, 2)]
)
def test_nodes_that_average_are_no_more_stable_than_one_alone(
    dynamics: Dynamics, passes: int, delay: int, pieces: int
) -> None:
    averaging = replace(dynamics, averaging=True, passes=passes, delay=delay, pieces=pieces)
    assert 0 < largest_stable_product(averaging) <= largest_stable_product(dynamics) * (1 + 1e-6)


def test_an_average_of_plain_steps_one_step_late() -> None:
    """Apart from the mean by e' = (1 - a) e - (the step before): z^2 - (1 - a) z + a over z^2."""
    averaging = replace(PLAIN, averaging=True, delay=1)
    assert largest_stable_product(averaging) == close(1.0)


def test_a_smaller_outer_rate_lets_a_larger_inner_one_stand() -> None:
    """One step a window, at once, without momentum: the rates multiply."""
    outer = replace(PLAIN, averaging=True, outer_lr=0.1)
    assert largest_stable_product(outer) == close(20.0)


def test_the_less_stable_pace_limits() -> None:
    whole = Dynamics(0.9, True, 1, True, 2, pieces=1)
    cut = replace(whole, pieces=4)
    assert largest_stable_product(whole) < largest_stable_product(cut)
    for one, other in ((whole, 4), (cut, 1)):
        both = largest_stable_product(replace(one, slice_pieces=other))
        assert both == largest_stable_product(whole)


@pytest.mark.parametrize(("pieces", "of_slice"), [(1, 4), (2, 3), (4, 1), (1, 2)])
@pytest.mark.parametrize("dynamics", [PLAIN, HEAVY_BALL, NESTEROV])
@pytest.mark.parametrize(("passes", "delay"), [(1, 0), (1, 1), (2, 1), (3, 2)])
def test_no_direction_in_both_parts_is_less_stable(
    dynamics: Dynamics, passes: int, delay: int, pieces: int, of_slice: int
) -> None:
    averaging = replace(dynamics, averaging=True, passes=passes, delay=delay, pieces=pieces)
    limit = largest_stable_product(replace(averaging, slice_pieces=of_slice))
    for share, whole in product((0.1, 0.5, 0.9), (False, True)):
        direction = np.zeros(pieces + of_slice)
        for part, weight in ((slice(0, pieces), share), (slice(pieces, None), 1 - share)):
            chosen = direction[part] if whole else direction[part][:1]
            chosen[:] = math.sqrt(weight / len(chosen))
        for factor in (0.1, 0.3, 0.6, 0.98):
            found = apart_after_a_cycle(averaging, of_slice, direction, factor * limit)
            assert np.abs(np.linalg.eigvals(found)).max() <= 1 + 1e-9


def apart_after_a_cycle(
    dynamics: Dynamics, of_slice: int, direction: Array, product_of_rate: float
) -> Array:
    """The map of a node's deviation from the mean, with curvature 1 along a direction over the
    pieces of the chunk and then those of the slice. A window sends one of either."""
    pieces, delay, number = dynamics.pieces, dynamics.delay, len(direction)
    state = np.eye(2 * number + 2 * delay)
    velocity, unsent = state[:number], state[number : 2 * number]
    flight = [state[2 * number + 2 * age :][:2] for age in range(delay)]

    def sent_in(window: int) -> list[int]:
        return [window % pieces, pieces + window % of_slice]

    values = unsent.copy()
    for window, sent in enumerate(flight, -delay):
        values[sent_in(window)] += sent
    for window in range(math.lcm(pieces, of_slice)):
        for _ in range(dynamics.passes):
            gradient = np.outer(direction, product_of_rate * (direction @ values))
            velocity = dynamics.momentum * velocity + gradient
            ahead = gradient + dynamics.momentum * velocity if dynamics.nesterov else velocity
            values, unsent = values - ahead, unsent - ahead
        if delay:
            values[sent_in(window - delay)] -= flight.pop(0)
        flight.append(unsent[sent_in(window)])
        unsent[sent_in(window)] = 0
        if not delay:
            values[sent_in(window)] -= flight.pop(0)
    return np.vstack((velocity, unsent, *flight))


def test_no_settings_are_too_much_for_it() -> None:
    settings = Dynamics(0.999, False, 40, True, 8, 16, 0.7, 0.99)
    assert 0 <= largest_stable_product(settings) < 0.1
