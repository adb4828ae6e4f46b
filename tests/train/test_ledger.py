"""What of a run is counted: timed windows only, also where a card ends them late."""

import itertools
import time
from collections.abc import Sequence

import pytest
import torch

from harness.config import Config
from harness.data.shares import BatchSplit
from harness.errors import UserError
from harness.measure.clock import Clock
from harness.measure.summary import Evaluation, RunSummary, Trained
from harness.measure.traffic import Bytes, Traffic
from harness.measure.utilisation import Capacity
from harness.model.anatomy import Anatomy, Sketch
from harness.parallel.group import Meters
from harness.parallel.topology import Topology
from harness.train.checkpoint.meta import STARTED, Progress
from harness.train.course import Course
from harness.train.ledger import Ledger, NullJournal, expected_bytes
from harness.train.windows import (
    Stopwatch,
    check_traced,
    no_window_is_timed,
    pauses_are_near,
    traced_windows,
)
from tests.alone import CPU, world_of_one
from tests.timelines import ByHand

UNTIMED, WINDOWS = 2, 6


class Record(NullJournal):
    """Keeps everything, by step."""

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}
        self.progress: list[int] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.logged[step] = metrics

    def advance(self, window: int, windows: int, note: str) -> None:
        self.progress.append(window)


def config(traced: Sequence[int] = (), **exchange: object) -> Config:
    """`traced`: windows counted from the run's first."""
    values = {"steps": WINDOWS, "untimed_windows": UNTIMED, "log_every": 2}
    trace = {"windows": len(traced), "first_window": min(traced, default=0)}
    return Config.model_validate({"train": values, "trace": trace, "exchange": exchange})


DELAYED = {"kind": "delayed", "delay": 1}


def run(
    timeline: ByHand,
    late: int,
    first: int = 0,
    traced: Sequence[int] = (),
    pauses: Sequence[int] = (),
    progress: Progress = STARTED,
    **exchange: object,
) -> tuple[RunSummary, Record]:
    """Windows of 1000, 2000, 3000 ... ms; each is done when `late` more have begun.

    After each of so many windows in `pauses` there is an evaluation of 7 s.
    """
    traffic, record = Traffic(), Record()
    clock = Clock(timeline)
    world = world_of_one(Meters(clock, traffic))
    capacity = Capacity(flop_per_window=1e9, matmul_flop_per_second=1e10, cores=4)
    stopwatch, settings = SynchronisingStopwatch(timeline), config(traced, **exchange)
    course = Course(settings, BatchSplit(1000, 8, 0, 1, 0), first, WINDOWS, 8 * first, 0)
    ledger = Ledger(settings, world, course, capacity, progress, stopwatch)
    ends: list[int] = []
    ledger.begins(record)
    for window in range(first, WINDOWS):
        timeline.done = ends[-late] if late and len(ends) >= late else 0
        ledger.window_begins(window)
        with clock.window():
            timeline.now += 1000 * (window + 1)
            traffic.add(Bytes(in_node=1e6 * (window + 1)))
        ends.append(timeline.now)
        if not late:
            timeline.done = timeline.now
        ledger.window_ended(window, record)
        traffic.add(Bytes(in_node=5e9))  # of an evaluation
        time.process_time()
        if window + 1 in pauses:
            with ledger.paused(window + 1):
                timeline.now += 7000
                ledger.evaluated(window + 1, {"val/top1": 0.25}, record)
    ledger.stopwatch.stop()
    ledger.evaluated(WINDOWS, {"val/top1": 0.5}, record)
    return ledger.summary(Trained(1, 1, Bytes())), record


class SynchronisingStopwatch(Stopwatch):
    """By the timeline's hand; reading it waits for the card, as `now` does."""

    def __init__(self, timeline: ByHand) -> None:
        super().__init__(CPU)
        self._timeline = timeline

    def _now(self) -> float:
        self._timeline.done = self._timeline.now
        return self._timeline.now / 1e3


