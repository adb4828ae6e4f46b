"""Times variants in turn, A B C A B C ..., so that a machine's drift affects all equally."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WARM_ROUNDS = 1


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step of each variant, with one entry per round."""

    rounds: Mapping[str, list[float]]

    def median(self, variant: str) -> float:
        """Median over rounds."""
        return statistics.median(self.rounds[variant])

    def ratio(self, variant: str, other: str) -> float:
        """Median over rounds of variant / other; the two of a round are neighbours in time."""
        pairs = zip(self.rounds[variant], self.rounds[other], strict=True)
        return statistics.median(first / second for first, second in pairs)


def alternate(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    steps: int,
    barrier: Callable[[], object],
) -> Timing:
    """Times `steps` steps of every variant in each round, between two barriers of all ranks."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(WARM_ROUNDS + rounds):
        for name, step in variants.items():
            barrier()
            started = time.perf_counter()
            for _ in range(steps):
                step()
            barrier()
            if number >= WARM_ROUNDS:
                found[name].append((time.perf_counter() - started) / steps * 1e3)
    return Timing(found)
