"""Exposed wait: how long a rank waits for others in a step, if that can be measured."""

import math

from harness.config import Config
from harness.measure.phase import Phase
from harness.measure.summary import RunSummary

WAITS: tuple[str, ...] = (Phase.SLICE_WAIT, Phase.NODE_WAIT, Phase.EXCHANGE_WAIT)
"""Phases in which a rank waits for others."""


def waits_measured(config: Config) -> bool:
    """Whether waits are measured apart from computing; torch's DDP waits inside backward."""
    return not config.exchange.traits.waits_in_backward


def wait_ms(config: Config, run: RunSummary) -> float:
    """Milliseconds of a step spent waiting; NaN if waits cannot be separated from computing."""
    if not waits_measured(config):
        return math.nan
    return sum(run.phases_ms[phase].mean for phase in WAITS if phase in run.phases_ms)


def wait_percent(config: Config, run: RunSummary) -> float:
    """Percent of the step spent waiting; NaN as for `wait_ms`, and if no window was timed."""
    step = run.step_ms.mean
    return 100 * wait_ms(config, run) / step if step else math.nan
