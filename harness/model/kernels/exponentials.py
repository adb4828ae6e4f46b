"""A tile's exponentials, and adding their sums to those of earlier tiles."""

import triton
import triton.language as tl
from torch import Tensor

from harness.model.kernels.logits import Logits, columns_of, strip
from harness.model.kernels.maxima import Partial, Turn
from harness.model.operands import FirstPass


def exponentiate(
    logits: Logits, found: FirstPass, shift_n: Tensor, into_cn: Tensor, partial: Partial
) -> None:
    """Writes exp(z - shift), the target's multiplied by its slope, in the precision of `into_cn`,
    and their sums per block, taken before rounding and slope.

    Rows of `into_cn` may be further apart than they are long.
    """
    _exponentiate[logits.grid](
        logits.raw,
        logits.bias,
        logits.targets,
        found.target,
        found.slope,
        shift_n,
        into_cn,
        partial.sum,
        logits.scale,
        logits.start,
        logits.classes,
        logits.images,
        into_cn.stride(0),
        **logits.constants,
    )


@triton.jit(do_not_specialize=["start", "classes"])
def _exponentiate(
    raw,
    bias,
    targets,
    target_logit,
    target_slope,
    shifts,
    into,
    into_sum,
    scale,
    start,
    classes,
    images,
    stride,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    STRIP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    block = tl.program_id(0)
    columns, inside, target = columns_of(targets, start, images, COLUMNS)
    shift = tl.load(shifts + columns, inside, other=0.0)
    own = tl.exp(tl.load(target_logit + columns, inside, other=0.0) - shift)
    slope = tl.load(target_slope + columns, inside, other=1.0)
    lane = tl.arange(0, STRIP)
    total = tl.zeros((STRIP, COLUMNS), tl.float32)
    for offset in range(0, ROWS, STRIP):
        rows = block * ROWS + offset + lane
        logits = strip(raw, bias, rows, columns, classes, images, scale, HAS_BIAS)
        is_target = rows[:, None] == target[None, :]
        values = tl.where(is_target, own[None, :], tl.exp(logits - shift[None, :]))
        # Past the last class nothing is added: exp(-inf - shift) = 0 there, unless all logits are
        # -inf.
        values = tl.where((rows < classes)[:, None], values, 0.0)
        total += values
        values = tl.where(is_target, (own * slope)[None, :], values)
        at = rows[:, None] * stride + columns[None, :]
        there = (rows < classes)[:, None] & inside[None, :]
        tl.store(into + at, values.to(into.dtype.element_ty), there)
    tl.store(into_sum + block * images + columns, tl.sum(total, axis=0), inside)


def fold(part_nD: Tensor, partial: Partial, turn: Turn, blocks: int, found: FirstPass) -> None:
    """Adds a tile's sums to those of the tiles before: S <- S before + S_tile own; see
    `maxima.Turn`."""
    assert found.mixed is not None
    images, features = part_nD.shape
    _fold[(images,)](
        part_nD,
        partial.sum,
        turn.before,
        turn.own,
        found.sum,
        found.mixed,
        blocks,
        images,
        features,
        BLOCKS=1024,
        WIDTH=triton.next_power_of_2(features),
    )


@triton.jit(do_not_specialize=["blocks"])
def _fold(
    part,
    partial_sum,
    before_n,
    own_n,
    into_sum,
    into_mixed,
    blocks,
    images,
    features,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image = tl.program_id(0)
    before, own = tl.load(before_n + image), tl.load(own_n + image)
    total = 0.0
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        parts = tl.load(partial_sum + block * images + image, block < blocks, other=0.0)
        total += tl.sum(parts, axis=0)
    tl.store(into_sum + image, tl.load(into_sum + image) * before + total * own)
    column = tl.arange(0, WIDTH)
    inside = column < features
    at = image * features + column
    mixed = tl.load(into_mixed + at, inside, other=0.0) * before
    tl.store(into_mixed + at, mixed + tl.load(part + at, inside, other=0.0) * own, inside)
