"""How late gradients are, the learning rate that this allows, and a warning if lr is above it."""

from dataclasses import replace

from harness.config import Config
from harness.exchange.exchange import Exchange
from harness.exchange.lateness import cosine
from harness.parallel.ranks import Gathered
from harness.parallel.world import World
from harness.train.course import Course
from harness.train.ledger import Journal
from harness.train.stability import Dynamics, dynamics_of, largest_stable_product

ABOVE = 3.0
"""Ratio of lr to the largest stable lr above which a warning is printed.

Measured at the peak of lr on 1,000 characters: experiments that train well have ratios of 0.6 to
2.3; experiments held back by late gradients (heavy-ball momentum, K = 4, a second window of delay)
have 3.7 to 6.5. A loss is not a parabola, and an estimate from few images is 20 % too low.
"""
LEAST_SHARE = 0.1
"""If a delay leaves less than this share of the stable lr, a warning is printed before training."""


class StalenessLedger:
    """Logs the staleness and curvature found in a run. All ranks make the same calls."""

    def __init__(
        self, config: Config, world: World, course: Course, next_warning: float | None = None
    ) -> None:
        """`next_warning` comes from the checkpoint that the run resumes."""
        self._config = config
        self._nodes = world.topology.nodes
        self._course = course
        self._first = course.first
        self._world = world
        self._windows = course.windows
        self._under_way: tuple[int, Gathered] | None = None
        self.next_warning = ABOVE if next_warning is None else next_warning
        """Ratio of lr to the largest stable lr at which to warn next: after each warning, twice its
        ratio."""

    def begins(self, journal: Journal) -> None:
        """Warns of settings that are already known to leave little of the learning rate."""
        if not self._world.is_first:
            return  # computing a limit takes a moment, and only rank 0 prints
        dynamics = dynamics_of(self._config, self._windows, self._nodes)
        if dynamics is None or dynamics.delay == 0:
            return
        in_time = largest_stable_product(replace(dynamics, delay=0))
        share = largest_stable_product(dynamics) / in_time
        if share < LEAST_SHARE:
            journal.warn("staleness_settings", early_warning(dynamics, share))

    def window_ended(self, window: int, exchange: Exchange, journal: Journal) -> None:
        """Logs at the end of each interval. The cosine is logged one interval later, so nobody
        waits."""
        ended = window + 1
        if ended % self._config.train.log_every and ended != self._windows:
            return
        self.settle(journal)
        found = exchange.lateness()
        if found.landings:
            age = found.windows / found.landings
            journal.log(ended, {"staleness/applied_delay": age})
        if found.products is not None:
            products = found.products.cpu()
            self._under_way = ended, self._world.launch_gather(products, "staleness")
        if ended == self._windows:
            self.settle(journal)

    def settle(self, journal: Journal) -> None:
        """Logs the cosine that is under way. Collective over the world."""
        if self._under_way is not None:
            ended, gathered = self._under_way
            self._under_way = None
            journal.log(ended, {"staleness/cosine": cosine(gathered.wait().sum(0))})

    def estimates(self, ended: int) -> bool:
        """Whether to estimate the curvature after `ended` windows."""
        settings, every = self._config.staleness, self._config.staleness.curvature_every
        if ended >= self._windows:
            return False
        settled = self._config.optimizer.warmup_windows, self._config.exchange.synchronous_windows
        peak = max(*settled, self._first)  # a resumed run may begin after the peak
        late = dynamics_of(self._config, peak, self._nodes)
        once = settings.curvature_after_warmup and late is not None and late.delay > 0
        return (once and ended == peak) or bool(every and ended and ended % every == 0)

    def estimated(self, ended: int, curvature: float | None, journal: Journal) -> None:
        """Logs the largest curvature after `ended` windows and the stable lr that follows from it.

        `curvature` is None if memory did not suffice. Warns if the next window's lr is too high.
        """
        if not self._world.is_first:
            return
        if curvature is None:
            journal.warn("curvature", not_estimated(ended))
            return
        window = min(ended, self._windows - 1)
        metrics = {"staleness/curvature": curvature}
        dynamics = dynamics_of(self._config, window, self._nodes)
        if dynamics is not None and curvature > 0:
            stable = largest_stable_product(dynamics) / curvature
            lr = self._course.lr(window)
            metrics["staleness/stable_lr"] = stable
            metrics["staleness/lr_over_stable"] = lr / stable
            metrics["staleness/above_limit"] = float(lr > stable)
            if lr > self.next_warning * stable:
                self.next_warning = 2 * lr / stable
                journal.warn("staleness", warning(dynamics, window, lr, stable, curvature))
        journal.log(ended, metrics)


def early_warning(dynamics: Dynamics, share: float) -> str:
    """One line on settings that leave little of the learning rate."""
    return (
        f"{_settings(dynamics)} leave {share:.1%} of the learning rate that is stable without a "
        f"delay (quadratic model); {_advice(dynamics)}"
    )


def warning(dynamics: Dynamics, window: int, lr: float, stable: float, curvature: float) -> str:
    """One line: what is too high, by how much, and what to do."""
    return (
        f"lr {lr:.3g} at window {window} with {_settings(dynamics)} is {lr / stable:.1f} times the "
        f"largest stable rate, {stable:.2g} (quadratic model, curvature {curvature:.2g}); "
        f"lower optimizer.lr or {_advice(dynamics)}"
    )


def not_estimated(ended: int) -> str:
    """One line: what is missing, why, and what to do."""
    windows = "1 window" if ended == 1 else f"{ended} windows"
    return (
        f"the curvature is not estimated after {windows}, because a rank lacks free memory for it; "
        f"training continues, and a smaller train.batch_size would leave enough"
    )


def _settings(dynamics: Dynamics) -> str:
    ahead = "nesterov momentum" if dynamics.nesterov else "momentum"
    late = f" and delay {dynamics.delay}" if dynamics.delay else ""
    steps = f", {dynamics.passes} steps per window" if dynamics.passes > 1 else ""
    return f"{ahead} {dynamics.momentum:g}{late}{steps}"


def _advice(dynamics: Dynamics) -> str:
    return "use less momentum" if dynamics.nesterov else "use nesterov or less momentum"
