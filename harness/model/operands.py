"""The operands of the two passes over tiles of classes, and the result of the first.

Shapes: n images of all ranks, D features, K classes of this slice, c of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.model.margins import Margin


@dataclass(frozen=True)
class Operands:
    """The operands of the logits, which are x w + b, or `scale` times cosines."""

    features: Tensor
    """[n, D], in the precision of products; normalised for cosines."""
    targets: Tensor
    """[n], counted from the slice's first class; outside 0..K-1 if another slice has the target."""
    weight: Tensor
    """[K, D]."""
    bias: Tensor | None
    """[K]."""
    scale: float | None = None
    """None if logits are plain."""
    margin: Margin | None = None

    @property
    def exact(self) -> torch.dtype:
        """The dtype of the softmax: at least float32."""
        return torch.promote_types(self.features.dtype, torch.float32)

    @cached_property
    def whole(self) -> "Tile":
        """All classes as one tile."""
        return Tile(0, 0, len(self.weight), self.targets)


@dataclass(frozen=True)
class Gradients:
    """The gradients of a slice's parameters that a backward pass writes or adds to."""

    weight: Tensor
    """[K, D]."""
    bias: Tensor | None
    """[K]."""
    add: bool
    """Add to what earlier micro-batches left there."""


@dataclass(frozen=True)
class Tile:
    """Classes start..stop-1 of the slice."""

    number: int
    start: int
    stop: int
    targets: Tensor

    @cached_property
    def inside(self) -> Tensor:
        """Which images have their target in this tile, bool [n]."""
        return (self.targets >= self.start) & (self.targets < self.stop)

    @cached_property
    def place(self) -> Tensor:
        """The targets' rows in the tile, [n]; arbitrary for images that are not inside."""
        return (self.targets - self.start).clamp(0, self.stop - self.start - 1)


def tiles(given: Operands, size: int) -> Iterator[Tile]:
    classes = len(given.weight)
    for number, start in enumerate(range(0, classes, size)):
        yield Tile(number, start, min(start + size, classes), given.targets)


@dataclass
class FirstPass:
    """The result of one reading of the weight, for this slice and n images."""

    max: Tensor
    """The largest logit."""
    best: Tensor
    """Its class, counted from the slice's first; the lowest one of equal logits."""
    sum: Tensor
    """Sum of exp(z - max)."""
    target: Tensor
    """The target's logit; 0 if another slice has the target."""
    plain: Tensor
    """The target's logit without its margin."""
    slope: Tensor
    """Derivative of the target's logit by its cosine, divided by `scale`; 1 without a margin."""
    own: Tensor
    """Derivative of the loss's target term beside the softmax; equal to `slope` except with label
    smoothing."""
    mixed: Tensor | None
    """[n, D], sum_j exp(z_j - max) dz_j/dx divided by `scale`, including the target's class."""
    shifts: list[Tensor]
    """r, for each tile."""


def begun(given: Operands, goes_back: bool) -> FirstPass:
    """The state before the first tile."""
    n = len(given.targets)
    like_n = given.features.new_zeros(n, dtype=given.exact)
    return FirstPass(
        max=torch.full_like(like_n, -torch.inf),
        best=torch.zeros_like(given.targets),
        sum=torch.zeros_like(like_n),
        target=torch.zeros_like(like_n),
        plain=torch.zeros_like(like_n),
        slope=(ones_n := torch.ones_like(like_n)),
        own=ones_n,
        mixed=like_n.new_zeros(n, given.features.shape[1]) if goes_back else None,
        shifts=[],
    )


def inverse_lengths(weight_cD: Tensor) -> Tensor:
    return 1 / torch.linalg.vector_norm(weight_cD, dim=1).clamp_min(1e-12)
