"""Nodes step on their own gradients; their movements are averaged and applied late."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from harness.config import ExchangeConfig
from harness.exchange.carried import Strip, agree
from harness.exchange.lateness import Lateness, LatenessMeter
from harness.exchange.parts import Chunk, Part, divergence_of, mean_values
from harness.exchange.wire import Sent


class OuterNesterov:
    """The outer optimizer: Nesterov's momentum on the mean movement of all nodes.

    It takes the mean movement of a window for a gradient, as DiLoCo's outer optimizer does
    (Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023),
    there with lr 0.7 and momentum 0.9. With lr 1 and momentum 0 a movement is unchanged. All nodes
    make the same steps.
    """

    def __init__(self, lr: float, momentum: float, like: Tensor) -> None:
        self._lr = lr
        self._momentum = momentum
        self.velocity = torch.zeros_like(like)

    def step(self, movement: Tensor) -> None:
        """Replaces a window's mean movement by the step to make, in place."""
        # With m the movement: v <- mu v + m; step = lr (m + mu v).
        self.velocity.mul_(self._momentum).add_(movement)
        movement.add_(self.velocity, alpha=self._momentum).mul_(self._lr)


class Sender(Protocol):
    """Sends what some of a rank's elements have moved, once in each window."""

    @property
    def parts(self) -> Sequence[Part]:
        """The parts that these elements make up."""

    @property
    def elements(self) -> int:
        """Elements of all parts."""

    @property
    def period(self) -> int:
        """Windows from one message of an element to the next."""

    def launch(self, window: int) -> "InFlight":
        """Sends this window's movement. Collective over the parts' ranks."""

    def agree(self) -> None:
        """Continues from the average of the nodes' values. Collective over the parts' ranks."""

    def carried(self) -> list[Strip]:
        """State carried between windows beside the values."""


@dataclass(frozen=True)
class InFlight:
    window: int
    sender: Sender
    land: Callable[[bool], None]
    """Waits, and replaces this node's own movement by the mean movement of all nodes. With True,
    the mean movement is kept and compared with this node's own at the next launch."""


class Rotation:
    """Pieces that are sent in turn, one in each window."""

    def __init__(self, pieces: Sequence["MovingPiece"]) -> None:
        self._pieces = pieces
        self.parts = [piece.part for piece in pieces]
        self.elements = sum(part.elements for part in self.parts)
        self.period = len(pieces)

    def launch(self, window: int) -> InFlight:
        """Sends what the piece whose turn it is has moved. Collective over the part's ranks."""
        turn, number = divmod(window, len(self._pieces))
        piece = self._pieces[number]
        return InFlight(window, self, partial(piece.land, piece.launch(turn)))

    def agree(self) -> None:
        for piece in self._pieces:
            piece.agree()

    def carried(self) -> list[Strip]:
        return [strip for piece in self._pieces for strip in piece.carried()]


