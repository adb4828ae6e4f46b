"""Class sampling: which classes of a slice take part in a micro-batch.

Partial FC: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face
Recognition CNNs by Partial FC", CVPR 2022, arXiv 2203.15565.

Shapes: n images of all ranks, K classes of this slice, of which R take part.

Each class has a random key, which is a function of (seed, micro-batch, class) alone. With r the
share and p the number of the slice's classes that an image of the micro-batch has, its positives,
R = max(ceil(r K), p): the positives take part, and then the classes with the largest keys. So the
ranks of other nodes that own the same slice draw the same classes without asking: whatever takes
part on one of them has one of its ceil(r K) largest keys, or is a positive there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.parallel.slices import Slice
from harness.seeding import hashed

CLASS_BITS = 30
"""Bits of a key that hold the class itself, so that no two keys are equal."""
FIRST = torch.iinfo(torch.int64).max
"""The key of a positive: above that of any class, whose number has a bit that is 0."""


@dataclass(frozen=True)
class Draw:
    """The classes that take part in a micro-batch."""

    rows: Tensor
    """Those of this slice, counted from its first class, ascending, [R]."""
    total: int
    """Number of classes that take part on all slices."""

    def places(self, targets_n: Tensor) -> Tensor:
        """The places among `rows` of targets, counted from the slice's first class, [n].

        As among all classes, those of lower slices are negative and those of higher ones R or more.
        """
        places_n = torch.searchsorted(self.rows, targets_n.contiguous())
        return places_n.where(targets_n >= 0, -1)


class Sampler:
    """Draws classes of one slice of a slice group."""

    def __init__(self, share: float, seed: int, slices: Sequence[Slice], own: int) -> None:
        """`share` is r; `slices` are those of all ranks of the group, of which this one is
        `own`."""
        self._seed = seed
        self._slices = slices
        self._own = own
        self._counts = [least_drawn(share, each.size) for each in slices]

    def draw(self, micro_batch: int, labels_n: Tensor) -> Draw:
        """The classes of a micro-batch whose images have these labels.

        On a card the host waits only if a slice may have more positives than its share.
        """
        own = self._slices[self._own]
        counts = self._counts_with(labels_n)
        # The last key belongs to no class: positives of other slices are marked there.
        keys = torch.empty(own.size + 1, dtype=torch.int64, device=labels_n.device)
        write_keys(self._seed, micro_batch, own.start, keys[:-1])
        targets_n = labels_n - own.start
        inside_n = (targets_n >= 0) & (targets_n < own.size)
        keys.index_fill_(0, targets_n.where(inside_n, own.size), FIRST)
        rows = keys[:-1].topk(counts[self._own], sorted=False).indices
        return Draw(rows.sort().values, sum(counts))

    def rows_of_window(self, micro_batches: range, device: torch.device) -> Tensor:
        """The rows of this slice that may take part in a window without being a positive, and with
        them as many others as make up `rows_in_window`; ascending, on `device`, where they are
        computed: a card's host does not wait. Each rank of other nodes that owns the same slice
        finds the same rows."""
        own, count = self._slices[self._own], self._counts[self._own]
        keys = torch.empty(own.size, dtype=torch.int64, device=device)
        drawn = torch.zeros(own.size, dtype=torch.bool, device=device)
        for micro_batch in micro_batches:
            write_keys(self._seed, micro_batch, own.start, keys)
            drawn.index_fill_(0, keys.topk(count, sorted=False).indices, True)
        keys.masked_fill_(drawn, FIRST)
        most = min(own.size, len(micro_batches) * count)  # as `rows_in_window`
        return keys.topk(most, sorted=False).indices.sort().values

    def _counts_with(self, labels_n: Tensor) -> Sequence[int]:
        """R of each slice."""
        n = len(labels_n)
        shares = zip(self._counts, self._slices, strict=True)
        if all(count >= min(n, own.size) for count, own in shares):
            return self._counts
        stops = torch.tensor([own.stop for own in self._slices], device=labels_n.device)
        owners = torch.bucketize(labels_n.unique(), stops, right=True)
        positives = owners.bincount(minlength=len(stops)).tolist()
        return [max(pair) for pair in zip(self._counts, positives, strict=True)]


def least_drawn(share: float, classes: int) -> int:
    """ceil(r K), the classes that take part whatever the labels are."""
    # 0.1 * 70 is 7.000000000000001.
    return math.ceil(share * classes - 1e-9)


def rows_in_window(share: float, classes: int, passes: int) -> int:
    """Number of rows of a slice of `classes` that may be drawn in the `passes` micro-batches of a
    window."""
    return min(classes, passes * least_drawn(share, classes))


def taking_part(share: float, classes: int, positives: int) -> int:
    """R of a slice of `classes` whose micro-batches have so many positives, or fewer classes."""
    return max(least_drawn(share, classes), min(classes, positives))


def write_keys(seed: int, micro_batch: int, first: int, into_K: Tensor) -> None:
    """Writes the random keys of classes `first`, `first` + 1, ..., int64.

    It is the generator splitmix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators",
    2014) at the places that the classes name.
    """
    torch.arange(first + 1, first + 1 + len(into_K), out=into_K)
    into_K.mul_(_signed(0x9E3779B97F4A7C15)).add_(hashed(seed, "sampling", micro_batch))
    into_K.bitwise_xor_(_shifted(into_K, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    into_K.bitwise_xor_(_shifted(into_K, 27)).mul_(_signed(0x94D049BB133111EB))
    into_K.bitwise_xor_(_shifted(into_K, 31))
    into_K.bitwise_right_shift_(CLASS_BITS).bitwise_left_shift_(CLASS_BITS)
    into_K.add_(torch.arange(first, first + len(into_K), device=into_K.device))


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """A shift to the right that brings in zeros, as unsigned numbers have."""
    return (numbers >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The same 64 bits as a signed number."""
    return number - (1 << 64) if number >> 63 else number
