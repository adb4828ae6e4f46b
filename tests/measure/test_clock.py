"""Each moment of a window belongs to one phase, the innermost, so that they add up exactly."""

import time
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.clock import Clock, HostTimeline, Times, clock_for, now
from harness.measure.phase import Phase
from tests import streams
from tests.timelines import ByHand, Ticks

LEAVE = "leave"
ACTIONS = st.lists(
    st.one_of(st.sampled_from(list(Phase)), st.integers(0, 1000), st.just(LEAVE)), max_size=25
)


def perform(actions: list[Phase | int | str], clock: Clock, timeline: ByHand) -> Times:
    """Runs one window: enters phases, lets milliseconds pass, leaves; what each phase is due."""
    due = dict.fromkeys(Phase, 0.0)
    within = [Phase.OTHER]
    with clock.window():
        open_phases: list[ExitStack] = []
        for action in actions:
            if isinstance(action, Phase):
                stack = ExitStack()
                stack.enter_context(clock.phase(action))
                open_phases.append(stack)
                within.append(action)
            elif isinstance(action, int):
                timeline.now += action
                due[within[-1]] += action
            elif open_phases:
                open_phases.pop().close()
                within.pop()
        while open_phases:
            open_phases.pop().close()
    return due


@given(st.lists(ACTIONS, max_size=4))
def test_every_moment_is_the_innermost_phases(windows: list[list[Phase | int | str]]) -> None:
    timeline = ByHand()
    clock = Clock(timeline)
    due = []
    for actions in windows:
        due.append(perform(actions, clock, timeline))
        timeline.now += 10_000
    assert clock.read() == due
    assert clock.read() == []


def test_a_phase_within_another_pauses_it() -> None:
    timeline = ByHand()
    clock = Clock(timeline)
    with clock.window():
        timeline.now += 1
        with clock.phase(Phase.BACKWARD):
            timeline.now += 10
            with clock.phase(Phase.SLICE_WAIT):
                timeline.now += 100
            timeline.now += 1000
        timeline.now += 2
    (times,) = clock.read()
    assert times[Phase.BACKWARD] == 1010
    assert times[Phase.SLICE_WAIT] == 100
    assert times[Phase.OTHER] == 3


def test_outside_a_window_nothing_counts() -> None:
    timeline = ByHand()
    clock = Clock(timeline)
    with clock.phase(Phase.EXCHANGE_WAIT), clock.phase(Phase.DATA):
        timeline.now += 50
    assert clock.read() == []
    with clock.window():
        timeline.now += 3
    (times,) = clock.read()
    assert times == dict.fromkeys(Phase, 0.0) | {Phase.OTHER: 3.0}


def test_an_error_inside_a_phase_leaves_the_clock_sound() -> None:
    timeline = ByHand()
    clock = Clock(timeline)

    def fails() -> None:
        with clock.window(), clock.phase(Phase.FORWARD):
            timeline.now += 5
            with clock.phase(Phase.SLICE_WAIT):
                timeline.now += 7
                raise ValueError("lost a peer")

    with pytest.raises(ValueError, match="lost a peer"):
        fails()
    with clock.phase(Phase.DATA):
        timeline.now += 100
    with clock.window(), clock.phase(Phase.OPTIMIZER):
        timeline.now += 11
    broken, sound = clock.read()
    assert (broken[Phase.FORWARD], broken[Phase.SLICE_WAIT]) == (5, 7)
    assert sound == dict.fromkeys(Phase, 0.0) | {Phase.OPTIMIZER: 11.0}


def test_reading_takes_what_is_done_and_waits_for_nothing() -> None:
    """On a card the host runs ahead: a window's marks are reached later than they were set."""
    timeline = ByHand()
    clock = Clock(timeline)
    timeline.done = 0
    for milliseconds in (10, 20, 30):
        with clock.window():
            timeline.now += milliseconds
    assert clock.read() == []
    timeline.done = 29
    assert [times[Phase.OTHER] for times in clock.read()] == [10]
    assert clock.read() == []
    timeline.done = 60
    assert [times[Phase.OTHER] for times in clock.read()] == [20, 30]


def test_a_phase_takes_two_marks_and_no_more() -> None:
    """On a card a mark is an event in the stream: they are not free."""
    timeline = Ticks()
    clock = Clock(timeline)
    with clock.window(), clock.phase(Phase.DATA):
        pass
    assert timeline.now == 4


def spin(seconds: float) -> float:
    """Passes the time by another clock; the milliseconds it took."""
    start = time.perf_counter_ns()
    while time.perf_counter_ns() - start < seconds * 1e9:
        continue
    return (time.perf_counter_ns() - start) / 1e6


def test_the_hosts_times_lie_between_what_is_measured_inside_and_outside() -> None:
    clock = clock_for(torch.device("cpu"))
    start = time.perf_counter_ns()
    with clock.window():
        data_start = time.perf_counter_ns()
        with clock.phase(Phase.DATA):
            inside = spin(0.02)
        outside = (time.perf_counter_ns() - data_start) / 1e6
        other = spin(0.01)
    whole = (time.perf_counter_ns() - start) / 1e6
    (times,) = clock.read()
    assert inside <= times[Phase.DATA] <= outside
    assert other <= times[Phase.OTHER] <= whole - inside
    assert inside + other <= sum(times.values()) <= whole


def test_a_host_has_done_its_work_when_it_marks_it() -> None:
    timeline = HostTimeline()
    assert timeline.passed(timeline.mark())


def test_the_time_waits_for_the_current_stream_and_not_for_what_travels_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards, card = streams.stand_in(monkeypatch), torch.device("cuda", 1)
    beside = streams.Stream(card)

    def whole_card(device: torch.device) -> None:
        beside.synchronize()

    monkeypatch.setattr(torch.cuda, "synchronize", whole_card)
    now(card)
    assert cards.current_stream(card).finished
    assert not beside.finished


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_a_cards_times_are_those_of_its_work_and_not_of_the_host() -> None:
    device = torch.device("cuda")
    clock = clock_for(device)
    matrix = torch.randn(8192, 8192, device=device)
    for _ in range(2):
        with clock.window(), clock.phase(Phase.FORWARD):
            start = time.perf_counter()
            for _ in range(20):
                matrix @ matrix
            host_ms = (time.perf_counter() - start) * 1e3
    assert len(clock.read()) < 2, "the last window cannot be done yet"
    torch.cuda.synchronize()
    assert clock.read()[-1][Phase.FORWARD] > 5 * host_ms
