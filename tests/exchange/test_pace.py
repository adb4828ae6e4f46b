"""Which exchange is taken, by times alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.exchange.codecs import COMPRESSIONS as WIRES
from harness.exchange.kinds import KINDS, PLANNED
from harness.exchange.pace import Choice, Pace, allowed
from harness.exchange.preference import FAST_ENOUGH, preferred


def pace(compute: float, none: float, exposed: float = 1.0) -> Pace:
    """A link whose time is in proportion to the bytes."""
    shares = dict(zip(WIRES, (1, 1 / 2, 1 / 4, 1 / 8, 1 / 32), strict=True))
    return Pace(
        compute, {wire: none * each for wire, each in shares.items()}, compute + exposed * none
    )


def taken(
    times: Pace, passes: int = 1, delay: int = 1, wire: str = "int4", kinds: object = PLANNED
) -> Choice:
    choices = allowed(kinds, passes, delay, wire, times)  # type: ignore[arg-type]
    return preferred(choices, times.rate)


def test_a_link_that_costs_nothing_takes_the_exact_baseline() -> None:
    assert taken(pace(100, 0), passes=8) == Choice("synchronous", 1, 0, "none")
    assert taken(pace(100, 5), passes=8) == Choice("synchronous", 1, 0, "none")


def test_a_link_that_costs_as_much_as_the_compute() -> None:
    """As in the planner: fewer bits cost less accuracy than stale gradients, and these less than
    rarer steps."""
    assert taken(pace(100, 80), passes=8) == Choice("synchronous", 1, 0, "int4")
    assert taken(pace(100, 90), passes=8) == Choice("delayed", 1, 1, "none")


def test_only_what_is_allowed_is_taken() -> None:
    slow = pace(10, 1000)
    assert taken(slow, wire="none", kinds=["synchronous"]) == Choice("synchronous", 1, 0, "none")
    found = taken(slow, passes=4, delay=0, kinds=["synchronous"])
    assert (found.passes, found.compression, found.delay) == (4, "int4", 0)
    assert taken(slow, kinds=["averaging"]).kind == "averaging"


def test_averaging_sends_in_as_many_pieces_as_land_in_time() -> None:
    found = taken(pace(100, 300), wire="none", kinds=["averaging"])
    assert found == Choice("averaging", 1, 1, "none", pieces=5)


def test_what_is_hidden_behind_the_backward_pass_does_not_count() -> None:
    assert taken(pace(100, 100, exposed=0.05)) == Choice("synchronous", 1, 0, "none")


def test_a_late_one_must_pay() -> None:
    """4 % faster than waiting is within the variation of times."""
    times = Pace(100, {"none": 4}, 104)
    assert taken(times, wire="none") == Choice("synchronous", 1, 0, "none")


PACES = st.builds(pace, st.floats(1, 1e3), st.floats(0, 1e4), st.floats(0, 1))


@given(PACES, st.integers(1, 8), st.integers(0, 2), st.sampled_from(WIRES))
def test_it_is_within_bounds_and_fast_enough(
    times: Pace, passes: int, delay: int, wire: str
) -> None:
    choices = allowed(PLANNED, passes, delay, wire, times)
    found = preferred(choices, times.rate)
    assert found.passes <= passes
    assert found.delay <= delay * KINDS[found.kind].late
    assert WIRES.index(found.compression) <= WIRES.index(wire)
    on_time = [times.rate(each) for each in choices if not each.delay]
    assert times.rate(found) >= FAST_ENOUGH * max(on_time) * (1 - 1e-9)
    # Nothing that costs less accuracy is as fast.
    for each in choices:
        if not each.delay and each.accuracy_cost < found.accuracy_cost:
            assert times.rate(each) < times.rate(found)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice("synchronous", 2, 0, "none"), 2 * 100 + 0.5 * 80),
        (Choice("delayed", 1, 1, "none"), 100),
        (Choice("delayed", 1, 1, "fp16"), 100),
        (Choice("delayed", 1, 0, "none"), 180),
        (Choice("averaging", 4, 1, "none"), 400),
        (Choice("averaging", 1, 1, "none", pieces=2), 100),
    ],
)
def test_a_window(choice: Choice, expected: float) -> None:
    times = Pace(100, {"none": 80, "fp16": 40}, 140)
    assert times.window_ms(choice) == pytest.approx(expected)


def test_a_link_slower_than_the_compute_bounds_a_late_window() -> None:
    times = Pace(100, {"none": 300}, 400)
    assert times.window_ms(Choice("delayed", 1, 1, "none")) == 300
    assert times.window_ms(Choice("delayed", 2, 1, "none")) == 300
    assert times.window_ms(Choice("averaging", 1, 2, "none")) == 300


def test_late_exchanges_pay_for_what_the_training_thread_writes() -> None:
    times = Pace(100, {"none": 50, "int8": 20}, 150, encode_ms={"int8": 15})
    assert times.window_ms(Choice("delayed", 1, 1, "none")) == 100
    assert times.window_ms(Choice("delayed", 1, 1, "int8")) == 115


def test_windows_that_wait_are_judged_by_how_their_own_results_travel() -> None:
    """Horovod's agreement is late exchanges' alone."""
    times = Pace(100, {"none": 200, "int8": 120}, 150, on_time_ms={"none": 100, "int8": 30})
    assert times.exposed == 0.5
    assert times.window_ms(Choice("synchronous", 1, 0, "int8")) == 115
    assert times.window_ms(Choice("averaging", 1, 0, "int8")) == 130
