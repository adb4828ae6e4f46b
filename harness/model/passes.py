"""Exact softmax cross entropy of a slice's classes, tile by tile, for three matrix products.

Shapes: n images of all ranks, D features, c classes of a tile. With z_ij the logit
of image i and class j, any number r_ic for each image and tile, L_i = log sum exp z_ij over all
slices, f_ic = exp(r_ic - L_i), e_ij = exp(z_ij - r_ic) and g the gradient of the mean
loss by an image's loss:

    dX_i = g (sum_c f_ic sum_{j in c} e_ij w_j - w_{y_i})       f multiplies rows of the product
    dW_j = sum_i e_ij (g f_ic) x_i - sum_{i: y_i = j} g x_i     f can be moved to x

So the first pass computes everything but dW from one reading of the weight: a running largest logit
and a running sum, and dX as attention computes its output, rescaled when the largest logit grows.
After all slices have exchanged their sums, the second pass computes dW from the e that the first
pass kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.model.kept import Kept
from harness.model.margins import with_margin
from harness.model.operands import (
    FirstPass,
    Operands,
    Tile,
    begun,
    inverse_lengths,
    tiles,
)
from harness.model.product import product, product_into
from harness.model.statistics import Statistics

Look = Callable[[Tile, Tensor], None]
"""Called with a tile and its logits, [c, n], including the margin."""


def first_pass(
    given: Operands, size: int, kept: Kept | None, look: Look | None = None
) -> FirstPass:
    """Reads the weight once; see the module's docstring.

    `kept` receives the exponentials, the target's times its slope; None if no backward pass
    follows.
    """
    found = begun(given, kept is not None)
    if given.margin is not None:
        _move_targets(given, found)
    for tile in tiles(given, size):
        _take(given, tile, found, kept, look)
    return found


def _take(
    given: Operands, tile: Tile, found: FirstPass, kept: Kept | None, look: Look | None
) -> None:
    rows_cD, inverse_c = _weight(given, tile)
    logits_cn = _logits(given, tile, rows_cD, inverse_c)
    if given.margin is not None:
        _put(logits_cn, tile, found.target)
    else:
        target_n = logits_cn.gather(0, tile.place[None])[0]
        found.plain = found.target = target_n.where(tile.inside, found.target)
    if look is not None:
        look(tile, logits_cn)
    max_n, best_n = logits_cn.max(dim=0)  # the lowest class wins ties
    better_n = max_n > found.max
    found.best = (best_n + tile.start).where(better_n, found.best)
    largest_n = torch.maximum(found.max, max_n)  # NaN if either is NaN
    # Exponentials are relative to the tile's largest logit m_c, and stay so while they are kept.
    # With m' = max(m, m_c) the sum S' = S exp(m - m') + exp(m_c - m') sum_j exp(z_j - m_c) needs no
    # second reading of them, nor does the features' gradient.
    exponentials_cn = logits_cn.sub_(max_n).exp_()
    before_n, own_n = (found.max - largest_n).exp(), (max_n - largest_n).exp()
    found.sum = (found.sum * before_n).addcmul_(exponentials_cn.sum(dim=0), own_n)
    found.max = largest_n
    if kept is None:
        return
    if given.margin is not None and not given.margin.keeps_slope:
        _scale_target(exponentials_cn, tile, found.slope)
    if inverse_c is not None:
        # For both gradients: dX has rows of length 1, and dW is divided by the row's length.
        exponentials_cn *= inverse_c[:, None]
        found.inverses.append(inverse_c)
    kept.keep(tile, exponentials_cn)
    found.shifts.append(max_n)
    assert found.mixed is not None
    found.mixed.mul_(before_n[:, None])
    part_nD = product(exponentials_cn.T.to(rows_cD.dtype), rows_cD, found.mixed.dtype)
    found.mixed.addcmul_(part_nD, own_n[:, None])


def exponentials(given: Operands, tile: Tile, found: FirstPass) -> Tensor:
    """The exponentials of the first pass, computed again, [c, n]."""
    inverse_c = found.inverses[tile.number] if given.scale is not None else None
    rows_cD = tile.rows_of(given.weight).to(given.features.dtype)
    logits_cn = _logits(given, tile, rows_cD, inverse_c)
    if given.margin is not None:
        _put(logits_cn, tile, found.target)
    exponentials_cn = logits_cn.sub_(found.shifts[tile.number]).exp_()
    if given.margin is not None and not given.margin.keeps_slope:
        _scale_target(exponentials_cn, tile, found.slope)
    if inverse_c is not None:
        exponentials_cn *= inverse_c[:, None]
    return exponentials_cn


def _move_targets(given: Operands, found: FirstPass) -> None:
    """The targets' logits without and with their margin, once for all tiles."""
    assert given.margin is not None
    assert given.scale is not None
    rows_nD = given.weight[given.target_rows].to(given.exact)
    cosines_n = torch.linalg.vecdot(rows_nD, given.features.to(given.exact))
    plain_n = cosines_n * inverse_lengths(rows_nD) * given.scale
    target_n, slope_n = with_margin(given.margin, plain_n, given.scale)
    inside_n = given.whole.inside
    found.plain = plain_n.where(inside_n, found.plain)
    found.target = target_n.where(inside_n, found.target)
    found.own = found.slope = slope_n.where(inside_n, found.slope)


