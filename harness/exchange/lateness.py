"""How late what lands is: its age at every landing, and now and then where it points instead."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lateness:
    """Of some windows, on one rank."""

    windows: float = 0.0
    """Ages of all that landed, added up: windows from when it was made to when it was used."""
    landings: int = 0
    products: Tensor | None = None
    """late . fresh, |late|^2 and |fresh|^2 over this rank's parts, [3], so that the sum over all
    ranks counts every element as often; None: nothing was sampled."""


ON_TIME = Lateness(0.0, 1)


def cosine(products: Tensor) -> float:
    """Between late and fresh, of products added up over ranks and samples, [3]."""
    product, late, fresh = products.tolist()
    return float(product / max((late * fresh) ** 0.5, torch.finfo(torch.float64).tiny))


class LatenessMeter:
    """Adds up what an exchange tells it. With `every` 0 nothing is sampled."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._windows = 0.0
        self._landings = 0
        self._products: list[Tensor] = []

    def samples(self, window: int) -> bool:
        """Whether what lands in this window is to be kept until its fresh peer is known."""
        return self._every > 0 and window % self._every == 0

    def landed(self, windows: float) -> None:
        """Something of this age was used."""
        self._windows += windows
        self._landings += 1

    def compare(self, late: Tensor, fresh: Tensor, share: float = 1.0) -> None:
        """Parts of equal length; `share`: what one over the number of ranks that hold them is.

        Stays on the device.
        """
        products = (late.dot(fresh), late.dot(late), fresh.dot(fresh))
        self._products.append(torch.stack(products).double() * share)

    def take(self) -> Lateness:
        """All since the last call."""
        products = torch.stack(self._products).sum(0) if self._products else None
        found = Lateness(self._windows, self._landings, products)
        self._windows, self._landings, self._products = 0.0, 0, []
        return found
