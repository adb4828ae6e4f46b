"""Section `trace`: which windows of which ranks are profiled."""

from pydantic import Field, model_validator

from harness.config.section import Section
from harness.config.sections.values import MAX_COUNT, Rank


class TraceConfig(Section):
    windows: int = Field(default=0, ge=0, le=10**6)
    """Windows that torch's profiler traces; they are excluded from all times. 0 traces none."""
    first_window: int = Field(default=20, ge=0, le=MAX_COUNT)
    """Number of the first traced window, counted from the first of the run."""
    ranks: tuple[Rank, ...] = ()
    """Ranks that are traced; empty: all. Each takes some MB of memory on every rank."""
    horovod_timeline: bool = False
    """Record what Horovod's first rank does in these windows. Horovod's writer occupies a core of
    that rank for the whole run: do not compare times of such a run."""

    @model_validator(mode="after")
    def _timeline_has_windows(self) -> "TraceConfig":
        if self.horovod_timeline and not self.windows:
            raise ValueError(
                "trace.horovod_timeline=true records the traced windows, trace.windows is 0; "
                "set trace.windows"
            )
        return self