def _weight(given: Operands, tile: Tile) -> tuple[Tensor, Tensor | None]:
    """The tile's rows in the precision of products, and for cosines the inverse of their
    lengths."""
    weight_cD = tile.rows_of(given.weight)
    inverse_c = None if given.scale is None else inverse_lengths(weight_cD)
    return weight_cD.to(given.features.dtype), inverse_c


def _logits(given: Operands, tile: Tile, rows_cD: Tensor, inverse_c: Tensor | None) -> Tensor:
    """A tile's logits without a margin, [c, n]."""
    logits_cn = product(rows_cD, given.features.T, given.exact)
    if given.bias is not None:
        logits_cn += tile.rows_of(given.bias)[:, None]
    if inverse_c is not None:
        assert given.scale is not None
        logits_cn *= (given.scale * inverse_c)[:, None]
    return logits_cn


def _put(logits_cn: Tensor, tile: Tile, target_n: Tensor) -> None:
    before_n = logits_cn.gather(0, tile.place[None])[0]
    logits_cn.scatter_(0, tile.place[None], target_n.where(tile.inside, before_n)[None])


def _scale_target(exponentials_cn: Tensor, tile: Tile, slope_n: Tensor) -> None:
    before_n = exponentials_cn.gather(0, tile.place[None])[0]
    scaled_n = (before_n * slope_n).where(tile.inside, before_n)
    exponentials_cn.scatter_(0, tile.place[None], scaled_n[None])


def features_slope(given: Operands, found: FirstPass, whole: Statistics, slope: Tensor) -> Tensor:
    """This slice's part of dX, [n, D], for a loss that is `slope` times the sum over images.

    `whole` are the statistics over all slices.
    """
    assert found.mixed is not None
    own_nD = given.weight[given.target_rows]
    own_n = found.own.where(given.whole.inside, 0.0)
    if given.scale is not None:
        own_n = own_n * inverse_lengths(own_nD)
    result_nD = found.mixed * whole.shares(found.max)[:, None]
    result_nD.addcmul_(own_nD.to(result_nD.dtype), own_n[:, None], value=-1.0)
    return result_nD.mul_(slope * (given.scale or 1.0))


def second_pass(
    given: Operands, found: FirstPass, whole: Statistics, slope: Tensor, kept: Kept
) -> None:
    """Writes dW and db of this slice, from the exponentials that the first pass put in `kept`."""
    into = kept.into
    rounded = given.features.dtype
    exact_nD = given.features.to(given.exact)
    factor = slope * (given.scale or 1.0)
    for tile in tiles(given, kept.size):
        exponentials_cn = kept.give(tile)
        if exponentials_cn is None:
            exponentials_cn = exponentials(given, tile, found).to(rounded)
        share_n = whole.shares(found.shifts[tile.number]) * factor
        own_n = (found.own * factor).where(tile.inside, 0.0)
        if given.scale is not None:
            own_n *= found.inverses[tile.number][tile.place]
        rows = into.of(tile)
        rows_cD = rows.weight
        scaled_nD = (exact_nD * share_n[:, None]).to(rounded)
        slope_cD = torch.empty_like(rows_cD) if into.add else rows_cD
        product_into(slope_cD, exponentials_cn, scaled_nD)
        slope_cD.index_add_(0, tile.place, exact_nD.to(rows_cD.dtype) * -own_n[:, None])
        if given.scale is not None:
            weight_cD, inverse_c = tile.rows_of(given.weight), found.inverses[tile.number]
            # With u = w / |w| and d the gradient by u, divided by |w|, that by w is d - (d . u) u.
            along_c = torch.linalg.vecdot(slope_cD, weight_cD) * inverse_c.square()
            slope_cD.addcmul_(weight_cD, along_c[:, None], value=-1.0)
        if into.add:
            rows_cD += slope_cD
        if rows.bias is not None:
            bias_c = torch.mv(exponentials_cn.to(given.exact), share_n).index_add_(
                0, tile.place, -own_n
            )
            rows.bias.copy_(rows.bias + bias_c if into.add else bias_c)
        into.put(tile, rows)
