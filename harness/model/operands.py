"""The operands of the two passes over tiles of classes, and the result of the first.

Shapes: n images of all ranks, D features, K classes of this slice, of which R take part, c of a
tile. Without class sampling R = K.
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
    """[n], places among the classes that take part; outside 0..R-1 if another slice has the
    target."""
    weight: Tensor
    """[K, D]."""
    bias: Tensor | None
    """[K]."""
    scale: float | None = None
    """None if logits are plain."""
    margin: Margin | None = None
    rows: Tensor | None = None
    """The rows of weight and bias that take part, ascending, [R]; None for all."""

    @property
    def classes(self) -> int:
        """R."""
        return len(self.weight) if self.rows is None else len(self.rows)

    @property
    def exact(self) -> torch.dtype:
        """The dtype of the softmax: at least float32."""
        return torch.promote_types(self.features.dtype, torch.float32)

    @cached_property
    def whole(self) -> "Tile":
        """All classes that take part as one tile."""
        return Tile(0, 0, self.classes, self.targets, self.rows)

    @cached_property
    def target_rows(self) -> Tensor:
        """The targets' rows of the weight, [n]; arbitrary if another slice has the target."""
        return self.whole.place if self.rows is None else self.rows[self.whole.place]


@dataclass(frozen=True)
class Gradients:
    """The gradients of a slice's parameters that a backward pass writes or adds to."""

    weight: Tensor
    """[K, D]."""
    bias: Tensor | None
    """[K]."""
    add: bool
    """Add to what earlier micro-batches left there."""

    def of(self, tile: "Tile") -> "TileGradients":
        """The rows of a tile, to be written or added to, and then `put`."""
        weight, bias = (
            None if whole is None else self._rows(whole, tile) for whole in (self.weight, self.bias)
        )
        assert weight is not None
        return TileGradients(weight, bias)

    def put(self, tile: "Tile", rows: "TileGradients") -> None:
        """Puts rows that are no views back where they belong."""
        if tile.drawn is None:
            return
        self.weight.index_copy_(0, tile.drawn, rows.weight)
        if self.bias is not None and rows.bias is not None:
            self.bias.index_copy_(0, tile.drawn, rows.bias)

    def _rows(self, whole: Tensor, tile: "Tile") -> Tensor:
        if tile.drawn is None:
            return whole[tile.start : tile.stop]
        if self.add:
            return whole.index_select(0, tile.drawn)
        return whole.new_empty(len(tile.drawn), *whole.shape[1:])


@dataclass(frozen=True)
class TileGradients:
    """The gradients of a tile's rows: views if all classes take part, otherwise copies."""

    weight: Tensor
    """[c, D]."""
    bias: Tensor | None
    """[c]."""


@dataclass(frozen=True)
class Tile:
    """Classes start..stop-1 of those that take part."""

    number: int
    start: int
    stop: int
    targets: Tensor
    drawn: Tensor | None = None
    """Their rows of weight and bias, [c]; None if all classes take part."""

    def rows_of(self, whole: Tensor) -> Tensor:
        """The tile's rows of weight or bias: a view if all classes take part, otherwise a copy."""
        if self.drawn is None:
            return whole[self.start : self.stop]
        return whole.index_select(0, self.drawn)

    @cached_property
    def inside(self) -> Tensor:
        """Which images have their target in this tile, bool [n]."""
        return (self.targets >= self.start) & (self.targets < self.stop)

    @cached_property
    def place(self) -> Tensor:
        """The targets' rows in the tile, [n]; arbitrary for images that are not inside."""
        return (self.targets - self.start).clamp(0, self.stop - self.start - 1)


def tiles(given: Operands, size: int) -> Iterator[Tile]:
    for number, start in enumerate(range(0, given.classes, size)):
        stop = min(start + size, given.classes)
        drawn = None if given.rows is None else given.rows[start:stop]
        yield Tile(number, start, stop, given.targets, drawn)


@dataclass
class FirstPass:
    """The result of one reading of the weight, for this slice and n images."""

    max: Tensor
    """The largest logit."""
    best: Tensor
    """The place of its class among those that take part; the lowest one of equal logits."""
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
    inverses: list[Tensor]
    """For cosines: of each tile the inverse lengths of its rows, [c]."""


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
        inverses=[],
    )


def inverse_lengths(weight_cD: Tensor) -> Tensor:
    return 1 / torch.linalg.vector_norm(weight_cD, dim=1).clamp_min(1e-12)
