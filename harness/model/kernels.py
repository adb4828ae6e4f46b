"""What happens between a card's matrix products, in Triton: each kernel reads its input once.

Shapes: c classes of a tile, n images, D features. A program takes ROWS classes of COLUMNS images;
what programs of one image find is `partial`, by block of classes, and the next kernel adds it up in
a fixed order. All arithmetic is float32. A tile's elements are counted in 32 bits: wider addresses
cost as much as the exponentials.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.model.operands import FirstPass, Operands, Tile
from harness.model.statistics import Statistics

ROWS, STRIP, COLUMNS, WARPS = 512, 16, 64, 4
"""Classes and images of a program, and classes that it reads at a time."""
BLOCKS, IMAGES = 64, 32
"""Partial results that one program adds up at a time, for so many images."""


@dataclass(frozen=True)
class Partial:
    """What blocks of classes find, [blocks, n]."""

    largest: Tensor
    """Of the logits of all classes but the target."""
    row: Tensor
    """The first class of the tile that has it, int32."""
    sum: Tensor
    """Of exponentials."""


@dataclass(frozen=True)
class Turn:
    """A tile's place among those before, [n]."""

    shift: Tensor
    """The tile's largest logit, which exponentials are relative to."""
    before: Tensor
    """What sums of the tiles before are multiplied by."""
    own: Tensor
    """What the tile's sums are multiplied by."""


class Logits:
    """A tile's, [c, n], before bias and scale."""

    def __init__(self, raw_cn: Tensor, given: Operands, tile: Tile) -> None:
        self.raw = raw_cn
        self.classes, self.images = raw_cn.shape
        self.start = tile.start
        self.targets = given.targets
        self.scale = 1.0 if given.scale is None else given.scale
        self._has_bias = given.bias is not None
        # Never read where there is none.
        self.bias = raw_cn if given.bias is None else given.bias[tile.start : tile.stop]
        self.blocks = triton.cdiv(self.classes, ROWS)

    @property
    def grid(self) -> tuple[int, int]:
        return self.blocks, triton.cdiv(self.images, COLUMNS)

    @property
    def constants(self) -> dict[str, int]:
        """Of the kernels that read them, whose grid this is."""
        return {
            "HAS_BIAS": self._has_bias,
            "ROWS": ROWS,
            "STRIP": STRIP,
            "COLUMNS": COLUMNS,
            "num_warps": WARPS,
        }


def partial(classes: int, like_n: Tensor) -> Partial:
    """For tiles of at most so many classes."""
    size = triton.cdiv(classes, ROWS), len(like_n)
    largest, total = like_n.new_empty(size), like_n.new_empty(size)
    return Partial(largest, like_n.new_empty(size, dtype=torch.int32), total)


def rows(weight_cD: Tensor, into_cD: Tensor, unit: bool) -> None:
    """The rows in another precision; `unit`: of length 1."""
    features = weight_cD.shape[1]
    width = triton.next_power_of_2(features)
    _rows[(len(weight_cD),)](weight_cD, into_cD, features, WIDTH=width, UNIT=unit)


