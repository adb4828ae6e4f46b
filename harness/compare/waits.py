"""Exposed wait: how long a rank stood still for others in a step, where a clock could tell."""

import math

from harness.config import Config
from harness.measure.phase import Phase
from harness.measure.summary import RunSummary

WAITS: tuple[str, ...] = (Phase.SLICE_WAIT, Phase.NODE_WAIT, Phase.EXCHANGE_WAIT)
"""Phases in which a rank stands still for others."""


def waits_told_apart(config: Config) -> bool:
    """False for torch's DDP, which waits inside its backward pass, among the computing."""
    return not config.exchange.traits.waits_in_backward


def wait_ms(config: Config, run: RunSummary) -> float:
    """Milliseconds of a step; NaN where waits cannot be told from computing."""
    if not waits_told_apart(config):
        return math.nan
    return sum(run.phases_ms[phase].mean for phase in WAITS if phase in run.phases_ms)


def wait_percent(config: Config, run: RunSummary) -> float:
    """Percent of the step; NaN also if no window was timed."""
    step = run.step_ms.mean
    return 100 * wait_ms(config, run) / step if step else math.nan
