"""Nesterov's momentum on what all nodes moved on the mean: DiLoCo's outer optimizer.

Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023: the
mean movement of a window is taken for a gradient, lr 0.7 and momentum 0.9. lr 1 and momentum 0
leave it as it is.
"""

import torch
from torch import Tensor


class Outer:
    """Turns mean movements, one at a time, into steps. All nodes make the same ones."""

    def __init__(self, lr: float, momentum: float, like: Tensor) -> None:
        self._lr = lr
        self._momentum = momentum
        self.velocity = torch.zeros_like(like)

    def step(self, movement: Tensor) -> None:
        """Replaces the mean movement of a window by the step to make, in place."""
        self.velocity.mul_(self._momentum).add_(movement)
        movement.add_(self.velocity, alpha=self._momentum).mul_(self._lr)