def test_the_summary_is_of_the_timed_windows() -> None:
    summary, _ = run(ByHand(), late=0)
    assert (summary.untimed_windows, summary.timed_windows) == (2, 4)
    assert summary.step_ms.mean == (3000 + 4000 + 5000 + 6000) / 4
    assert summary.in_node_mb_per_step == (3 + 4 + 5 + 6) / 4
    assert summary.images_per_second == pytest.approx(4 * 8 / 18)
    assert summary.train_seconds == pytest.approx(21)
    assert summary.images_per_window == 8


def test_untimed_windows_that_a_card_ends_late_do_not_count_as_timed() -> None:
    summary, _ = run(ByHand(), late=1)
    assert summary.step_ms.mean == (3000 + 4000 + 5000 + 6000) / 4, "the last is waited for"
    assert summary.in_node_mb_per_step == (3 + 4 + 5 + 6) / 4


def test_a_resumed_run_leaves_out_its_own_first_windows() -> None:
    summary, _ = run(ByHand(), late=0, first=3)
    assert (summary.untimed_windows, summary.timed_windows) == (2, 1)
    assert summary.step_ms.mean == 6000
    assert summary.images_per_second == pytest.approx(8 / 6)


def test_a_run_shorter_than_its_warm_up_has_no_rate() -> None:
    summary, _ = run(ByHand(), late=0, first=5)
    assert (summary.untimed_windows, summary.timed_windows) == (1, 0)
    assert (summary.images_per_second, summary.step_ms.mean) == (0, 0)


@pytest.mark.parametrize(("late", "steps"), [(0, (3000, 6000)), (1, (3000, 6000))])
def test_traced_windows_are_in_no_time(late: int, steps: tuple[int, ...]) -> None:
    """Windows 3 and 4 of 0 to 5; on a card they end when others have begun."""
    summary, record = run(ByHand(), late, traced=(3, 4))
    assert (summary.untimed_windows, summary.timed_windows) == (2, 2)
    assert summary.step_ms.mean == sum(steps) / len(steps)
    assert summary.in_node_mb_per_step == (3 + 6) / 2
    assert summary.images_per_second == pytest.approx(2 * 8 / 9)
    assert summary.train_seconds == pytest.approx(21), "they have been trained in all the same"
    assert record.logged[4]["time/step_ms"] == (2500 if late else 3000), "the one before ends late"


def test_an_interval_of_traced_windows_has_no_times() -> None:
    _, record = run(ByHand(), late=0, traced=(2, 3))
    counted = ("time", "throughput", "traffic")
    assert not [name for name in record.logged[4] if name.startswith(counted)]
    assert "optimizer/lr" in record.logged[4]


def test_a_run_may_end_while_it_is_traced() -> None:
    summary, _ = run(ByHand(), late=0, traced=(4, 5, 6, 7))
    assert summary.timed_windows == 2
    assert summary.images_per_second == pytest.approx(2 * 8 / 7)


def test_a_resumed_run_counts_traced_windows_from_its_own_first() -> None:
    assert traced_windows(config(traced=(1, 2)).trace, 3, 6) == range(4, 6)
    with pytest.raises(UserError, match="first_window=3 is after the end of a run of 3 windows"):
        check_traced(config(traced=(3,)).trace, 3, 6)
    assert not traced_windows(config().trace, 3, 6)


@pytest.mark.parametrize("late", [0, 1])
def test_what_arrives_during_an_evaluation_is_not_had_for_free(late: int) -> None:
    """Window 4 waits for what window 3 sent, which had 7 s to arrive in that nobody counted."""
    summary, _ = run(ByHand(), late, pauses=[4], **DELAYED)
    mean = (3 + 4 + 6) / 3
    assert (summary.untimed_windows, summary.timed_windows) == (2, 3)
    assert summary.step_ms.mean == pytest.approx(1000 * mean)
    assert summary.images_per_second == pytest.approx(8 / mean)
    assert summary.in_node_mb_per_step == pytest.approx(mean), "nor does what it sent count"
    assert summary.train_seconds == pytest.approx(1 + 2 + 3 + 4 + mean + 6)
    assert [each.train_seconds for each in summary.evaluations] == [
        pytest.approx(10),
        pytest.approx(summary.train_seconds),
    ]


