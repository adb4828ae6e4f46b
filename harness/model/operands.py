"""What the two passes over tiles of classes work on, and what the first finds.

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
    """What is multiplied: logits are x w + b, or `scale` times cosines."""

    features: Tensor
    """[n, D], in the precision of products; of unit length where there are cosines."""
    targets: Tensor
    """[n], counted from the slice's first class; of other slices outside 0..K-1."""
    weight: Tensor
    """[K, D]."""
    bias: Tensor | None
    """[K]."""
    scale: float | None = None
    """None: plain logits."""
    margin: Margin | None = None

    @property
    def exact(self) -> torch.dtype:
        """At least float32: what the softmax is computed in."""
        return torch.promote_types(self.features.dtype, torch.float32)

    @cached_property
    def whole(self) -> "Tile":
        """All classes as one tile."""
        return Tile(0, 0, len(self.weight), self.targets)


@dataclass(frozen=True)
class Gradients:
    """Of a slice's parameters, where they are written or added to."""

    weight: Tensor
    """[K, D]."""
    bias: Tensor | None
    """[K]."""
    add: bool
    """To what other micro-batches left there."""


@dataclass(frozen=True)
class Tile:
    """Classes start..stop-1 of the slice."""

    number: int
    start: int
    stop: int
    targets: Tensor

    @cached_property
    def inside(self) -> Tensor:
        """Which images are of one of its classes, [n]."""
        return (self.targets >= self.start) & (self.targets < self.stop)

    @cached_property
    def place(self) -> Tensor:
        """The targets' rows in it, [n]; any row for images that are not inside."""
        return (self.targets - self.start).clamp(0, self.stop - self.start - 1)


def tiles(given: Operands, size: int) -> Iterator[Tile]:
    classes = len(given.weight)
    for number, start in enumerate(range(0, classes, size)):
        yield Tile(number, start, min(start + size, classes), given.targets)


@dataclass
class FirstPass:
    """What one reading of the weight gives of this slice, of n images."""

    max: Tensor
    """The largest logit."""
    best: Tensor
    """Its class, of equals the lowest, counted from the slice's first."""
    sum: Tensor
    """Of exp(z - max)."""
    target: Tensor
    """The target's logit, 0 where another slice has it."""
    plain: Tensor
    """That without its margin."""
    slope: Tensor
    """Of the target's logit by its cosine, over `scale`; 1 without a margin."""
    own: Tensor
    """Of what a loss has of the target beside the softmax: the same, but for label smoothing."""
    mixed: Tensor | None
    """[n, D], sum_j exp(z_j - max) dz_j/dx over `scale`: the target's class is one of them."""
    shifts: list[Tensor]
    """r, by tile."""


def begun(given: Operands, goes_back: bool) -> FirstPass:
    """Before the first tile."""
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
