"""Which classes take part in a micro-batch, by a plain program in whole numbers."""

import math

from harness.parallel.slices import Slice
from harness.seeding import hashed

MASK = (1 << 64) - 1


def key(seed: int, micro_batch: int, number: int) -> int:
    """splitmix64's number of a class, with the class in its 30 lowest bits; signed."""
    z = ((number + 1) * 0x9E3779B97F4A7C15 + hashed(seed, "sampling", micro_batch)) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z = (z ^ (z >> 31)) >> 30 << 30
    return (z - (1 << 64) if z >> 63 else z) + number


def drawn(share: float, seed: int, micro_batch: int, own: Slice, labels: list[int]) -> list[int]:
    """Classes of one slice: positives first, then the largest keys; max(ceil(r K), p) of them."""
    positives = {label for label in labels if own.start <= label < own.stop}
    count = max(math.ceil(round(share * own.size, 6)), len(positives))
    by_key = sorted(
        range(own.start, own.stop),
        key=lambda each: (each not in positives, -key(seed, micro_batch, each)),
    )
    return sorted(by_key[:count])
