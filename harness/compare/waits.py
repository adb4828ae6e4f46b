"""Exposed wait: how long a rank waits for others in a step, if that can be measured."""

import math

from harness.config import Config
from harness.measure.data_bound import WAITS
from harness.measure.summary import RunSummary


def waits_measured(config: Config) -> bool:
    """Whether waits are measured apart from computing; torch's DDP waits inside backward."""
    return not config.exchange.traits.waits_in_backward


def phase_ms(run: RunSummary, phase: str) -> float:
    """Milliseconds of the phase in a step, mean over ranks; 0 if the run has no such phase."""
    return run.phases_ms[phase].mean if phase in run.phases_ms else 0.0


def wait_ms(config: Config, run: RunSummary) -> float:
    """Milliseconds of a step spent waiting; NaN if waits cannot be separated from computing, or no
    window was timed."""
    if not waits_measured(config) or not run.speed_known:
        return math.nan
    return sum(phase_ms(run, phase) for phase in WAITS)


def wait_percent(config: Config, run: RunSummary) -> float:
    """Percent of the step spent waiting; NaN as for `wait_ms`, and if no window was timed."""
    step = run.step_ms.mean
    return 100 * wait_ms(config, run) / step if step else math.nan
