"""The two passes of `passes` on a GPU: about ten launches per tile, with any margin.

A card does in microseconds what torch needs a launch for, and a launch takes as long. So tiles are
as large as memory allows, and between the products each kernel reads its input once. The products
accumulate in float32 and their results are not rounded: the logits are those of features and
weights that were rounded once.
"""

import torch
from torch import Tensor

from harness.model.kept import Kept
from harness.model.kernels.exponentials import exponentiate, fold
from harness.model.kernels.logits import Logits
from harness.model.kernels.maxima import largest, meet, partial
from harness.model.kernels.slopes import bias_slopes, share
from harness.model.kernels.weights import rows, through_length
from harness.model.margins import with_margin
from harness.model.operands import (
    FirstPass,
    Gradients,
    Operands,
    Tile,
    begun,
    inverse_lengths,
    tiles,
)
from harness.model.product import product_into
from harness.model.statistics import Statistics


class Workspace:
    """Buffers that tiles of at most `size` classes use in turn."""

    def __init__(self, given: Operands, size: int) -> None:
        size = min(size, given.classes)
        images, features = given.features.shape
        like = given.weight
        self._given = given
        self._logits_cn = like.new_empty(size, images, dtype=given.exact)
        made = given.scale is not None or like.dtype != given.features.dtype
        self._weight_cD = given.features.new_empty(size, features) if made else None
        self._exponentials_cn: Tensor | None = None
        self._size = size
        self.partial = partial(size, self._logits_cn[0])

    def weight(self, tile: Tile) -> Tensor:
        """The tile's rows as the products take them, normalised for cosines, [c, D]."""
        rows_cD = tile.rows_of(self._given.weight)
        if self._weight_cD is None:
            return rows_cD
        made_cD = self._weight_cD[: len(rows_cD)]
        rows(rows_cD, made_cD, unit=self._given.scale is not None)
        return made_cD

    def logits(self, tile: Tile, weight_cD: Tensor) -> Logits:
        raw_cn = self._logits_cn[: len(weight_cD)]
        product_into(raw_cn, weight_cD, self._given.features.T)
        return Logits(raw_cn, self._given, tile)

    def exponentials(self, tile: Tile) -> Tensor:
        """A buffer for a tile's exponentials, valid until the next tile, [c, n]."""
        if self._exponentials_cn is None:
            images = len(self._given.targets)
            self._exponentials_cn = self._given.features.new_empty(self._size, images)
        return self._exponentials_cn[: tile.stop - tile.start]


def first_pass(given: Operands, size: int, kept: Kept) -> FirstPass:
    """The same as `passes.first_pass`."""
    found = begun(given, goes_back=True)
    assert found.mixed is not None
    _find_targets(given, found)
    work = Workspace(given, size)
    part_nD = torch.empty_like(found.mixed)
    for tile in tiles(given, size):
        weight_cD = work.weight(tile)
        logits = work.logits(tile, weight_cD)
        largest(logits, work.partial)
        turn = meet(logits, work.partial, found)
        found.shifts.append(turn.shift)
        exponentials_cn = kept.at(tile)
        if exponentials_cn is None:
            exponentials_cn = work.exponentials(tile)
        exponentiate(logits, found, turn.shift, exponentials_cn, work.partial)
        product_into(part_nD, exponentials_cn.T, weight_cD)
        fold(part_nD, work.partial, turn, logits.blocks, found)
    return found


def second_pass(
    given: Operands, found: FirstPass, whole: Statistics, slope: Tensor, kept: Kept
) -> None:
    """The same as `passes.second_pass`."""
    into, size = kept.into, kept.size
    features_nD = given.features.contiguous()
    scaled_nD = torch.empty_like(features_nD)
    share_n = torch.empty_like(found.max)
    as_is = given.scale is None and not into.add
    work = Workspace(given, size) if kept.place == "again" else None
    slope_cD = (
        None if as_is else into.weight.new_empty(min(size, given.classes), into.weight.shape[1])
    )
    for tile in tiles(given, size):
        shift_n = found.shifts[tile.number]
        exponentials_cn = kept.give(tile)
        if exponentials_cn is None:
            assert work is not None
            exponentials_cn = work.exponentials(tile)
            logits = work.logits(tile, work.weight(tile))
            exponentiate(logits, found, shift_n, exponentials_cn, work.partial)
        share(features_nD, shift_n, whole, slope, scaled_nD, share_n)
        rows = into.of(tile)
        if slope_cD is None:
            product_into(rows.weight, exponentials_cn, scaled_nD)
        else:
            product_into(slope_cD[: len(rows.weight)], exponentials_cn, scaled_nD)
            # Without a scale it is only counted, not read.
            weight_cD = rows.weight if given.scale is None else tile.rows_of(given.weight)
            through_length(slope_cD, weight_cD, given.scale, rows.weight, into.add)
        if rows.bias is not None:
            bias_slopes(exponentials_cn, share_n, rows.bias, into.add)
        into.put(tile, rows)
    _add_targets(given, found, slope, into)


def _find_targets(given: Operands, found: FirstPass) -> None:
    """Computes the targets' logits on this slice, and their slopes, from the targets' rows."""
    inside_n, row_n = given.whole.inside, given.target_rows
    rows_nD = given.weight[row_n]
    if given.scale is not None:
        rows_nD = rows_nD * inverse_lengths(rows_nD)[:, None]
    rows_nD = rows_nD.to(given.features.dtype).to(given.exact)
    logits_n = torch.linalg.vecdot(rows_nD, given.features.to(given.exact))
    if given.bias is not None:
        logits_n = logits_n + given.bias[row_n]
    if given.scale is not None:
        logits_n = logits_n * given.scale
    found.plain = logits_n.where(inside_n, 0.0)
    if given.margin is not None:
        assert given.scale is not None
        logits_n, slope_n = with_margin(given.margin, logits_n, given.scale)
        found.own = found.slope = slope_n.where(inside_n, 1.0)
    found.target = logits_n.where(inside_n, 0.0)


def _add_targets(given: Operands, found: FirstPass, slope: Tensor, into: Gradients) -> None:
    """Subtracts `slope` times the features on the targets' rows: the 1 in softmax - 1."""
    inside_n, row_n = given.whole.inside, given.target_rows
    own_n = (found.own * -slope).where(inside_n, 0.0)
    if into.bias is not None:
        into.bias.index_add_(0, row_n, own_n.to(into.bias.dtype))
    own_nD = given.features.to(given.exact)
    if given.scale is not None:
        # As in `weights.through_length`: (x - (x . u) u) scale / |w| with u = w / |w|.
        rows_nD = given.weight[row_n]
        inverse_n = inverse_lengths(rows_nD)
        along_n = torch.linalg.vecdot(own_nD, rows_nD) * inverse_n.square()
        own_nD = own_nD.addcmul(rows_nD, along_n[:, None], value=-1.0)
        own_n = own_n * inverse_n * given.scale
    into.weight.index_add_(0, row_n, (own_nD * own_n[:, None]).to(into.weight.dtype))
