"""The thread that delivers: order, failing answers, one report, and an end in bounded time."""

import itertools
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from harness.tracking import outbox
from harness.tracking.outbox import Outbox, Refused
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "DELIVER_SECONDS", 0.01)
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(outbox, "LAST_RETRY_SECONDS", 0.01)


def test_everything_arrives_in_order_and_in_batches() -> None:
    batches: list[list[int]] = []
    box = Outbox[int](lambda batch: batches.append(list(batch)), pytest.fail)
    for number in range(500):
        box.put(number)
    assert box.close(5.0)
    assert [number for batch in batches for number in batch] == list(range(500))
    assert max(map(len, batches)) == outbox.BATCH_ITEMS


def test_what_failed_is_delivered_later_and_reported() -> None:
    taken: list[int] = []
    failures = iter([OSError("away")] * 3)
    reports: list[str] = []

    def deliver(batch: list[int]) -> None:
        for error in failures:
            raise error
        taken.extend(batch)

    box = Outbox[int](deliver, lambda error, item: reports.append(f"{error} {item}"))
    for number in range(120):
        box.put(number)
        time.sleep(0.001)
    wait_for(lambda: len(taken) == 120)
    assert box.close(1.0)
    assert taken == list(range(120))
    assert reports == ["away 0"] * 3


def test_a_refused_batch_does_not_hold_up_the_rest() -> None:
    taken: list[int] = []
    reports: list[str] = []

    def deliver(batch: list[int]) -> None:
        if 7 in batch:
            raise Refused("no sevens")
        taken.extend(batch)

    box = Outbox[int](deliver, lambda error, item: reports.append(f"{error} {item}"))
    for number in range(2 * outbox.BATCH_ITEMS + 5):
        box.put(number)
    assert box.close(5.0)
    assert taken == [number for number in range(2 * outbox.BATCH_ITEMS + 5) if number != 7]
    assert reports == ["no sevens 7"]


def test_items_apart_do_not_wait_for_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again after pauses that double, and once more at the end."""
    taken: list[int] = []
    tried: list[int] = []
    mended = threading.Event()
    rounds = itertools.count()
    clock = SimpleNamespace(now=0, monotonic=lambda: clock.now, sleep=time.sleep)
    monkeypatch.setattr(outbox, "time", clock)  # a clock of rounds, whatever they take
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 4)

    def next_round() -> None:
        clock.now = next(rounds)

    def deliver(items: list[int]) -> None:
        (item,) = items
        if item == 3:
            tried.append(clock.now)
            if not mended.is_set():
                raise OSError("no leave")
        taken.append(item)

    box = Outbox[int](deliver, lambda error, item: None, apart=True, each_round=next_round)
    for number in range(20):
        box.put(number)
    wait_for(lambda: len(taken) == 19 and len(tried) >= 4)
    assert taken == [number for number in range(20) if number != 3]
    pauses = [later - sooner for sooner, later in itertools.pairwise(tried)]
    assert pauses[:3] == [4, 8, 16]
    mended.set()
    assert box.close(5.0)
    assert taken[-1] == 3


def test_items_apart_that_are_refused_are_not_tried_again() -> None:
    tried: list[int] = []

    def deliver(items: list[int]) -> None:
        tried.extend(items)
        if items == [1]:
            raise Refused("never")

    box = Outbox[int](deliver, lambda error, item: None, apart=True)
    for number in range(3):
        box.put(number)
    time.sleep(0.3)
    assert box.close(5.0)
    assert tried == [0, 1, 2]


def test_each_round_may_add_an_item() -> None:
    taken: list[int] = []
    given = itertools.count()
    box = Outbox[int](taken.extend, pytest.fail, each_round=lambda: next(given))
    wait_for(lambda: len(taken) >= 5)
    box.close(5.0)
    assert taken[:5] == [0, 1, 2, 3, 4]


def test_the_end_does_not_wait_for_a_receiver_that_hangs() -> None:
    hangs = threading.Event()
    reports: list[Exception] = []
    box = Outbox[int](
        lambda batch: hangs.wait() and None, lambda error, item: reports.append(error)
    )
    box.put(1)
    assert not box.close(0.3)
    assert len(reports) == 1
    hangs.set()


def test_the_end_waits_as_long_as_something_is_taken() -> None:
    taken: list[int] = []

    def deliver(batch: list[int]) -> None:
        time.sleep(0.2)
        taken.extend(batch)

    box = Outbox[int](deliver, pytest.fail)
    for number in range(5 * outbox.BATCH_ITEMS):
        box.put(number)
    assert box.close(0.5)  # 1 s in all
    assert len(taken) == 5 * outbox.BATCH_ITEMS


def test_the_end_waits_for_a_batch_that_goes_on() -> None:
    taken: list[int] = []

    def deliver(batch: list[int]) -> Iterator[None]:
        for item in batch:
            time.sleep(0.2)
            taken.append(item)
            yield

    box = Outbox[int](deliver, pytest.fail)
    for number in range(10):
        box.put(number)
    assert box.close(0.5)  # 2 s in one batch
    assert taken == list(range(10))


def test_the_oldest_are_dropped_when_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "KEPT_ITEMS", 10)
    away = threading.Event()
    away.set()
    taken: list[int] = []

    def deliver(batch: list[int]) -> None:
        if away.is_set():
            raise OSError("away")
        taken.extend(batch)

    box = Outbox[int](deliver, lambda error, item: None)
    for number in range(1000):
        box.put(number)
    away.clear()
    assert box.close(5.0)
    assert taken[-10:] == list(range(990, 1000))
    assert len(taken) <= 10 + outbox.BATCH_ITEMS
