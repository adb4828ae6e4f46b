"""Exact softmax cross entropy of a slice's classes, tile by tile, at the price of three products.

Shapes: n images of all ranks, D features, K classes of this slice, c of a tile. With z_ij the logit
of image i and class j, any number r_ic for each image and tile, L_i = log sum exp z_ij over all
slices, f_ic = exp(r_ic - L_i), e_ij = exp(z_ij - r_ic) and g the slope of the loss by an image's:

    dX_i = g (sum_c f_ic sum_{j in c} e_ij w_j - w_{y_i})       f stands left of the product
    dW_j = sum_i e_ij (g f_ic) x_i - sum_{i: y_i = j} g x_i     f can be moved to x

So the first pass makes everything but dW from one reading of the weight: a running largest logit
and a running sum, and dX as attention makes its output, rescaled when the largest logit grows. Only
when all slices have told each other their sums, the second pass makes dW of what the first kept of
e.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.model.margins import Margin
from harness.model.statistics import Statistics


@dataclass(frozen=True)
class Operands:
    """What is multiplied: logits are x w + b, or `scale` times cosines."""

    features: Tensor
    """[n, D], in the precision of products; of unit length where there are cosines."""
    targets: Tensor
    """[n], counted from the slice's first class; of other slices outside 0..K-1."""
    weight: Tensor
    """[K, D]."""
    bias: Tensor | None
    """[K]."""
    scale: float | None = None
    """None: plain logits."""
    margin: Margin | None = None

    @property
    def exact(self) -> torch.dtype:
        """At least float32: what the softmax is computed in."""
        return torch.promote_types(self.features.dtype, torch.float32)


@dataclass(frozen=True)
class Gradients:
    """Of a slice's parameters, where they are written or added to."""

    weight: Tensor
    """[K, D]."""
    bias: Tensor | None
    """[K]."""
    add: bool
    """To what other micro-batches left there."""


@dataclass(frozen=True)
class Tile:
    """Classes start..stop-1 of the slice, and which images are of one of them."""

    number: int
    start: int
    stop: int
    inside: Tensor
    """[n]."""
    place: Tensor
    """[n]: the target's row in the tile; any row for images that are not inside."""


def tiles(targets_n: Tensor, classes: int, size: int) -> Iterator[Tile]:
    for number, start in enumerate(range(0, classes, size)):
        stop = min(start + size, classes)
        inside_n = (targets_n >= start) & (targets_n < stop)
        yield Tile(number, start, stop, inside_n, (targets_n - start).clamp(0, stop - start - 1))


@dataclass
class FirstPass:
    """What one reading of the weight gives of this slice, of n images."""

    max: Tensor
    """The largest logit."""
    best: Tensor
    """Its class, of equals the lowest, counted from the slice's first."""
    sum: Tensor
    """Of exp(z - max)."""
    target: Tensor
    """The target's logit, 0 where another slice has it."""
    slope: Tensor
    """Of the target's logit by its cosine, over `scale`; 1 without a margin."""
    mixed: Tensor | None
    """[n, D], sum_j exp(z_j - max) dz_j/dx over `scale`: the target's class is one of them."""
    shifts: list[Tensor]
    """r, by tile."""


Keep = Callable[[Tile, Tensor], None]
"""Is given a tile's exponentials, [c, n], the target's times its slope; it must copy them."""


Look = Callable[[Tile, Tensor], None]
"""Is shown a tile's logits, [c, n], with their margin."""


def first_pass(
    given: Operands,
    size: int,
    keeps: Callable[[FirstPass], Keep] | None,
    look: Look | None = None,
) -> FirstPass:
    """`keeps`: what takes the exponentials of this pass; None: no way back follows."""
    n, exact = len(given.targets), given.exact
    like_n = given.features.new_zeros(n, dtype=exact)
    found = FirstPass(
        max=torch.full_like(like_n, -torch.inf),
        best=torch.zeros_like(given.targets),
        sum=torch.zeros_like(like_n),
        target=torch.zeros_like(like_n),
        slope=torch.ones_like(like_n),
        mixed=None if keeps is None else like_n.new_zeros(n, given.features.shape[1]),
        shifts=[],
    )
    keep = None if keeps is None else keeps(found)
    for tile in tiles(given.targets, len(given.weight), size):
        _take(given, tile, found, keep, look)
    return found


def _take(
    given: Operands, tile: Tile, found: FirstPass, keep: Keep | None, look: Look | None
) -> None:
    product_cD, inverse_c = _weight(given, tile)
    logits_cn = _logits(given, tile, product_cD, inverse_c)
    target_n = logits_cn.gather(0, tile.place[None])[0]
    if given.margin is not None:
        assert given.scale is not None
        target_n, slope_n = with_margin(given.margin, target_n, given.scale)
        found.slope = slope_n.where(tile.inside, found.slope)
        _put(logits_cn, tile, target_n)
    found.target = target_n.where(tile.inside, found.target)
    if look is not None:
        look(tile, logits_cn)
    max_n, best_n = logits_cn.max(dim=0)  # of equals the lowest class
    better_n = max_n > found.max
    found.best = (best_n + tile.start).where(better_n, found.best)
    largest_n = torch.maximum(found.max, max_n)  # NaN, once one is
    exponentials_cn = logits_cn.sub_(max_n).exp_()
    before_n, own_n = (found.max - largest_n).exp(), (max_n - largest_n).exp()
    found.sum = (found.sum * before_n).addcmul_(exponentials_cn.sum(dim=0), own_n)
    found.max = largest_n
    if keep is None:
        return
    if given.margin is not None:
        _scale_target(exponentials_cn, tile, found.slope)
    keep(tile, exponentials_cn)
    found.shifts.append(max_n)
    assert found.mixed is not None
    if inverse_c is not None:
        exponentials_cn *= inverse_c[:, None]
    found.mixed.mul_(before_n[:, None])
    part_nD = exponentials_cn.T.to(product_cD.dtype) @ product_cD
    found.mixed.addcmul_(part_nD.to(found.mixed.dtype), own_n[:, None])


