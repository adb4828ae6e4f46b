"""How long windows of each exchange would take, by times measured in a run, and which one to take.

The planner's formulas, shortened, on a few measured times instead of the figures of machines.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from harness.exchange.codecs import COMPRESSIONS
from harness.exchange.kinds import KINDS, KindName
from harness.exchange.pieces import PieceTimes, late_window
from harness.exchange.preference import accuracy_cost

MOST_PIECES = 16


@dataclass(frozen=True)
class Choice:
    """An exchange that may be chosen."""

    kind: KindName
    passes: int
    """K."""
    delay: int
    compression: str
    pieces: int = 1

    @property
    def waits(self) -> bool:
        return not self.delay

    @property
    def accuracy_cost(self) -> tuple[int, ...]:
        """The expected cost in accuracy, as a key that sorts the least costly first."""
        cost = accuracy_cost(self.passes, self.pieces, self.compression, self.kind)
        return *cost, self.delay

    @property
    def text(self) -> str:
        words = [f"kind={self.kind}", f"K={self.passes}", f"delay={self.delay}"]
        words.append(f"compression={self.compression}")
        return " ".join(words + ([f"pieces={self.pieces}"] if self.pieces > 1 else []))


@dataclass(frozen=True)
class Pace:
    """Measured times of the slowest rank, milliseconds."""

    compute_ms: float
    """A window of one micro-batch in which nodes do not communicate."""
    transfer_ms: Mapping[str, float]
    """Sending a rank's whole part and waiting for the result, by compression, as late results
    travel."""
    waiting_ms: float
    """A synchronous window of one micro-batch without compression."""
    on_time_ms: Mapping[str, float] = field(default_factory=dict)
    """The same where a window waits for its own result; what is missing is as in `transfer_ms`."""
    encode_ms: Mapping[str, float] = field(default_factory=dict)
    """The part of a transfer in which the training thread writes what is sent, by compression: late
    or not, nothing hides it. What is missing takes no time."""

    @property
    def exposed(self) -> float:
        """Share of a transfer that a synchronous window waits for: the rest is hidden behind the
        backward pass."""
        whole = self._on_time("none")
        return min(1.0, max(0.0, self.waiting_ms - self.compute_ms) / whole) if whole else 0.0

    def pieces(self, passes: int, delay: int, compression: str) -> int:
        """The fewest pieces of which each lands in time."""
        times = PieceTimes(passes * self.compute_ms, self.transfer_ms[compression])
        return times.fewest_pieces(delay, MOST_PIECES)

    def window_ms(self, choice: Choice) -> float:
        """Predicted milliseconds of a window."""
        traits = KINDS[choice.kind]
        busy = choice.passes * self.compute_ms
        if not traits.late:
            return busy + self.exposed * self._on_time(choice.compression)
        if not choice.delay:
            return busy + self._on_time(choice.compression) / choice.pieces
        transfer = self.transfer_ms[choice.compression] / choice.pieces
        busy += self.encode_ms.get(choice.compression, 0.0) / choice.pieces
        return late_window(busy, transfer, transfer, choice.delay, traits.lands_first)

    def _on_time(self, compression: str) -> float:
        return self.on_time_ms.get(compression, self.transfer_ms[compression])

    def rate(self, choice: Choice) -> float:
        """Predicted micro-batches of a rank per second."""
        return 1e3 * choice.passes / self.window_ms(choice)


def widest_first(narrowest: str) -> tuple[str, ...]:
    """The compressions down to the narrowest that is allowed."""
    return COMPRESSIONS[: COMPRESSIONS.index(narrowest) + 1]


def allowed(
    kinds: Iterable[KindName], most_passes: int, most_delay: int, narrowest: str, pace: Pace
) -> list[Choice]:
    """All choices within these bounds, those that cost the least accuracy first.

    K is a power of two, or the bound; late kinds are on time or as late as they may be.
    """
    powers = [1 << n for n in range(most_passes.bit_length())]
    wires = widest_first(narrowest)
    found = []
    for kind in kinds:
        delays = sorted({0, most_delay}) if KINDS[kind].late else [0]
        for passes in sorted({*powers, most_passes}):
            for delay in delays:
                for wire in wires:
                    pieces = pace.pieces(passes, delay, wire) if KINDS[kind].in_pieces else 1
                    found.append(Choice(kind, passes, delay, wire, pieces))
    return sorted(found, key=lambda choice: choice.accuracy_cost)
