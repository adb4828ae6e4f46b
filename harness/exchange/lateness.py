"""How late results are: their age at each landing and, for samples, how far their direction has
changed."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lateness:
    """The lateness measured in some windows, on one rank."""

    windows: float = 0.0
    """Sum of the ages of all results that landed: windows from launch to use."""
    landings: float = 0.0
    """Number of results that landed; one of a share of this rank's parts counts as that share."""
    products: Tensor | None = None
    """late . fresh, |late|^2 and |fresh|^2 over this rank's parts, [3], weighted so that the sum
    over all ranks counts every element equally often. None if nothing was sampled."""


ON_TIME = Lateness(0.0, 1.0)


def cosine(products: Tensor) -> float:
    """The cosine between late and fresh, from products added up over ranks and samples, [3]."""
    product, late, fresh = products.tolist()
    return float(product / max((late * fresh) ** 0.5, torch.finfo(torch.float64).tiny))


class LatenessMeter:
    """Adds up the lateness that an exchange reports. With `every` 0 nothing is sampled."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._windows = 0.0
        self._landings = 0.0
        self._products: list[Tensor] = []

    def samples(self, window: int, period: int = 1) -> bool:
        """Whether what lands in this window is kept until its fresh counterpart is known.

        Of parts that are sent in turn, each once in `period` windows, a whole turn is sampled:
        otherwise it could be the same part every time.
        """
        return self._every > 0 and window // period % self._turns(period) == 0

    def between(self, period: int) -> int:
        """Windows between two samples of the same element."""
        return period * self._turns(period)

    def _turns(self, period: int) -> int:
        return max(1, self._every // period)

    def landed(self, windows: float, share: float = 1.0) -> None:
        """Records that a result of this age was used. Where a window has several results, `share`
        is the share of this rank's elements that results of this kind are about."""
        self._windows += windows * share
        self._landings += share

    def compare(self, late: Tensor, fresh: Tensor, share: float = 1.0) -> None:
        """Compares parts of equal length; `share` makes up for elements that are compared more
        often or more rarely than others: on several ranks, or in some windows only.

        The products stay on the device.
        """
        products = (late.dot(fresh), late.dot(late), fresh.dot(fresh))
        self._products.append(torch.stack(products).double() * share)

    def take(self) -> Lateness:
        """The lateness since the last call."""
        products = torch.stack(self._products).sum(0) if self._products else None
        found = Lateness(self._windows, self._landings, products)
        self._windows, self._landings, self._products = 0.0, 0.0, []
        return found