def test_an_exchange_with_nothing_under_way_is_timed_after_a_pause_too() -> None:
    for exchange in ({}, DELAYED | {"synchronous_windows": 5}):
        summary, _ = run(ByHand(), 0, pauses=[4], **exchange)
        assert summary.timed_windows == 4
        assert summary.train_seconds == pytest.approx(21)


def test_a_pause_in_the_warm_up_is_charged_what_a_timed_window_takes() -> None:
    summary, _ = run(ByHand(), 0, pauses=[1], **DELAYED)
    assert summary.timed_windows == 4
    assert summary.train_seconds == pytest.approx(1 + 4.5 + 3 + 4 + 5 + 6)


def test_where_every_window_follows_a_pause_none_is_timed_and_that_is_said() -> None:
    summary, record = run(ByHand(), 0, pauses=range(1, 6), **DELAYED)
    assert (summary.timed_windows, summary.images_per_second) == (0, 0)
    assert summary.train_seconds == pytest.approx(21)
    assert not [name for name in record.logged[4] if name.startswith(("time", "traffic"))]
    often = Config.model_validate(
        {"train": {"steps": 9, "evaluate_every": 2}, "exchange": DELAYED | {"delay": 2}}
    )
    assert no_window_is_timed(often).startswith("train.evaluate_every=2 leaves no window")
    assert no_window_is_timed(config(**DELAYED)) == ""


def test_a_resumed_run_goes_on_from_the_seconds_of_the_one_before() -> None:
    before = Evaluation(window=3, images=24, train_seconds=90.0, metrics={"val/top1": 0.4})
    progress = Progress(train_seconds=100.0, evaluations=(before,))
    summary, _ = run(ByHand(), 0, first=3, progress=progress)
    assert summary.train_seconds == pytest.approx(100 + 15)
    assert [each.train_seconds for each in summary.evaluations] == [90, pytest.approx(115)]
    assert (summary.seconds_to(0.3), summary.seconds_to(0.5)) == (90, pytest.approx(115))
    assert summary.images_per_second == pytest.approx(8 / 6), "of its own windows"


def test_nobody_knows_how_long_a_run_took_that_goes_on_from_an_old_checkpoint() -> None:
    summary, _ = run(ByHand(), 0, first=3, progress=Progress(train_seconds=None))
    assert summary.train_seconds == pytest.approx(15)
    assert summary.seconds_to(0.5) is None


