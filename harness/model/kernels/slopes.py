"""The second pass beside its product: each image's factor, and the gradient of the biases."""

import triton
import triton.language as tl
from torch import Tensor

from harness.model.statistics import Statistics


def share(
    features_nD: Tensor,
    shift_n: Tensor,
    whole: Statistics,
    slope: Tensor,
    into_nD: Tensor,
    share_n: Tensor,
) -> None:
    """Writes each image's factor from a tile's exponentials to softmax times `slope`, and the
    features multiplied by it."""
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
    # exp(z - r) is relative to the tile's shift r; exp(r - m) / S makes it the softmax over all
    # slices, with their largest logit m and their sum S. The factor depends on the image only, so
    # it can multiply the n features instead of the c times n exponentials.
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
    """Writes or adds sum_i e_ij share_i, the gradient by each class's bias."""
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
