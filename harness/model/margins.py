"""Margins on the target's cosine, which make features of unseen classes separable."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, where

from harness.config import ClassifierConfig


@dataclass(frozen=True)
class Margin:
    move: Callable[[Tensor], Tensor]
    """Maps the targets' cosines to the values that replace them."""
    straight_through: bool = False
    """The backward pass treats the target's cosine as if it had not been moved."""
    parallel: bool = False
    """The target's cosine is moved by a constant."""

    @property
    def keeps_slope(self) -> bool:
        """Whether the target's logit grows as fast with its cosine as without the margin."""
        return self.straight_through or self.parallel


def margin_of(config: ClassifierConfig) -> Margin | None:
    """The margin that the config names; None for none.

    cosface: cos t - m, arXiv 1801.09414. arcface: cos(t + m), arXiv 1801.07698; beyond t = pi - m,
    where that would rise again, it continues as cos t minus a constant. combined:
    cos(m1 t + m2) - m3, arXiv 1801.07698, continued in the same way from m1 t + m2 = pi.
    """
    straight = config.margin_slope == "straight_through"
    size = config.margin_size
    if config.margin == "none":
        return None
    if config.margin == "cosface":
        return Margin(lambda cosines: cosines - size, straight, parallel=True)
    if config.margin == "combined":
        return Margin(_combined(config.margin_m1, config.margin_m2, config.margin_m3), straight)

    def arcface(cosines: Tensor) -> Tensor:
        turned = cosines * math.cos(size) - _sines(cosines) * math.sin(size)
        return where(cosines > -math.cos(size), turned, cosines - size * math.sin(size))

    return Margin(arcface, straight)


def _combined(times: float, turn: float, less: float) -> Callable[[Tensor], Tensor]:
    edge = (math.pi - turn) / times
    last = math.cos(edge) if edge < math.pi else -math.inf

    def combined(cosines: Tensor) -> Tensor:
        angles = torch.atan2(_sines(cosines), cosines)
        turned = (times * angles + turn).cos()
        return where(cosines > last, turned, cosines - last - 1) - less

    return combined


def _sines(cosines: Tensor) -> Tensor:
    return (1 - cosines * cosines).clamp(min=1e-7).sqrt()


@torch.enable_grad()
def with_margin(margin: Margin, logits_n: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The targets' logits including their margin, and the derivative of the margin."""
    cosines_n = (logits_n.detach() / scale).requires_grad_()
    moved_n = margin.move(cosines_n)
    if margin.straight_through:
        return moved_n.detach() * scale, torch.ones_like(logits_n)
    (slope_n,) = torch.autograd.grad(moved_n.sum(), cosines_n)
    return moved_n.detach() * scale, slope_n
