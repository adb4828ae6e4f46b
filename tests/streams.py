"""A stand-in for the devices and streams of several cards, where there is no card."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch


@dataclass(eq=False)
class Stream:
    """Finishes its work only when somebody waits for it."""

    device: torch.device
    finished: bool = False

    def synchronize(self) -> None:
        self.finished = True

    def wait_event(self, event: object) -> None: ...

    def record_event(self) -> object:
        return object()


@dataclass(eq=False)
class Cards:
    """Each thread's device and current streams, as CUDA and torch keep them."""

    opened: set[int] = field(default_factory=set)
    """Cards on which this process has a context, which takes memory there."""
    _of_thread: threading.local = field(default_factory=threading.local)

    def select(self, card: int) -> None:
        """As cudaSetDevice: it opens the card."""
        self.opened.add(card)
        self._of_thread.card = card

    @property
    def _card(self) -> int:
        return getattr(self._of_thread, "card", 0)

    def _streams(self) -> dict[int, Stream]:
        if not hasattr(self._of_thread, "streams"):
            self._of_thread.streams = {}
        found: dict[int, Stream] = self._of_thread.streams
        return found

    def current_stream(self, device: torch.device | None = None) -> Stream:
        card = self._card if device is None else device.index
        return self._streams().setdefault(card, Stream(torch.device("cuda", card)))

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """torch sets the stream's device, and goes back to the thread's stream on its device."""
        before = self.current_stream()
        self._set(stream)
        yield
        self._set(before)

    def _set(self, stream: Stream) -> None:
        self._streams()[stream.device.index] = stream
        self.select(stream.device.index)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """torch goes back to the device before only if that is open."""
        before = self._card
        self.select(device.index)
        yield
        if before in self.opened:
            self.select(before)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Cards:
    """Replaces what lines and clocks use of `torch.cuda`."""
    cards = Cards()
    replaced: dict[str, Callable[..., object]] = {
        "Stream": Stream,
        "current_stream": cards.current_stream,
        "stream": cards.stream,
        "device": cards.device,
    }
    for name, part in replaced.items():
        monkeypatch.setattr(torch.cuda, name, part)
    return cards
