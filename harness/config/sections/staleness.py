"""Section `staleness`: how late gradients and the curvature are measured."""

from pydantic import Field

from harness.config.section import Section
from harness.config.sections.values import MAX_COUNT


class StalenessConfig(Section):
    sample_every: int = Field(default=50, ge=0, le=MAX_COUNT)
    """Windows between two comparisons of the late gradient with the fresh one; 0 makes none."""
    curvature_after_warmup: bool = True
    """Estimate the largest curvature once, when lr reaches its peak and the first late window
    begins. Only runs whose nodes exchange late do so."""
    curvature_every: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Windows between two such estimates; 0 makes none."""
    curvature_products: int = Field(default=16, ge=1, le=10**6)
    """Hessian-vector products of an estimate; each costs as much as two micro-batches."""
