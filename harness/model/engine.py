"""The module whose passes compute a micro-batch: the card's kernels or torch."""

from importlib.util import find_spec
from types import ModuleType

import torch

from harness.model import passes
from harness.model.operands import Operands

HAS_TRITON = find_spec("triton") is not None
"""Looked up once, because searching for a missing package reads folders."""


def engine_of(given: Operands, goes_back: bool) -> ModuleType:
    """The passes for a forward pass that a backward pass follows or not."""
    if goes_back and given.weight.is_cuda and given.exact == torch.float32 and HAS_TRITON:
        from harness.model import card_passes

        return card_passes
    return passes