def test_processor_time_between_windows_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading finds a second more; a window holds one of them, an evaluation many."""
    readings = itertools.count()

    def process_time() -> float:
        return float(next(readings))

    monkeypatch.setattr(time, "process_time", process_time)
    summary, record = run(ByHand(), late=0)
    (cost,) = summary.per_rank
    assert cost.counter_percent == pytest.approx(100 * 1 / 4.5 / 4)
    assert cost.flop_per_second == pytest.approx(1e9 / 4.5)
    assert cost.images_per_second == pytest.approx(8 / 4.5)
    assert record.logged[4]["utilisation/counter_percent"] == pytest.approx(100 * 1 / 3.5 / 4)
    assert record.logged[4]["utilisation/matmul_percent"] == pytest.approx(10 / 3.5)


def test_intervals_hold_every_window_once() -> None:
    _, record = run(ByHand(), late=0)
    steps = {step: metrics["time/step_ms"] for step, metrics in record.logged.items() if step != 6}
    assert steps == {2: (1000 + 2000) / 2, 4: (3000 + 4000) / 2}
    assert record.progress == [2, 4, 6]
    assert record.logged[2]["throughput/images_per_second"] == pytest.approx(8 / 1.5)
    assert record.logged[2]["traffic/in_node_mb_per_step"] == 1.5


def test_a_stopwatch_leaves_out_what_lies_between_laps() -> None:
    timeline = ByHand()
    watch = SynchronisingStopwatch(timeline)
    for lasts, pause in ((1000, 500), (2000, 0)):
        watch.start()
        timeline.now += lasts
        watch.stop()
        timeline.now += pause
    assert watch.seconds == 3
    watch.start()
    timeline.now += 4000
    assert watch.lap() == 7
    timeline.now += 1000
    watch.stop()
    assert watch.seconds == 8
    watch.start()
    with watch.paused():
        timeline.now += 500
    timeline.now += 2000
    watch.stop()
    assert watch.seconds == 10


@pytest.mark.parametrize(
    ("precision", "element", "features"),
    # Features there and back, labels, statistics of 2 x 32 images: of one other rank.
    [
        ("fp32", 4, 2 * 32 * 16 * 4 + 32 * 4 + 3 * 64 * 4),
        ("bf16", 4, 2 * 32 * 16 * 2 + 32 * 4 + 3 * 64 * 4),
        ("fp64", 8, 2 * 32 * 16 * 8 + 32 * 8 + 3 * 64 * 8),
    ],
)
def test_expected_bytes_follow_the_precision(precision: str, element: int, features: int) -> None:
    values = {"train": {"steps": 1, "precision": precision}, "classifier": {"layout": "node"}}
    config, sketch = Config.model_validate(values), Sketch((torch.Size([1000]),), 16, 1, frozen=0)
    found = expected_bytes(config, Anatomy.of(config, Topology(0, 1, 2), sketch))
    assert found == Bytes(in_node=features + 2 * 500 * element)


def test_a_drain_before_a_checkpoint_is_training_time_and_in_no_rate() -> None:
    timeline = ByHand()
    clock, record, settings = Clock(timeline), Record(), config(**DELAYED)
    course = Course(settings, BatchSplit(1000, 8, 0, 1, 0), 0, WINDOWS, 0, 0)
    world, stopwatch = world_of_one(Meters(clock, Traffic())), SynchronisingStopwatch(timeline)
    ledger = Ledger(settings, world, course, stopwatch=stopwatch)
    ledger.begins(record)
    for window in range(WINDOWS):
        ledger.window_begins(window)
        with clock.window():
            timeline.now += 1000
        timeline.done = timeline.now
        ledger.window_ended(window, record)
        if window + 1 == WINDOWS - 2:
            ledger.draining()
            timeline.now += 300
            with ledger.paused(window + 1, drained=True):
                timeline.now += 7000
                ledger.evaluated(window + 1, {"val/top1": 0.25}, record)
    ledger.stopwatch.stop()
    summary = ledger.summary(Trained(1, 1, Bytes()))
    (evaluation,) = summary.evaluations
    assert evaluation.drained
    assert evaluation.train_seconds == pytest.approx(WINDOWS - 2 + 0.3)
    assert summary.train_seconds == pytest.approx(WINDOWS + 0.3)
    assert summary.step_ms.mean == pytest.approx(1000)
    # The window behind it has nothing to wait for.
    assert summary.timed_windows == WINDOWS - summary.untimed_windows - 1


def test_the_stopwatch_starts_once_all_ranks_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = ByHand()
    settings = config()
    course = Course(settings, BatchSplit(1000, 8, 0, 1, 0), 0, WINDOWS, 0, 0)
    world, stopwatch = world_of_one(), SynchronisingStopwatch(timeline)
    ledger = Ledger(settings, world, course, stopwatch=stopwatch)

    def slow_meeting(value: object, name: str) -> list[object]:
        timeline.now += 2000
        return [value]

    monkeypatch.setattr(type(world), "gather_objects", lambda _, *given: slow_meeting(*given))
    ledger.begins(Record())
    timeline.now += 500
    assert stopwatch.lap() == pytest.approx(0.5)


def test_pauses_near_each_other_are_told_of_where_several_windows_are_late() -> None:
    every = {"evaluate_every": 39}
    for delay, near in ((1, False), (2, True)):
        found = config(kind="averaging", delay=delay)
        often = found.model_copy(update={"train": found.train.model_copy(update=every)})
        assert bool(pauses_are_near(often)) == near
        assert not pauses_are_near(found), "it does not evaluate in between"
