"""Margins on the target's cosine: what makes features of unseen classes separable."""

import math

import torch
from torch import Tensor

# n images, K classes of this slice.


def add_margin(
    cosines_nK: Tensor, targets_n: Tensor, margin: str, size: float, scale: float
) -> Tensor:
    """Scaled cosines with the margin at each image's own class.

    `targets_n` counts within this slice; a value outside 0..K-1 is an image of another slice.
    cosface: s(cos t - m), arXiv 1801.09414. arcface: s cos(t + m), arXiv 1801.07698, continued
    past t = pi - m by the line that keeps it falling.
    """
    rows, columns = own_targets(targets_n, cosines_nK.shape[1])
    cosine = cosines_nK[rows, columns]
    if margin == "cosface":
        target = cosine - size
    else:
        sine = (1 - cosine * cosine).clamp(min=1e-7).sqrt()
        turned = cosine * math.cos(size) - sine * math.sin(size)
        target = torch.where(cosine > -math.cos(size), turned, cosine - size * math.sin(size))
    return cosines_nK.index_put((rows, columns), target) * scale


def own_targets(targets_n: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Rows whose class lies in a slice of `classes`, and the column of each there."""
    rows = ((targets_n >= 0) & (targets_n < classes)).nonzero(as_tuple=True)[0]
    return rows, targets_n[rows]
