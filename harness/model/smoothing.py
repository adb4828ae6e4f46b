"""Label smoothing over all classes that take part, however they are sliced.

With e = `classifier.label_smoothing`, C classes that take part and z the logits including the
margin, an image's loss is L - t with

    t = (1 - e) z_y + (e / C) sum_j z_j.

The sum needs no second reading of the logits: sum_j z_j = scale x . v + b + (moved - plain target),
where v is the sum of the slice's rows (normalised rows for cosines) and b the sum of its biases. So
each slice computes its own part of t, and the gradients of t by x, w_j and b_j follow from these
terms.

With class sampling C is smaller by about the share r, so that e / C is 1 / r times as large; and a
class takes part a share r of the time. So on the mean a class is drawn to as much as without.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from harness.model.operands import FirstPass, Gradients, Operands, inverse_lengths, tiles


@dataclass(frozen=True)
class Smoothing:
    """Label smoothing on one slice, in one micro-batch."""

    share: float
    """e."""
    each: float
    """e / C."""
    rows: Tensor
    """v, [D]."""
    bias: Tensor
    """b, scalar."""

    @classmethod
    def of(cls, share: float, classes: int, given: Operands, size: int) -> "Smoothing":
        """`classes` counts those of all slices; `size` is the number of classes in a tile."""
        rows_D = given.features.new_zeros(given.features.shape[1], dtype=given.exact)
        for tile in tiles(given, size):
            weight_cD = tile.rows_of(given.weight)
            if given.scale is None:
                rows_D += weight_cD.sum(dim=0)
            else:
                rows_D += weight_cD.T @ inverse_lengths(weight_cD)
        bias = rows_D.new_zeros(())
        if given.bias is not None:
            bias = given.whole.rows_of(given.bias).sum()
        return cls(share, share / classes, rows_D, bias)

    def pull(self, given: Operands, found: FirstPass) -> Tensor:
        """This slice's part of t, [n]."""
        scale = given.scale or 1.0
        sums_n = given.features.to(given.exact) @ self.rows * scale + self.bias
        moved_n = found.target - found.plain
        return (1 - self.share) * found.target + self.each * (sums_n + moved_n)

    def own(self, found: FirstPass) -> Tensor:
        """The gradient of t by the target's plain logit, minus the part e / C that all classes
        have, [n]."""
        return (1 - self.share) * found.slope + self.each * (found.slope - 1)

    def features_slope(self, given: Operands, slope: Tensor) -> Tensor:
        """`slope` times the gradient of (e / C) sum_j z_j by the features, [D]; the same for every
        image."""
        return self.rows * (self.each * slope * (given.scale or 1.0))

    def give(self, given: Operands, slope: Tensor, size: int, into: Gradients) -> None:
        """Adds the gradient of -`slope` (e / C) sum_j z_j, summed over images, to the
        parameters'."""
        features_D = given.features.to(given.exact).sum(dim=0) * (-self.each * slope)
        added = replace(into, add=True)
        for tile in tiles(given, size):
            rows = added.of(tile)
            if rows.bias is not None:
                rows.bias.sub_(self.each * slope * len(given.targets))
            if given.scale is None:
                rows.weight.add_(features_D)
            else:
                _add_by_length(rows.weight, features_D, tile.rows_of(given.weight), given.scale)
            added.put(tile, rows)


def _add_by_length(rows_cD: Tensor, slope_D: Tensor, weight_cD: Tensor, scale: float) -> None:
    """Adds a gradient by the rows' directions, the same for all, turned into one by the rows."""
    inverse_c = inverse_lengths(weight_cD)
    along_c = weight_cD @ slope_D * inverse_c.square()
    inverse_c *= scale
    rows_cD += slope_D * inverse_c[:, None]
    rows_cD.addcmul_(weight_cD, (along_c * inverse_c)[:, None], value=-1.0)
