"""A tile's logits, and how the kernels that read them divide it into programs and strips."""

import triton
import triton.language as tl
from torch import Tensor

from harness.model.operands import Operands, Tile

ROWS, STRIP, COLUMNS, WARPS = 512, 16, 64, 4
"""A program's classes, the classes that it reads at a time, its images, and its warps."""


class Logits:
    """A tile's products of weight rows and features, [c, n], before bias and scale."""

    def __init__(self, raw_cn: Tensor, given: Operands, tile: Tile) -> None:
        self.raw = raw_cn
        self.classes, self.images = raw_cn.shape
        self.start = tile.start
        self.targets = given.targets
        self.scale = 1.0 if given.scale is None else given.scale
        self._has_bias = given.bias is not None
        # A kernel without a bias still needs a pointer; it never reads from it.
        self.bias = raw_cn if given.bias is None else tile.rows_of(given.bias)
        self.blocks = blocks_of(self.classes)

    @property
    def grid(self) -> tuple[int, int]:
        return self.blocks, triton.cdiv(self.images, COLUMNS)

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time constants of the kernels on this grid."""
        return {
            "HAS_BIAS": self._has_bias,
            "ROWS": ROWS,
            "STRIP": STRIP,
            "COLUMNS": COLUMNS,
            "num_warps": WARPS,
        }


def blocks_of(classes: int) -> int:
    """Number of blocks that `classes` classes are divided into."""
    return int(triton.cdiv(classes, ROWS))


@triton.jit
def columns_of(targets, start, images, COLUMNS: tl.constexpr):
    """This program's images, which of them exist, and their targets' rows in the tile."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < images
    return columns, inside, (tl.load(targets + columns, inside, other=-1) - start).to(tl.int32)


@triton.jit
def strip(raw, bias, rows, columns, classes, images, scale, HAS_BIAS: tl.constexpr):
    """Logits of some classes and images, -inf outside the tile."""
    inside = (rows < classes)[:, None] & (columns < images)[None, :]
    at = rows[:, None] * images + columns[None, :]
    logits = tl.load(raw + at, inside, other=float("-inf")) * scale
    if HAS_BIAS:
        logits += tl.load(bias + rows, rows < classes, other=0.0).to(tl.float32)[:, None]
    return logits
