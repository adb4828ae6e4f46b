"""Weight rows as the products take them, and gradients by row direction turned into gradients by
row."""

import triton
import triton.language as tl
from torch import Tensor


def rows(weight_cD: Tensor, into_cD: Tensor, unit: bool) -> None:
    """The rows in another precision; with `unit` normalised to length 1."""
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


def through_length(
    slope_cD: Tensor, weight_cD: Tensor, scale: float | None, into_cD: Tensor, add: bool
) -> None:
    """Turns the gradient by a row's direction into that by the row, and writes or adds it to
    `into_cD`.

    With `scale` None both are the same.
    """
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
        # With u = w / |w| and d the gradient by u, that by w is (d - (d . u) u) scale / |w|: a
        # change along u alters only the length, which cosines do not depend on.
        row = tl.load(weight + at, inside, other=0.0)
        inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(row * row, axis=0)), 1e-12)
        along = tl.sum(slope * row, axis=0) * inverse * inverse
        slope = (slope - row * along) * (scale * inverse)
    if ADD:
        slope += tl.load(into + at, inside, other=0.0)
    tl.store(into + at, slope, inside)
