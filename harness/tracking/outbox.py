"""Delivers items, in a thread, to a receiver that may stop answering; `put` never waits."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")

DELIVER_SECONDS = 2.0
"""Pause between two deliveries."""
RETRY_SECONDS = 10.0
"""Pause before the next attempt if the receiver did not answer."""
LONGEST_RETRY_SECONDS = 600.0
"""Longest pause before the next attempt for items set aside; each pause is twice as long as the one
before."""
LAST_RETRY_SECONDS = 1.0
"""Pause before the last attempt, at the end."""
BATCH_ITEMS = 50
"""Most items in one delivery."""
KEPT_ITEMS = 100_000
"""Most items kept while the receiver does not answer; beyond this the oldest are dropped."""


class Refused(Exception):
    """The receiver has answered that it will never accept this item."""


class Outbox(Generic[Item]):
    """Keeps items until `deliver` has accepted them, and delivers them in order and in batches.

    `deliver` may raise: after `Refused` the item is dropped, which is found by halving its batch;
    after any other error the batch is kept for another attempt. `trouble` is called with each error
    and the item that it came with. If `deliver` returns an iterable, it is iterated over, and each
    step counts as progress.

    `apart`: items are delivered one at a time and do not wait for each other. One that fails is set
    aside for a later attempt.

    `each_round`: called before each delivery; may return a further item to deliver.
    """

    def __init__(
        self,
        deliver: Callable[[list[Item]], Iterable[object] | None],
        trouble: Callable[[Exception, Item | None], None],
        *,
        apart: bool = False,
        each_round: Callable[[], Item | None] = lambda: None,
    ) -> None:
        self._deliver = deliver
        self._trouble = trouble
        self._apart = apart
        self._each_round = each_round
        self._waiting: deque[Item] = deque(maxlen=KEPT_ITEMS)
        self._in_hand: list[Item] = []
        self._aside: list[Item] = []
        self._pause_seconds = RETRY_SECONDS
        self._again_at = 0.0
        self._closing = threading.Event()
        self.delivered = 0
        """Number of items that the receiver has accepted."""
        self._steps = 0
        """Number of steps of all deliveries, by which `close` sees progress."""
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Adds an item to be delivered."""
        self._waiting.append(item)

    def hurry(self) -> None:
        """Begins the last delivery, which `close` waits for."""
        self._closing.set()

    def close(self, seconds: float) -> bool:
        """Delivers what is left, and gives up after `seconds` without progress.

        Returns whether everything was delivered.
        """
        self.hurry()
        done = -1
        while self._thread.is_alive() and done < self._steps:
            done = self._steps
            self._thread.join(seconds)
        left = [*self._in_hand, *self._aside, *self._waiting]
        if self._thread.is_alive():
            late = TimeoutError(f"no answer within {seconds:g} s")
            self._trouble(late, left[0] if left else None)
        return not (self._thread.is_alive() or left)

    def _run(self) -> None:
        answers = True
        while not self._closing.wait(DELIVER_SECONDS if answers else RETRY_SECONDS):
            item = self._each_round()
            if item is not None:
                self.put(item)
            answers = self._deliver_all()
        self._deliver_all()
        if self._aside:  # an item may have failed just now for the first time
            time.sleep(LAST_RETRY_SECONDS)
            self._deliver_all()

    def _deliver_all(self) -> bool:
        again = self._take_up_again()
        while True:
            # Only this thread removes items, so `popleft` finds one if `_waiting` was not empty:
            # when `put` drops the oldest item of a full queue, it adds another.
            most = 1 if self._apart else BATCH_ITEMS
            while self._waiting and len(self._in_hand) < most:
                self._in_hand.append(self._waiting.popleft())
            if not self._in_hand and again:
                self._in_hand.append(again.pop())
            if not self._in_hand:
                return True
            try:
                self._deliver_but_refused(self._in_hand)
            except Exception as error:
                self._trouble(error, self._in_hand[0])
                if not self._apart:
                    return False
                self._set_aside()
            self._in_hand = []

    def _deliver_but_refused(self, items: list[Item]) -> None:
        try:
            for _ in self._deliver(items) or ():
                self._steps += 1
            self._steps += 1
            self.delivered += len(items)
        except Refused as error:
            if len(items) == 1:
                self._trouble(error, items[0])
                return
            half = len(items) // 2
            self._deliver_but_refused(items[:half])
            self._deliver_but_refused(items[half:])

    def _set_aside(self) -> None:
        if not self._aside:
            self._again_at = time.monotonic() + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_RETRY_SECONDS)
        self._aside += self._in_hand

    def _take_up_again(self) -> list[Item]:
        """Items set aside that are due, the latest first, because they are taken from the end."""
        if not self._aside or (time.monotonic() < self._again_at and not self._closing.is_set()):
            return []
        due, self._aside = self._aside[::-1], []
        return due
