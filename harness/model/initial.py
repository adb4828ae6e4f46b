"""The classifier's initial weights: a function of (seed, class)."""

import torch
from torch import Tensor

from harness.seeding import seeded_generator

INIT_BLOCK = 1024
"""Number of classes whose initial weights one generator draws, so that every slicing gets the same
weights."""


def initial_weight(seed: int, start: int, stop: int, features: int) -> Tensor:
    """Rows start..stop-1, [stop - start, D]; a function of (seed, class), whatever the slicing."""
    rows = torch.empty(stop - start, features)
    for block in range(start // INIT_BLOCK, -(-stop // INIT_BLOCK)):
        first = block * INIT_BLOCK
        generator = seeded_generator(seed, "classes", block)
        drawn = torch.randn(INIT_BLOCK, features, generator=generator) * features**-0.5
        low, high = max(first, start), min(first + INIT_BLOCK, stop)
        rows[low - start : high - start] = drawn[low - first : high - first]
    return rows
