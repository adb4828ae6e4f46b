"""The k largest logits of each image, tile by tile; of equal logits the lowest class is first."""

import torch
from torch import Tensor
from torch.nn import functional

from harness.model.passes import Tile

STRIP = 16
"""Values of which only the largest is looked at before it is known which ones can be among the k
largest."""


def largest(values_cn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each column, the largest first, and their rows, [k, n].

    Of equal values the first comes first, as where a single maximum is taken; topk leaves that
    open.
    """
    strips = len(values_cn) // STRIP
    if strips <= k:
        return _one_by_one(values_cn.clone(), k)
    # If a strip's largest value is not among the k first of those, k other strips have one before
    # it. So all that is wanted is in k strips, and in the rows behind the last strip.
    whole = strips * STRIP
    found_kn = _one_by_one(values_cn[:whole].view(strips, STRIP, -1).amax(dim=1), k)[1]
    strips_kn = found_kn.sort(dim=0).values
    inside = torch.arange(STRIP, device=values_cn.device)
    behind = torch.arange(whole, len(values_cn), device=values_cn.device)
    rows_mn = torch.cat(
        (
            (strips_kn[:, None] * STRIP + inside[None, :, None]).flatten(0, 1),
            behind[:, None].expand(-1, values_cn.shape[1]),
        )
    )
    best_kn, places_kn = _one_by_one(values_cn.gather(0, rows_mn), k)
    return best_kn, rows_mn.gather(0, places_kn)


def _one_by_one(values_cn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same. What is found is overwritten in `values_cn`."""
    found = []
    for _ in range(k):
        best_1n, row_1n = values_cn.max(dim=0, keepdim=True)  # the first of equal ones
        values_cn.scatter_(0, row_1n, -torch.inf)
        found.append((best_1n, row_1n))
    best_kn, rows_kn = map(torch.cat, zip(*found, strict=True))
    return best_kn, rows_kn


class Best:
    """The best classes of this slice among the tiles seen so far."""

    def __init__(self, k: int, first: int, images: int, like: Tensor) -> None:
        """`first` is the slice's first class."""
        self._k = k
        self._first = first
        self._values_kn = like.new_full((0, images), -torch.inf)
        self._classes_kn = like.new_zeros((0, images), dtype=torch.int64)
        self._bad_n = like.new_zeros(images, dtype=torch.bool)

    def look(self, tile: Tile, logits_cn: Tensor) -> None:
        # A sum is finite only if all its terms are.
        self._bad_n |= ~logits_cn.sum(dim=0).isfinite()
        values_kn, rows_kn = largest(logits_cn, min(self._k, len(logits_cn)))
        # Tiles come in the order of their classes: what was there before has the lower ones.
        values_kn = torch.cat((self._values_kn, values_kn))
        classes_kn = torch.cat((self._classes_kn, rows_kn + self._first + tile.start))
        self._values_kn, places_kn = largest(values_kn, min(self._k, len(values_kn)))
        self._classes_kn = classes_kn.gather(0, places_kn)

    def found(self) -> tuple[Tensor, Tensor]:
        """Values and classes, [n, k], best first; -inf and -1 if the slice has fewer. Values are
        NaN if a logit of the image was not finite."""
        missing = (0, self._k - len(self._values_kn))
        values_nk = self._values_kn.T.masked_fill(self._bad_n[:, None], torch.nan)
        return (
            functional.pad(values_nk, missing, value=-torch.inf),
            functional.pad(self._classes_kn.T, missing, value=-1),
        )
