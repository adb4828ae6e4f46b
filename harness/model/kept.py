"""Where a slice's exponentials wait for the second pass, and its gradient is written.

Shapes: n images of all ranks, D features, R classes that take part, c classes of a tile.
"""

from dataclasses import dataclass

from torch import Tensor

from harness.model.operands import Gradients, Operands, Tile

SCRATCH_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}
"""Largest size of a separate tensor for exponentials; what would take more is computed again."""


class Kept:
    """Exponentials of all tiles of `size` classes, until the gradients `into` are made of them.

    Row j of that gradient has room for class j's exponentials if one exponential per image takes no
    more bytes than the row, all classes take part, and no other micro-batch left a gradient there.
    Else they take a tensor of their own if it is small enough, or are computed again by a fourth
    product. They have the precision of the products in which they are used.
    """

    def __init__(self, given: Operands, into: Gradients, size: int) -> None:
        self.into = into
        self.size = size
        classes, features = given.classes, given.weight.shape[1]
        images, product = len(given.targets), given.features.dtype
        shape = LogitShape(images, features, classes)
        self._rows_Rn: Tensor | None = None
        self._room_cn: Tensor | None = None
        gradient = into.weight
        occupied = into.add or given.rows is not None
        self.place = place(
            shape, product.itemsize, gradient.dtype.itemsize, occupied, gradient.is_cuda
        )
        if self.place == "gradient":
            self._rows_Rn = into.weight.view(product)[:, :images]
            self._room_cn = given.features.new_empty(min(size, classes), images)
        elif self.place == "scratch":
            self._rows_Rn = given.features.new_empty(classes, images)

    def at(self, tile: Tile) -> Tensor | None:
        """The place where the first pass writes a tile's exponentials, [c, n]; None if they are not
        kept."""
        return None if self._rows_Rn is None else self._rows_Rn[tile.start : tile.stop]

    def keep(self, tile: Tile, exponentials_cn: Tensor) -> None:
        rows_cn = self.at(tile)
        if rows_cn is not None:
            rows_cn.copy_(exponentials_cn)

    def give(self, tile: Tile) -> Tensor | None:
        """A tile's exponentials, [c, n], in other memory than the tile's gradient; None if they
        were not kept."""
        rows_cn = self.at(tile)
        if rows_cn is None or self._room_cn is None:
            return rows_cn
        return self._room_cn[: len(rows_cn)].copy_(rows_cn)


@dataclass(frozen=True)
class LogitShape:
    """The sizes of the product that gives a slice's logits."""

    images: int
    """n, gathered from all ranks of the slice group."""
    features: int
    """D, per image."""
    classes: int
    """R, of the slice."""


def place(
    shape: LogitShape, product_bytes: int, gradient_bytes: int, occupied: bool, cards: bool
) -> str:
    """The place of the exponentials: `gradient`, `scratch` or `again`, which computes them again.

    `occupied`: the gradient's rows are not free, or not those of the classes that take part.
    """
    # Row j of the gradient, D numbers of the weight's size, holds class j's n exponentials.
    if shape.images * product_bytes <= shape.features * gradient_bytes and not occupied:
        return "gradient"
    budget = SCRATCH_BYTES["cuda" if cards else "cpu"]
    return "scratch" if shape.images * shape.classes * product_bytes <= budget else "again"
