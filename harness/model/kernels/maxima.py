"""Each image's largest logit in a tile, and its combination with the tiles before."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.model.kernels.logits import Logits, blocks_of, columns_of, strip
from harness.model.operands import FirstPass

BLOCKS, IMAGES = 64, 32
"""Blocks that one program combines at a time, and the number of images that it handles."""


@dataclass(frozen=True)
class Partial:
    """The results of each block of classes for each image, [blocks, n]."""

    largest: Tensor
    """The largest logit, the target's left out."""
    row: Tensor
    """The first row of the tile that has it, int32."""
    sum: Tensor
    """The sum of exponentials."""


@dataclass(frozen=True)
class Turn:
    """How a tile's sums combine with those of the tiles before, [n]."""

    shift: Tensor
    """The tile's largest logit, to which its exponentials are relative."""
    before: Tensor
    """Factor for the sums of the tiles before."""
    own: Tensor
    """Factor for the tile's own sums."""


def partial(classes: int, like_n: Tensor) -> Partial:
    """Buffers for the blocks of a tile of at most `classes` classes."""
    size = blocks_of(classes), len(like_n)
    largest, total = like_n.new_empty(size), like_n.new_empty(size)
    return Partial(largest, like_n.new_empty(size, dtype=torch.int32), total)


def largest(logits: Logits, into: Partial) -> None:
    """The largest logit of each block of classes and its row; the target's logit is left out."""
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
    columns, inside, target = columns_of(targets, start, images, COLUMNS)
    lane = tl.arange(0, STRIP)
    best = tl.full((STRIP, COLUMNS), float("-inf"), tl.float32)
    where = tl.zeros((STRIP, COLUMNS), tl.int32)
    for offset in range(0, ROWS, STRIP):
        rows = block * ROWS + offset + lane
        logits = strip(raw, bias, rows, columns, classes, images, scale, HAS_BIAS)
        others = tl.where(rows[:, None] == target[None, :], float("-inf"), logits)
        better = others > best
        best = tl.where(better, others, best)
        where = tl.where(better, offset, where)
    # Strips come in rising order, so each lane holds its own first; the first of all is the least.
    top = tl.max(best, axis=0)
    first = tl.min(tl.where(best == top[None, :], where + lane[:, None], ROWS - 1), axis=0)
    tl.store(into_largest + block * images + columns, top, inside)
    tl.store(into_row + block * images + columns, block * ROWS + first, inside)


def meet(logits: Logits, partial: Partial, found: FirstPass) -> Turn:
    """Compares a tile's largest logits with those of the tiles before, and updates `found`."""
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


@triton.jit
def _best_of_blocks(
    partial_largest,
    partial_row,
    columns,
    blocks,
    images,
    BLOCKS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """The largest logit over all blocks of classes, and the first class that has it."""
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
    return best, where


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
    best, where = _best_of_blocks(
        partial_largest, partial_row, columns, blocks, images, BLOCKS, IMAGES
    )
    # The blocks left out the target, whose logit is moved by its margin: it joins here. Of equal
    # logits the lowest class wins, as in torch's argmax.
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
    # With m the largest logit so far: a sum S relative to m becomes S exp(m - m') + S' exp(r - m')
    # once the tile, whose sum S' is relative to its shift r, has raised m to m'.
    tl.store(into_shift + columns, shift, inside)
    tl.store(into_before + columns, tl.exp(before - largest), inside)
    tl.store(into_own + columns, tl.exp(shift - largest), inside)
