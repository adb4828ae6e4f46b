"""Section `launch`: how `harness launch` and `compare` end the ranks."""

from pydantic import Field

from harness.config.section import Section


class LaunchConfig(Section):
    grace_seconds: float = Field(default=20, ge=0, le=10**6)
    """Seconds from SIGTERM or SIGUSR1, by which a scheduler warns, until all ranks are ended; in
    them they write a checkpoint, if the run writes any. Ending them takes up to ten more. 0 ends
    them at once."""
