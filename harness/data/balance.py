"""An epoch in which rare classes come more often than they have images."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from harness.seeding import seeded_generator


@dataclass(frozen=True, eq=False)
class Balance:
    """Which images make up an epoch, as many as there are.

    A class with n images comes in proportion to n ** (1 - share): with share 0 as often as it has
    images, with 1 as often as every other class. Its images take turns, in a seeded order, over all
    epochs: each comes about as often as the others of its class. Fractions of a place are settled
    by chance, anew in each epoch.
    """

    labels: Tensor
    """int64 [images]."""
    share: float
    seed: int

    def images(self, epoch: int) -> Tensor:
        """The images of an epoch, by class, int64 [images]."""
        return _images(self, epoch)

    def _places(self, epoch: int) -> Tensor:
        """The number of places of each class in an epoch, int64 [classes]; their sum is fixed."""
        chance = torch.rand(1, generator=seeded_generator(self.seed, "balance", epoch))
        edges = (self._expected.cumsum(0) + chance.double()).floor_().long()
        edges[-1] = len(self.labels)
        return edges.diff(prepend=edges.new_zeros(1))

    @cached_property
    def _counts(self) -> Tensor:
        """Images of each class."""
        return self.labels.bincount()

    @cached_property
    def _expected(self) -> Tensor:
        """Places of each class in an epoch, on average, float64 [classes]."""
        weights = self._counts.double().pow(1 - self.share).where(self._counts > 0, 0.0)
        return weights * (len(self.labels) / weights.sum())

    @cached_property
    def _by_class(self) -> Tensor:
        """All images, sorted by class, those of a class in random order."""
        generator = seeded_generator(self.seed, "turns")
        shuffled = torch.randperm(len(self.labels), generator=generator)
        return shuffled[self.labels[shuffled].argsort(stable=True)]


@lru_cache(maxsize=2)
def _images(balance: Balance, epoch: int) -> Tensor:
    places = balance._places(epoch)
    classes = torch.arange(len(places)).repeat_interleave(places)
    # Each class goes on where it was: `turn` counts its places since the beginning.
    before = (balance._expected * epoch).floor_().long()
    turn = before[classes] + torch.arange(len(classes)) - (places.cumsum(0) - places)[classes]
    first = balance._counts.cumsum(0) - balance._counts
    return balance._by_class[first[classes] + turn % balance._counts[classes]]


def balance_of(labels: Tensor, share: float, seed: int) -> Balance | None:
    """None for share 0: every image once."""
    return Balance(labels, share, seed) if share else None
