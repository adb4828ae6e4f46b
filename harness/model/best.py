"""The k largest logits of each image, tile by tile."""

import torch
from torch import Tensor
from torch.nn import functional

from harness.model.passes import Tile


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
        values_kn, rows_kn = logits_cn.topk(min(self._k, len(logits_cn)), dim=0)
        values_kn = torch.cat((self._values_kn, values_kn))
        classes_kn = torch.cat((self._classes_kn, rows_kn + self._first + tile.start))
        self._values_kn, places_kn = values_kn.topk(min(self._k, len(values_kn)), dim=0)
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
