"""How often to save where machines fail, and which share of the time is then useful.

Failures are taken as independent of each other and of the time (a Poisson process), also while
saving and starting again. J. W. Young, "A first order approximation to the optimum checkpoint
interval", 1974; J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart
dumps", 2006.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """What failures cost on given machines, in seconds."""

    between_seconds: float
    """Mean time between two failures of any part of the run."""
    save_seconds: float
    """Time that training stands still for a checkpoint."""
    restart_seconds: float
    """Time from a failure until the first window is trained again."""

    @property
    def young_seconds(self) -> float:
        """Young's interval between checkpoints, for a cost that is small against it."""
        # The cost per second, d / t + t / 2M, is least at t = sqrt(2 d M).
        return math.sqrt(2 * self.save_seconds * self.between_seconds)

    @property
    def daly_seconds(self) -> float:
        """Daly's interval, of a higher order; the time between failures if saving takes more than
        twice that."""
        saving, between = self.save_seconds, self.between_seconds
        if saving >= 2 * between:
            return between
        ratio = saving / (2 * between)
        return self.young_seconds * (1 + math.sqrt(ratio) / 3 + ratio / 9) - saving

    def useful_share(self, interval_seconds: float) -> float:
        """Share of the time that trains what is kept (the effective training time ratio, ETTR), if
        a checkpoint follows each `interval_seconds` of training."""
        # An interval and its checkpoint, t + d, must pass without a failure; each failure costs
        # what has been done of them, and a restart R, which may fail too. The expected time until
        # one is done is M e^(R/M) (e^((t+d)/M) - 1).
        between = self.between_seconds
        try:
            tries = math.expm1((interval_seconds + self.save_seconds) / between)
            return interval_seconds / (between * math.exp(self.restart_seconds / between) * tries)
        except OverflowError:
            return 0.0


def advice(failures: Failures, step_seconds: float) -> list[str]:
    """Lines on the interval between checkpoints, given the time of a window."""
    hours = failures.between_seconds / 3600
    saving, restart = failures.save_seconds, failures.restart_seconds
    lines = [
        f"one failure every {hours:,.3g} h on average; a checkpoint holds training up for "
        f"{saving:.3g} s, and a restart takes {restart:.3g} s"
    ]
    for name, interval in (("Young", failures.young_seconds), ("Daly", failures.daly_seconds)):
        windows = max(1, round(interval / step_seconds))
        share = failures.useful_share(windows * step_seconds)
        lines.append(
            f"  {name}: a checkpoint every {interval:,.0f} s, train.checkpoint_every={windows:,}: "
            f"{share:.2%} of the time is useful"
        )
    return lines