class Averaging:
    """Nodes step alone for a window of K steps and then average how far they moved.

    In a node, ranks average the gradients of every micro-batch and step at once. Once per window
    each node sends how far its parameters moved since it last sent them; `delay` windows later it
    adds `average - what was sent`. So every step is averaged exactly once, and nodes differ only by
    what has not landed yet (and by what a lossy wire has not sent yet). Momentum stays local. The
    first `synchronous_windows` windows use delay 0.

    A rotation of several pieces sends one of them in each window, in turn, which loads the link
    evenly; each piece lands after the same delay. With two senders, of the chunk and of the slice,
    each part has its own pace: a window sends a message of either. `drain` leaves all nodes on the
    average of their values, equal to the bit.
    """

    passes_per_step = 1
    averages_in_backward = False

    def __init__(
        self,
        chunk: Chunk,
        senders: Sequence[Sender],
        config: ExchangeConfig,
        first_window: int = 0,
        meter: LatenessMeter | None = None,
    ) -> None:
        self._chunk = chunk
        self._senders = senders
        self._parts = [part for each in senders for part in each.parts]
        self._elements = sum(each.elements for each in senders)
        self._passes = config.backward_passes_per_step
        self._delay = config.delay
        self._synchronous_windows = config.synchronous_windows
        self._in_flight: deque[InFlight] = deque()
        self._steps = first_window * self._passes
        self._drained = first_window
        """The window since which movements have to be sent."""
        self._meter = meter or LatenessMeter(0)

    def changed_in_backward(self) -> list[Tensor]:
        return []

    def gradients_ready(self, last: bool) -> bool:
        self._chunk.average_gradients()
        return True

    def after_step(self) -> None:
        self._steps += 1
        if self._steps % self._passes == 0:
            self._window_ended(self._steps // self._passes - 1)
        self._chunk.spread_values()

    def dropped(self) -> bool:
        self.after_step()  # what the window's other steps moved is sent
        return False

    def at_mean(self) -> AbstractContextManager[Tensor | None]:
        # What is in flight cancels out in the mean.
        return mean_values(self._parts, self._chunk)

    def divergence_before_drain(self) -> Callable[[], Tensor]:
        return divergence_of(self._parts)

    def drain(self, step: Callable[[], None]) -> None:
        while self._in_flight:
            self._land(self._in_flight[-1].window)
        for sender in self._senders:
            sender.agree()
        self._chunk.spread_values()
        self._drained = self._steps // self._passes

    def carried(self) -> list[Strip]:
        return [strip for sender in self._senders for strip in sender.carried()]

    def agree_on(self, states: Sequence[Tensor]) -> None:
        # Each node's momentum comes from its own gradients, but from now on all nodes hold the
        # mean's weights.
        agree(states, self._parts[0].peers)

    def _window_ended(self, window: int) -> None:
        """Lands what is due, and sends what has moved."""
        # Landing adds one correction to the values and to `_sent_up_to`, so their difference, the
        # movement to send, never contains it: no movement is sent twice. What is due lands before
        # the launch, so that its direction can be compared with this window's own movement. With
        # delay 0 this window's own movement is due, which can only land after its launch.
        delay = 0 if window < self._synchronous_windows else self._delay
        self._land_up_to(window - max(1, delay), window)
        self._in_flight.extend(sender.launch(window) for sender in self._senders)
        self._land_up_to(window - delay, window)

    def lateness(self) -> Lateness:
        return self._meter.take()

    def _land_up_to(self, last: int, now: int) -> None:
        while self._in_flight and self._in_flight[0].window <= last:
            self._land(now)

    def _land(self, now: int) -> None:
        oldest = self._in_flight.popleft()
        age = now - oldest.window
        oldest.land(age > 0 and self._meter.samples(now, oldest.sender.period))
        # The movement took place evenly over the windows since the piece was last sent; in the
        # first round after a drain that is fewer than the number of pieces. Its mean age is
        # (windows - 1) / 2 more.
        moved_for = min(oldest.window + 1 - self._drained, oldest.sender.period)
        share = oldest.sender.elements / self._elements if self._elements else 1.0
        self._meter.landed(age + (moved_for - 1) / 2, share)


class MovingPiece:
    """One piece of the parameters, and the values up to which its movement has been sent."""

    def __init__(
        self,
        part: Part,
        config: ExchangeConfig,
        name: str,
        meter: LatenessMeter | None = None,
        outer: type[OuterNesterov] = OuterNesterov,
    ) -> None:
        self.part = part
        self._name = name
        self._slots = config.delay // part.pieces + 1
        self._wire = part.wire(config.compression, self._slots, name, keeps_own=True)
        self._sent_up_to = part.values()
        self._change = torch.empty_like(self._sent_up_to)
        self._meter = meter or LatenessMeter(0)
        self._landed: Tensor | None = None
        """A sampled mean movement, kept until this node's next movement is known."""
        self._outer: OuterNesterov | None = None
        if config.has_outer:
            self._outer = outer(config.outer_lr, config.outer_momentum, self._change)

    def launch(self, turn: int) -> Sent:
        """Sends what has moved since the last call; `turn` counts this piece's calls.

        Collective over the part's ranks.
        """
        self.part.movement(self._sent_up_to, out=self._change)
        if self._landed is not None:
            # A part at a pace of its own may be compared more rarely than the other.
            share = self._meter.between(self.part.pieces)
            self._meter.compare(self._landed, self._change, share)
            self._landed = None
        sent = self._wire.launch(self._change, turn % self._slots)
        # `_sent_up_to` advances by what was really sent, so what a lossy wire left out counts as
        # movement the next time: the error feedback.
        sent.add_own(self._sent_up_to, 1.0)
        return sent

    def land(self, sent: Sent, keep: bool = False) -> None:
        """Waits, and replaces this node's own movement by the mean movement of all nodes.

        With `keep`, the mean movement is kept and compared with this node's own movement at the
        next launch of this piece, which comes in the same window if `delay` is a multiple of the
        pieces.
        """
        # The own movement o is already in the values. With the mean movement m, the change to apply
        # is m - o without an outer optimizer and outer(m) - o with one. `correction` gives m - o,
        # so the m to keep is correction + o; an outer optimizer overwrites m, so it is kept before.
        if self._outer is None:
            sent.correction(self._change)
        else:
            sent.mean(self._change)
            if keep:
                self._landed = self._change.clone()
            self._outer.step(self._change)
            sent.add_own(self._change, -1.0)
        if keep and self._outer is None:
            self._landed = self._change.clone()
            sent.add_own(self._landed, 1.0)
        self.part.add(self._change)
        self._sent_up_to += self._change

    def agree(self) -> None:
        """Continues from the average of the nodes' values. Collective over the part's ranks."""
        values = self.part.values()
        self._wire.settle(values[: self.part.sent])
        self._sent_up_to = self.part.average_of(values, f"{self._name}.values")
        self.part.put(self._sent_up_to)
        self._landed = None  # a drain ends the comparison: the next movement starts from here

    def carried(self) -> list[Strip]:
        """The outer optimizer's velocity, which is the same on all nodes."""
        if self._outer is None:
            return []
        return self.part.strips("exchange.velocity", self._outer.velocity)
