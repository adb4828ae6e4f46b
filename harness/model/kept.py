"""Where a slice's exponentials wait for the second pass, and its gradient is written."""

import torch
from torch import Tensor

from harness.model.tiles import FirstPass, Gradients, Operands, Tile, exponentials

SCRATCH_BYTES = 1 << 26
"""Of a tensor for exponentials alone; what would take more is computed again."""


class Kept:
    """Exponentials of all tiles, until their part of the weight's gradient is made.

    Row j of that gradient has room for class j's exponentials of n <= D images, as long as no other
    micro-batch has left anything there. Else they take a tensor of their own, where it is small, or
    are computed again by a fourth product.
    """

    def __init__(self, given: Operands, found: FirstPass, into: Gradients, size: int) -> None:
        self._given = given
        self._found = found
        classes, features = given.weight.shape
        images = len(given.targets)
        self._rows_Kn: Tensor | None = None
        self._room_cn: Tensor | None = None
        self.place = place(
            images, features, classes, given.exact, into.weight.dtype, added=into.add
        )
        if self.place == "gradient":
            self._rows_Kn = into.weight[:, :images]
            self._room_cn = into.weight.new_empty(min(size, classes), images)
        elif self.place == "scratch":
            self._rows_Kn = given.features.new_empty(classes, images, dtype=given.exact)

    def keep(self, tile: Tile, exponentials_cn: Tensor) -> None:
        if self._rows_Kn is not None:
            self._rows_Kn[tile.start : tile.stop] = exponentials_cn

    def give(self, tile: Tile) -> Tensor:
        """[c, n], apart from where the tile's gradient is written."""
        if self._rows_Kn is None:
            return exponentials(self._given, tile, self._found)
        rows_cn = self._rows_Kn[tile.start : tile.stop]
        if self._room_cn is None:
            return rows_cn
        return self._room_cn[: len(rows_cn)].copy_(rows_cn)


def place(
    images: int,
    features: int,
    classes: int,
    exact: torch.dtype,
    gradient: torch.dtype,
    added: bool,
) -> str:
    """`gradient`, `scratch` or `again`."""
    if images <= features and exact == gradient and not added:
        return "gradient"
    return "scratch" if images * classes * exact.itemsize <= SCRATCH_BYTES else "again"
