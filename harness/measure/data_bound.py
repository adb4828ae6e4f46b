"""Whether the images decide how long a step takes, rather than other ranks."""

from collections.abc import Mapping

from harness.measure.phase import Phase

LEAST_PERCENT = 10.0
"""Percent of a step that images must take before they are said to decide."""
WAITS: tuple[str, ...] = (Phase.SLICE_WAIT, Phase.NODE_WAIT, Phase.EXCHANGE_WAIT)
"""Phases in which a rank waits for others."""


def bound_by_data(phases_ms: Mapping[str, float]) -> str:
    """The shares of images and of waits in a step with these phases, if images take more of it than
    waits, and at least `LEAST_PERCENT`; else ""."""
    step = sum(phases_ms.values())
    if not step:
        return ""
    data = 100 * phases_ms.get(Phase.DATA, 0.0) / step
    waits = 100 * sum(phases_ms.get(phase, 0.0) for phase in WAITS) / step
    if data < LEAST_PERCENT or data <= waits:
        return ""
    return f"images take {data:.0f} % of a step, and waiting for other ranks {waits:.0f} %"
