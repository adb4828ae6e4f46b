"""Matrix products that are not rounded: bf16 operands are what autocast makes of them, no more."""

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The product of matrices of equal precision, computed and written in `dtype`."""
    return product_into(left.new_empty(len(left), right.shape[1], dtype=dtype), left, right)


def product_into(into: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The same in the dtype of `into`, which it is written to; returns `into`."""
    if left.dtype == into.dtype:
        return torch.mm(left, right, out=into)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=into.dtype, out=into)
    # A processor's product would round its results as its operands are rounded.
    return torch.mm(left.to(into.dtype), right.to(into.dtype), out=into)
