"""Exposed wait: how long a rank stood still for others in a step, where a clock could tell."""

import math

from harness.config import Config
from harness.measure.summary import RunSummary

WAITS = ("slice_wait", "node_wait", "exchange_wait")
"""Phases in which a rank stands still for others."""


def waits_told_apart(config: Config) -> bool:
    """Not with torch's DDP: it waits inside its backward pass, among the computing."""
    return not config.exchange.is_torchs


def wait_ms(config: Config, run: RunSummary) -> float:
    """Of a step; NaN where waits are not told apart."""
    if not waits_told_apart(config):
        return math.nan
    return sum(run.phases_ms[phase].mean for phase in WAITS if phase in run.phases_ms)


def wait_percent(config: Config, run: RunSummary) -> float:
    """Of the step; NaN also where no window was timed."""
    step = run.step_ms.mean
    return 100 * wait_ms(config, run) / step if step else math.nan
