"""Slow momentum: heavy-ball momentum on what all nodes moved on the mean.

Wang et al., "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum", ICLR
2020. With the mean movement m of a window, `exchange.outer_momentum` beta and `exchange.outer_lr`
alpha:

    u <- beta u + m        x <- x + alpha u

The paper divides m by the learning rate and multiplies u by it again, which is the same as long as
the rate is constant. Without that it is the block momentum of Chen and Huo, ICASSP 2016.
"""

import torch
from torch import Tensor

from harness.exchange.averaging import OuterNesterov


class SlowMomentum(OuterNesterov):
    """Replaces Nesterov's momentum of `OuterNesterov`."""

    def step(self, movement: Tensor) -> None:
        """Replaces the mean movement of a window by the step to make, in place."""
        self.velocity.mul_(self._momentum).add_(movement)
        torch.mul(self.velocity, self._lr, out=movement)
