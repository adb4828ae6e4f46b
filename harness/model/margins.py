"""Margins on the target's cosine: what makes features of unseen classes separable."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, where

Margin = Callable[[Tensor], Tensor]
"""What takes the place of the targets' cosines."""


def margin_of(name: str, size: float) -> Margin | None:
    """Of `classifier.margin`; None where there is none.

    cosface: cos t - m, arXiv 1801.09414. arcface: cos(t + m), arXiv 1801.07698, continued past
    t = pi - m by the line that keeps it falling.
    """
    if name == "none":
        return None
    if name == "cosface":
        return lambda cosines: cosines - size

    def arcface(cosines: Tensor) -> Tensor:
        sines = (1 - cosines * cosines).clamp(min=1e-7).sqrt()
        turned = cosines * math.cos(size) - sines * math.sin(size)
        return where(cosines > -math.cos(size), turned, cosines - size * math.sin(size))

    return arcface


@torch.enable_grad()
def with_margin(margin: Margin, logits_n: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The logits of targets with their margin, and its slope."""
    cosines_n = (logits_n.detach() / scale).requires_grad_()
    moved_n = margin(cosines_n)
    (slope_n,) = torch.autograd.grad(moved_n.sum(), cosines_n)
    return moved_n.detach() * scale, slope_n