def exponentials(given: Operands, tile: Tile, found: FirstPass) -> Tensor:
    """Those of the first pass once more, [c, n]."""
    logits_cn = _logits(given, tile, *_weight(given, tile))
    if given.margin is not None:
        _put(logits_cn, tile, found.target)
    exponentials_cn = logits_cn.sub_(found.shifts[tile.number]).exp_()
    if given.margin is not None:
        _scale_target(exponentials_cn, tile, found.slope)
    return exponentials_cn


def _weight(given: Operands, tile: Tile) -> tuple[Tensor, Tensor | None]:
    """Of the tile, in the precision of products, and one over the rows' lengths for cosines."""
    weight_cD = given.weight[tile.start : tile.stop]
    inverse_c = None if given.scale is None else inverse_lengths(weight_cD)
    return weight_cD.to(given.features.dtype), inverse_c


def _logits(given: Operands, tile: Tile, product_cD: Tensor, inverse_c: Tensor | None) -> Tensor:
    """[c, n], without a margin."""
    logits_cn = (product_cD @ given.features.T).to(given.exact)
    if given.bias is not None:
        logits_cn += given.bias[tile.start : tile.stop, None]
    if inverse_c is not None:
        assert given.scale is not None
        logits_cn *= (given.scale * inverse_c)[:, None]
    return logits_cn


def inverse_lengths(weight_cD: Tensor) -> Tensor:
    return 1 / torch.linalg.vector_norm(weight_cD, dim=1).clamp_min(1e-12)


@torch.enable_grad()
def with_margin(margin: Margin, logits_n: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The logits of targets with their margin, and its slope."""
    cosines_n = (logits_n.detach() / scale).requires_grad_()
    moved_n = margin(cosines_n)
    (slope_n,) = torch.autograd.grad(moved_n.sum(), cosines_n)
    return moved_n.detach() * scale, slope_n


def _put(logits_cn: Tensor, tile: Tile, target_n: Tensor) -> None:
    before_n = logits_cn.gather(0, tile.place[None])[0]
    logits_cn.scatter_(0, tile.place[None], target_n.where(tile.inside, before_n)[None])


def _scale_target(exponentials_cn: Tensor, tile: Tile, slope_n: Tensor) -> None:
    before_n = exponentials_cn.gather(0, tile.place[None])[0]
    scaled_n = (before_n * slope_n).where(tile.inside, before_n)
    exponentials_cn.scatter_(0, tile.place[None], scaled_n[None])


def features_slope(given: Operands, found: FirstPass, whole: Statistics, slope: Tensor) -> Tensor:
    """dX of this slice's classes, [n, D], where the loss is the sum of the images' times `slope`.

    `whole`: of all slices.
    """
    assert found.mixed is not None
    classes = len(given.weight)
    inside_n = (given.targets >= 0) & (given.targets < classes)
    place_n = given.targets.clamp(0, classes - 1)
    own_nD = given.weight[place_n]
    own_n = found.slope.where(inside_n, 0.0)
    if given.scale is not None:
        own_n = own_n * inverse_lengths(own_nD)
    result_nD = found.mixed * whole.shares(found.max)[:, None]
    result_nD.addcmul_(own_nD.to(result_nD.dtype), own_n[:, None], value=-1.0)
    return result_nD.mul_(slope * (given.scale or 1.0))


def second_pass(
    given: Operands,
    found: FirstPass,
    whole: Statistics,
    slope: Tensor,
    size: int,
    give: Callable[[Tile], Tensor],
    into: Gradients,
) -> None:
    """Writes dW and db of this slice. `give` gives a tile's exponentials back, [c, n]."""
    product = given.features.dtype
    exact_nD = given.features.to(given.exact)
    for tile in tiles(given.targets, len(given.weight), size):
        exponentials_cn = give(tile)
        share_n = whole.shares(found.shifts[tile.number]) * slope
        own_n = (found.slope * slope).where(tile.inside, 0.0)
        rows_cD = into.weight[tile.start : tile.stop]
        scaled_nD = (exact_nD * share_n[:, None]).to(product)
        if product == rows_cD.dtype and not into.add:
            slope_cD = torch.mm(exponentials_cn, scaled_nD, out=rows_cD)
        else:
            slope_cD = (exponentials_cn.to(product) @ scaled_nD).to(rows_cD.dtype)
        slope_cD.index_add_(0, tile.place, exact_nD.to(rows_cD.dtype) * -own_n[:, None])
        if given.scale is not None:
            _through_length(slope_cD, given.weight[tile.start : tile.stop], given.scale)
        if into.add:
            rows_cD += slope_cD
        elif slope_cD is not rows_cD:
            rows_cD.copy_(slope_cD)
        if into.bias is not None:
            bias_c = torch.mv(exponentials_cn, share_n).index_add_(0, tile.place, -own_n)
            row_c = into.bias[tile.start : tile.stop]
            row_c.copy_(row_c + bias_c if into.add else bias_c)


def _through_length(slope_cD: Tensor, weight_cD: Tensor, scale: float) -> None:
    """The slope by the direction of a row becomes that by the row: what lies along it is lost."""
    inverse_c = inverse_lengths(weight_cD)
    along_c = torch.linalg.vecdot(slope_cD, weight_cD) * inverse_c.square()
    slope_cD.addcmul_(weight_cD, along_c[:, None], value=-1.0)
    slope_cD.mul_((scale * inverse_c)[:, None])
