"""Delivers in a thread to a receiver that may stop answering; whoever puts in never waits."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")

DELIVER_SECONDS = 2.0
"""Between two deliveries."""
RETRY_SECONDS = 10.0
"""Until the next attempt once the receiver did not answer."""
BATCH_ITEMS = 50
KEPT_ITEMS = 100_000
"""While the receiver is silent; beyond it the oldest are dropped."""


class Refused(Exception):
    """The receiver answered that it will never take this batch."""


class Outbox(Generic[Item]):
    """Keeps what is put in until `deliver` took it, in order.

    `deliver` may raise: `Refused` drops the batch, anything else keeps it for another attempt.
    `trouble` hears of the first such error and of no other. What `deliver` returns is gone through:
    each of its steps is a sign of life.
    """

    def __init__(
        self,
        deliver: Callable[[list[Item]], Iterable[object] | None],
        trouble: Callable[[Exception], None],
        batch_items: int = BATCH_ITEMS,
    ) -> None:
        self._deliver = deliver
        self._trouble = trouble
        self._batch_items = batch_items
        self._waiting: deque[Item] = deque(maxlen=KEPT_ITEMS)
        self._in_hand: list[Item] = []
        self._closing = threading.Event()
        self._troubled = False
        self.delivered = 0
        """Items the receiver took."""
        self._steps = 0
        """Of all deliveries; it only grows."""
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        self._waiting.append(item)

    def close(self, seconds: float) -> bool:
        """Delivers what is left, as long as something is done of it every so many seconds.

        Whether nothing is left.
        """
        self._closing.set()
        done = -1
        while self._thread.is_alive() and done < self._steps:
            done = self._steps
            self._thread.join(seconds)
        empty = not (self._thread.is_alive() or self._in_hand or self._waiting)
        if not empty:
            self._report(TimeoutError(f"no answer within {seconds:g} s"))
        return empty

    def _run(self) -> None:
        answers = True
        while not self._closing.wait(DELIVER_SECONDS if answers else RETRY_SECONDS):
            answers = self._deliver_all()
        self._deliver_all()

    def _deliver_all(self) -> bool:
        while True:
            # Only this thread takes items out, so that what it saw waiting is still there, or was
            # dropped for being the oldest of too many.
            while self._waiting and len(self._in_hand) < self._batch_items:
                self._in_hand.append(self._waiting.popleft())
            if not self._in_hand:
                return True
            try:
                for _ in self._deliver(self._in_hand) or ():
                    self._steps += 1
                self._steps += 1
                self.delivered += len(self._in_hand)
            except Refused as error:
                self._report(error)
            except Exception as error:
                self._report(error)
                return False
            self._in_hand = []

    def _report(self, error: Exception) -> None:
        if not self._troubled:
            self._troubled = True
            self._trouble(error)
