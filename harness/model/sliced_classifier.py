"""The classifier, sliced over ranks: linear or cosine logits and an exact softmax cross entropy.

Shapes: B images of this rank, n = group size * B gathered images, D features, C classes,
K classes of this slice.

Gradient convention: the loss is the mean over the n gathered images, and a rank's features get
the gradient of the mean over its own B; so the way back through the gather multiplies by the
group's size. The weight's gradient is then the mean over the group's images already.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.config import ClassifierConfig
from harness.measure.traffic import gathers_statistics
from harness.model.margins import add_margin, own_targets
from harness.parallel.group import Group
from harness.parallel.slices import slice_of
from harness.seeding import seeded_generator

INIT_BLOCK = 1024
"""Classes whose initial weights one generator draws; a file of any slicing agrees on them."""


SMALL_PRODUCT = 1 << 16
"""Logits, 256 kB in float32, that a prediction computes at once however few a micro-batch has."""


class Scores(NamedTuple):
    """Loss and hits over the slice group's images, equal on all its ranks."""

    loss: Tensor
    """Mean cross entropy, scalar, differentiable."""
    top1: Tensor
    """Share of images whose own class has the largest logit, and of equals the lowest number,
    scalar. An image whose loss is not finite is no hit."""


class SlicedClassifier(nn.Module):
    """Owns classes start..stop-1 of C; all ranks of `group` together own every class once."""

    def __init__(
        self, features: int, num_classes: int, config: ClassifierConfig, group: Group, seed: int
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.owned = slice_of(num_classes, group.size, group.index)
        self._group = group
        self._config = config
        self.weight = nn.Parameter(
            initial_weight(seed, self.owned.start, self.owned.stop, features)
        )
        self.bias = nn.Parameter(torch.zeros(self.owned.size)) if config.margin == "none" else None

    def among(self, group: Group) -> "SlicedClassifier":
        """The same slice and parameters, with ranks that meet in another group of that size."""
        twin = copy.copy(self)
        twin._group = group
        return twin

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Scores:
        """Scores of this rank's images beside the group's. Collective over the slice group."""
        logits_nK, labels_n = self._logits(features_BD, labels_B)
        targets_n = labels_n - self.owned.start
        if self._config.margin != "none":
            logits_nK = add_margin(
                logits_nK.to(_exact(logits_nK.dtype)),
                targets_n,
                self._config.margin,
                self._config.margin_size,
                self._config.margin_scale,
            )
        return Scores(*_CrossEntropy.apply(logits_nK, targets_n, self._group))

    @torch.no_grad()
    def predict(
        self, features_BD: Tensor, labels_B: Tensor, k: int = 5, trained: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classes of the k largest logits [B, k], best first, and cross entropies [B].

        Where a logit of an image is not finite, nobody can say which is best: all its classes are
        -1, and its cross entropy is NaN. No rank ever holds all logits of an image. Of its slice's
        it holds no more than `forward` does of `trained` images a rank (None: B). Collective over
        the slice group.
        """
        features_BD, weight_KD = self._operands(features_BD)
        features_nD, labels_n = _gather(features_BD, labels_B, self._group)
        weight_KD, bias_K = _in_dtype(features_nD.dtype, weight_KD, self.bias)
        k = min(k, self.num_classes)
        rows = self._group.size * (trained or len(labels_B))
        rows = max(rows, SMALL_PRODUCT // self.owned.size)

        def judged(features_rD: Tensor, labels_r: Tensor) -> list[Tensor]:
            # A product of few rows is slow, and `forward` keeps two such tensors, or more.
            logits = functional.linear(features_rD, weight_KD, bias_K).split(rows)
            return [self._judge(*run, k) for run in zip(logits, labels_r.split(rows), strict=True)]

        runs = zip(features_nD.split(2 * rows), labels_n.split(2 * rows), strict=True)
        found_nf = torch.cat([part for run in runs for part in judged(*run)])
        # A rank only needs what all slices found in its own images.
        received = self._group.launch_all_to_all(found_nf).wait()
        found_gBf = received.view(self._group.size, len(labels_B), -1)
        values_gBk, classes_gBk, statistics_gB3 = found_gBf.split((k, k, 3), dim=2)
        values_Bc, classes_Bc = (
            each.transpose(0, 1).flatten(1) for each in (values_gBk, classes_gBk)
        )
        classes_Bk = classes_Bc.gather(1, values_Bc.topk(k, dim=1).indices).long()
        exact_gB3 = statistics_gB3.to(_exact(features_nD.dtype))
        losses_B = _loss(*_over_slices(*exact_gB3.unbind(2)))
        bad_B = values_Bc.isnan().any(dim=1)
        return classes_Bk.masked_fill_(bad_B[:, None], -1), losses_B.masked_fill_(bad_B, torch.nan)

    def _judge(self, logits_rK: Tensor, labels_r: Tensor, k: int) -> Tensor:
        """What this slice knows of each row: its k largest logits, their classes, and what
        `_Statistics` takes, [r, 2 k + 3]. Writes over the logits."""
        if self._config.margin != "none":
            logits_rK *= self._config.margin_scale
        logits_rK = logits_rK.to(_exact(logits_rK.dtype))
        values, columns = logits_rK.topk(min(k, self.owned.size), dim=1)
        # A sum is finite only where all its terms are; NaN tells the other slices.
        values = values.where(logits_rK.sum(dim=1, keepdim=True).isfinite(), torch.nan)
        missing = (0, k - values.shape[1])
        values = functional.pad(values, missing, value=-torch.inf)
        classes = functional.pad(columns + self.owned.start, missing, value=-1)
        targets_r = labels_r - self.owned.start
        own = own_targets(targets_r, logits_rK.shape[1])
        max_r, target_r = _largest_and_target(logits_rK, targets_r, own)
        sum_r = logits_rK.sub_(max_r[:, None]).exp_().sum(dim=1)
        statistics = torch.stack((max_r, sum_r, target_r), dim=1)
        # float64 holds every class number exactly, float32 only those below 2^24.
        return torch.cat((values.double(), classes.double(), statistics.double()), dim=1)

    def _logits(self, features_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        features_BD, weight_KD = self._operands(features_BD)
        return _GatheredLogits.apply(features_BD, labels_B, weight_KD, self.bias, self._group)

    def _operands(self, features_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Features and weight as the logits' product takes them, the features in its precision."""
        weight: Tensor = self.weight
        if self._config.margin != "none":
            weight = functional.normalize(weight)
            features_BD = functional.normalize(features_BD.to(_exact(features_BD.dtype)))
        if torch.is_autocast_enabled(features_BD.device.type):
            features_BD = features_BD.to(torch.get_autocast_dtype(features_BD.device.type))
        return features_BD, weight


def initial_weight(seed: int, start: int, stop: int, features: int) -> Tensor:
    """Rows start..stop-1, [stop - start, D]: a function of (seed, class), not of the slicing."""
    rows = torch.empty(stop - start, features)
    for block in range(start // INIT_BLOCK, -(-stop // INIT_BLOCK)):
        first = block * INIT_BLOCK
        generator = seeded_generator(seed, "classes", block)
        drawn = torch.randn(INIT_BLOCK, features, generator=generator) * features**-0.5
        low, high = max(first, start), min(first + INIT_BLOCK, stop)
        rows[low - start : high - start] = drawn[low - first : high - first]
    return rows


def _in_dtype(
    dtype: torch.dtype, weight_KD: Tensor, bias_K: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    return weight_KD.to(dtype), None if bias_K is None else bias_K.to(dtype)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """At least float32: what the softmax is computed in."""
    return torch.promote_types(dtype, torch.float32)


class _GatheredLogits(torch.autograd.Function):
    """Features of the group times this slice's weight: one gather there, one reduce-scatter back.

    Labels ride behind the features as raw bits: one collective instead of two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features_BD: Tensor,
        labels_B: Tensor,
        weight_KD: Tensor,
        bias_K: Tensor | None,
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        features_nD, labels_n = _gather(features_BD, labels_B, group)
        weight, bias = _in_dtype(features_nD.dtype, weight_KD, bias_K)
        ctx.save_for_backward(features_nD, weight)
        ctx.group = group
        ctx.parameter_dtype = weight_KD.dtype
        ctx.has_bias = bias_K is not None
        ctx.mark_non_differentiable(labels_n)
        return functional.linear(features_nD, weight, bias), labels_n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features_nD, weight = ctx.saved_tensors
        slope_nK = gradients[0].to(weight.dtype)
        features_slope = ctx.group.launch_reduce_scatter((slope_nK @ weight) * ctx.group.size)
        # The weight's gradient is computed while the features' travels.
        weight_slope = (slope_nK.T @ features_nD).to(ctx.parameter_dtype)
        bias_slope = None
        if ctx.has_bias:
            bias_slope = gradients[0].sum(0, dtype=ctx.parameter_dtype)
        return features_slope.wait(), None, weight_slope, bias_slope, None


def _gather(features_BD: Tensor, labels_B: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    if group.size == 1:
        return features_BD, labels_B
    wide = torch.int64 if features_BD.element_size() == 8 else torch.int32
    bits = labels_B.to(wide)[:, None].view(features_BD.dtype)
    gathered = group.all_gather(torch.cat((features_BD, bits), dim=1))
    features_nD, bits = gathered.split((features_BD.shape[1], bits.shape[1]), dim=1)
    return features_nD.contiguous(), bits.contiguous().view(wide)[:, 0].long()


class _Statistics:
    """Softmax statistics of all slices from those of this one.

    a = max over slices of the row's max; S = sum over slices of sum exp(z - a);
    t = the target's logit, on exactly one slice; loss = a + log S - t.

    The loss holds for any a. So a slice in which a class below the target has the largest logit
    takes the next larger number for its own: then t >= a says that no such class ties with the
    target, whatever the slices, and costs no further collective.
    """

    def __init__(self, own_max_n: Tensor, sum_n: Tensor, target_n: Tensor, group: Group) -> None:
        """Of this slice: what `_largest_and_target` finds, and each row's sum of exp(z - max)."""
        over_slices = _gathered if gathers_statistics(group.size) else _added_up
        max_n, sum_n, target_n = over_slices(own_max_n, sum_n, target_n, group)
        self.losses_n = _loss(max_n, sum_n, target_n)
        self.hits_n = (target_n >= max_n) & self.losses_n.isfinite()
        self.scale_n = (own_max_n - max_n).exp() / sum_n
        """exp(z - own max) * scale = the softmax over all slices."""


def _largest_and_target(
    logits_nK: Tensor, targets_n: Tensor, own: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Each row's largest logit of this slice and its target's, 0 if another slice has it: [n].

    `targets_n` count from the slice's first class; `own` is where this slice has them. The largest
    is the next larger number where a class below the target has it; see `_Statistics`.
    """
    max_n, best_n = logits_nK.max(dim=1)  # of equals the lowest class
    above_n = torch.nextafter(max_n, torch.full_like(max_n, torch.inf))
    max_n = above_n.where(best_n < targets_n, max_n)
    target_n = torch.zeros_like(max_n)
    target_n[own[0]] = logits_nK[own]
    return max_n, target_n


def _gathered(
    max_n: Tensor, sum_n: Tensor, target_n: Tensor, group: Group
) -> tuple[Tensor, Tensor, Tensor]:
    """a, S and t in one collective, in which a rank sends 3 n numbers to every other."""
    own = torch.stack((max_n, sum_n, target_n))
    return _over_slices(*group.all_gather(own[None]).unbind(1))


def _over_slices(
    max_gn: Tensor, sum_gn: Tensor, target_gn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """a, S and t of n rows from those of g slices."""
    max_n = max_gn.max(dim=0).values
    return max_n, (sum_gn * (max_gn - max_n).exp()).sum(dim=0), target_gn.sum(dim=0)


def _loss(max_n: Tensor, sum_n: Tensor, target_n: Tensor) -> Tensor:
    return (max_n - target_n) + sum_n.log()


def _added_up(
    max_n: Tensor, sum_n: Tensor, target_n: Tensor, group: Group
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in two, in which a rank sends 6 n numbers in all, however many ranks there are."""
    over_all_n = group.maximum(max_n.clone())
    own = torch.stack((sum_n * (max_n - over_all_n).exp(), target_n))
    sum_n, target_n = group.launch_sum(own).wait()
    return over_all_n, sum_n, target_n


class _CrossEntropy(torch.autograd.Function):
    """Mean softmax cross entropy over all slices; its way back needs no communication."""

    @staticmethod
    def forward(
        ctx: Any, logits_nK: Tensor, targets_n: Tensor, group: Group
    ) -> tuple[Tensor, Tensor]:
        exact = logits_nK.to(_exact(logits_nK.dtype))
        rows, columns = own_targets(targets_n, exact.shape[1])
        max_n, target_n = _largest_and_target(exact, targets_n, (rows, columns))
        exponentials_nK = (exact - max_n[:, None]).exp_()
        statistics = _Statistics(max_n, exponentials_nK.sum(dim=1), target_n, group)
        ctx.save_for_backward(exponentials_nK, statistics.scale_n, rows, columns)
        ctx.logits_dtype = logits_nK.dtype
        top1 = statistics.hits_n.to(exact.dtype).mean()
        ctx.mark_non_differentiable(top1)
        return statistics.losses_n.mean(), top1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        exponentials_nK, scale_n, rows, columns = ctx.saved_tensors
        share = gradients[0] / len(scale_n)
        # In place: the exponentials serve this once, and are the largest tensor of the step.
        slope_nK = exponentials_nK.mul_((scale_n * share)[:, None])
        slope_nK[rows, columns] -= share
        return slope_nK.to(ctx.logits_dtype), None, None
