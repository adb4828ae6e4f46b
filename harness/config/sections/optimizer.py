"""Section `optimizer`: the update rule and the learning rate over the run."""

from typing import Literal

from pydantic import Field

from harness.config.section import Section
from harness.config.sections.values import MAX_COUNT, Share


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    """Update rule."""
    lr: float = Field(default=0.1, gt=0, le=10**6)
    """Learning rate at its peak."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD: momentum. AdamW: beta1."""
    nesterov: bool = True
    """SGD: Nesterov momentum. It makes late gradients much more stable."""
    weight_decay: float = Field(default=5e-4, ge=0, le=10**6)
    """Weight decay of matrices and filters; biases and norms have none."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Learning rate over the run after the warm-up."""
    warmup_windows: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Windows in which the learning rate rises linearly from 0."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """step: shares of the run at which the learning rate falls."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """step: factor by which the learning rate is multiplied each time."""
