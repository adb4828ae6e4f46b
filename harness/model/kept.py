"""The place where a slice's exponentials wait for the second pass, often the gradient's own
memory."""

from torch import Tensor

from harness.model.operands import Gradients, Operands, Tile

SCRATCH_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}
"""Largest size of a separate tensor for exponentials; what would take more is computed again."""


class Kept:
    """Exponentials of all tiles of `size` classes, until the gradients `into` are made of them.

    Row j of that gradient has room for class j's exponentials, as long as an image's exponential
    and a feature's slope for each are no longer than the row, and no other micro-batch has left
    anything there. Else they take a tensor of their own, where it is small, or are computed again
    by a fourth product. They have the precision of products, which is what they are used in.
    """

    def __init__(self, given: Operands, into: Gradients, size: int) -> None:
        self.into = into
        self.size = size
        classes, features = given.weight.shape
        images, product = len(given.targets), given.features.dtype
        self._rows_Kn: Tensor | None = None
        self._room_cn: Tensor | None = None
        self.place = place(
            images,
            features,
            classes,
            product.itemsize,
            into.weight.dtype.itemsize,
            into.add,
            into.weight.is_cuda,
        )
        if self.place == "gradient":
            self._rows_Kn = into.weight.view(product)[:, :images]
            self._room_cn = given.features.new_empty(min(size, classes), images)
        elif self.place == "scratch":
            self._rows_Kn = given.features.new_empty(classes, images)

    def at(self, tile: Tile) -> Tensor | None:
        """The place where the first pass writes a tile's exponentials, [c, n]; None if they are not
        kept."""
        return None if self._rows_Kn is None else self._rows_Kn[tile.start : tile.stop]

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


def place(
    images: int,
    features: int,
    classes: int,
    product_bytes: int,
    gradient_bytes: int,
    added: bool,
    cards: bool,
) -> str:
    """The place of the exponentials: `gradient`, `scratch` or `again`, which computes them
    again."""
    # Row j of the gradient, D numbers of the weight's size, holds class j's n exponentials.
    if images * product_bytes <= features * gradient_bytes and not added:
        return "gradient"
    budget = SCRATCH_BYTES["cuda" if cards else "cpu"]
    return "scratch" if images * classes * product_bytes <= budget else "again"