@triton.jit
def _rows(weight, into, features, WIDTH: tl.constexpr, UNIT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < features
    values = tl.load(weight + row * features + column, inside, other=0.0).to(tl.float32)
    if UNIT:
        values *= 1.0 / tl.maximum(tl.sqrt(tl.sum(values * values, axis=0)), 1e-12)
    tl.store(into + row * features + column, values.to(into.dtype.element_ty), inside)


@triton.jit
def _strip(raw, bias, rows, columns, classes, images, scale, HAS_BIAS: tl.constexpr):
    """Logits of some classes and images, -inf outside."""
    inside = (rows < classes)[:, None] & (columns < images)[None, :]
    at = rows[:, None] * images + columns[None, :]
    logits = tl.load(raw + at, inside, other=float("-inf")) * scale
    if HAS_BIAS:
        logits += tl.load(bias + rows, rows < classes, other=0.0).to(tl.float32)[:, None]
    return logits


def largest(logits: Logits, into: Partial) -> None:
    """The largest logit of each block of classes, and where it is; the target's own aside."""
    _largest[logits.grid](
        logits.raw,
        logits.bias,
        logits.targets,
        into.largest,
        into.row,
        logits.scale,
        logits.start,
        logits.classes,
        logits.images,
        **logits.constants,
    )


@triton.jit(do_not_specialize=["start", "classes"])
def _largest(
    raw,
    bias,
    targets,
    into_largest,
    into_row,
    scale,
    start,
    classes,
    images,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    STRIP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    block = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < images
    target = (tl.load(targets + columns, inside, other=-1) - start).to(tl.int32)
    lane = tl.arange(0, STRIP)
    best = tl.full((STRIP, COLUMNS), float("-inf"), tl.float32)
    where = tl.zeros((STRIP, COLUMNS), tl.int32)
    for offset in range(0, ROWS, STRIP):
        rows = block * ROWS + offset + lane
        logits = _strip(raw, bias, rows, columns, classes, images, scale, HAS_BIAS)
        others = tl.where(rows[:, None] == target[None, :], float("-inf"), logits)
        better = others > best
        best = tl.where(better, others, best)
        where = tl.where(better, offset, where)
    # Strips are met in rising order, so each lane has its own first; the first of all is the least.
    top = tl.max(best, axis=0)
    first = tl.min(tl.where(best == top[None, :], where + lane[:, None], ROWS - 1), axis=0)
    tl.store(into_largest + block * images + columns, top, inside)
    tl.store(into_row + block * images + columns, block * ROWS + first, inside)


def meet(logits: Logits, partial: Partial, found: FirstPass) -> Turn:
    """A tile's largest logits beside those of the tiles before, which `found` has and gets."""
    turn = Turn(*(torch.empty_like(found.max) for _ in range(3)))
    _meet[(triton.cdiv(logits.images, IMAGES),)](
        partial.largest,
        partial.row,
        logits.targets,
        found.target,
        found.max,
        found.best,
        turn.shift,
        turn.before,
        turn.own,
        logits.start,
        logits.classes,
        logits.blocks,
        logits.images,
        BLOCKS=BLOCKS,
        IMAGES=IMAGES,
    )
    return turn


@triton.jit(do_not_specialize=["start", "classes", "blocks"])
def _meet(
    partial_largest,
    partial_row,
    targets,
    target_logit,
    running,
    running_class,
    into_shift,
    into_before,
    into_own,
    start,
    classes,
    blocks,
    images,
    BLOCKS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    columns = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    inside = columns < images
    best = tl.full((IMAGES,), float("-inf"), tl.float32)
    where = tl.zeros((IMAGES,), tl.int32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = block[:, None] * images + columns[None, :]
        there = (block < blocks)[:, None] & inside[None, :]
        parts = tl.load(partial_largest + at, there, other=float("-inf"))
        row = tl.load(partial_row + at, there, other=0)
        here, number = tl.max(parts, axis=0, return_indices=True)
        of_best = tl.arange(0, BLOCKS)[:, None] == number[None, :]
        better = here > best
        best = tl.where(better, here, best)
        where = tl.where(better, tl.sum(tl.where(of_best, row, 0), axis=0), where)
    target = tl.load(targets + columns, inside, other=-1) - start
    own = tl.load(target_logit + columns, inside, other=0.0)
    has = (target >= 0) & (target < classes)
    wins = has & ((own > best) | ((own == best) & (target < where)))
    shift = tl.where(has & (own > best), own, best)
    before = tl.load(running + columns, inside, other=0.0)
    largest = tl.where(shift > before, shift, before)
    place = tl.where(wins, target, where.to(tl.int64)) + start
    tl.store(running_class + columns, place, inside & (shift > before))
    tl.store(running + columns, largest, inside)
    tl.store(into_shift + columns, shift, inside)
    tl.store(into_before + columns, tl.exp(before - largest), inside)
    tl.store(into_own + columns, tl.exp(shift - largest), inside)


def exponentiate(
    logits: Logits, found: FirstPass, shift_n: Tensor, into_cn: Tensor, partial: Partial
) -> None:
    """exp(z - shift), the target's times its slope, in the precision of `into_cn`, whose rows may
    lie apart; and the sums of its blocks before both."""
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
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < images
    target = (tl.load(targets + columns, inside, other=-1) - start).to(tl.int32)
    shift = tl.load(shifts + columns, inside, other=0.0)
    own = tl.exp(tl.load(target_logit + columns, inside, other=0.0) - shift)
    slope = tl.load(target_slope + columns, inside, other=1.0)
    lane = tl.arange(0, STRIP)
    total = tl.zeros((STRIP, COLUMNS), tl.float32)
    for offset in range(0, ROWS, STRIP):
        rows = block * ROWS + offset + lane
        logits = _strip(raw, bias, rows, columns, classes, images, scale, HAS_BIAS)
        is_target = rows[:, None] == target[None, :]
        values = tl.where(is_target, own[None, :], tl.exp(logits - shift[None, :]))
        # Past the last class nothing is added: there exp(-inf - shift) = 0, unless all is -inf.
        values = tl.where((rows < classes)[:, None], values, 0.0)
        total += values
        values = tl.where(is_target, (own * slope)[None, :], values)
        at = rows[:, None] * stride + columns[None, :]
        there = (rows < classes)[:, None] & inside[None, :]
        tl.store(into + at, values.to(into.dtype.element_ty), there)
    tl.store(into_sum + block * images + columns, tl.sum(total, axis=0), inside)


def fold(part_nD: Tensor, partial: Partial, turn: Turn, blocks: int, found: FirstPass) -> None:
    """Adds a tile's sums to those of the tiles before."""
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


def share(
    features_nD: Tensor,
    shift_n: Tensor,
    whole: Statistics,
    slope: Tensor,
    into_nD: Tensor,
    share_n: Tensor,
) -> None:
    """The shares by which a tile's exponentials are softmax times `slope`, and features times
    those."""
    images, features = features_nD.shape
    _share[(images,)](
        features_nD,
        shift_n,
        whole.max,
        whole.sum,
        slope,
        into_nD,
        share_n,
        features,
        WIDTH=triton.next_power_of_2(features),
    )


@triton.jit
def _share(
    features_nD, shifts, maxima, sums, slope, into, into_share, features, WIDTH: tl.constexpr
):
    image = tl.program_id(0)
    shift = tl.load(shifts + image) - tl.load(maxima + image)
    share = tl.exp(shift) / tl.load(sums + image) * tl.load(slope)
    tl.store(into_share + image, share)
    column = tl.arange(0, WIDTH)
    inside = column < features
    at = image * features + column
    values = tl.load(features_nD + at, inside, other=0.0).to(tl.float32) * share
    tl.store(into + at, values.to(into.dtype.element_ty), inside)


def bias_slopes(exponentials_cn: Tensor, share_n: Tensor, into_c: Tensor, add: bool) -> None:
    """sum_i e_ij share_i, written or added."""
    classes, images = exponentials_cn.shape
    _bias_slopes[(triton.cdiv(classes, 16),)](
        exponentials_cn,
        share_n,
        into_c,
        classes,
        images,
        exponentials_cn.stride(0),
        ADD=add,
        ROWS=16,
        COLUMNS=128,
    )


@triton.jit(do_not_specialize=["classes"])
def _bias_slopes(
    exponentials,
    shares,
    into,
    classes,
    images,
    stride,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, images, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        share = tl.load(shares + columns, columns < images, other=0.0)
        there = (rows < classes)[:, None] & (columns < images)[None, :]
        at = rows[:, None].to(tl.int64) * stride + columns[None, :]
        values = tl.load(exponentials + at, there, other=0.0).to(tl.float32)
        total += tl.sum(values * share[None, :], axis=1)
    if ADD:
        total += tl.load(into + rows, rows < classes, other=0.0)
    tl.store(into + rows, total, rows < classes)


def through_length(
    slope_cD: Tensor, weight_cD: Tensor, scale: float | None, into_cD: Tensor, add: bool
) -> None:
    """The slope by a row's direction becomes that by the row, written or added; `scale` None: they
    are one."""
    features = weight_cD.shape[1]
    _through_length[(len(weight_cD),)](
        slope_cD,
        weight_cD,
        into_cD,
        1.0 if scale is None else scale,
        features,
        WIDTH=triton.next_power_of_2(features),
        UNIT=scale is not None,
        ADD=add,
    )


@triton.jit
def _through_length(
    slopes,
    weight,
    into,
    scale,
    features,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    ADD: tl.constexpr,
):
    column = tl.arange(0, WIDTH)
    inside = column < features
    at = tl.program_id(0).to(tl.int64) * features + column
    slope = tl.load(slopes + at, inside, other=0.0)
    if UNIT:
        row = tl.load(weight + at, inside, other=0.0)
        inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(row * row, axis=0)), 1e-12)
        along = tl.sum(slope * row, axis=0) * inverse * inverse
        slope = (slope - row * along) * (scale * inverse)
    if ADD:
        slope += tl.load(into + at, inside, other=0.0)
    tl.store(into + at, slope, inside)
