"""The classifier, sliced over ranks: linear or cosine logits and an exact softmax cross entropy.

Shapes: B images of this rank, n = group size * B gathered images, D features, C classes,
K classes of this slice.

Gradient convention: the loss is the mean over the n gathered images, and a rank's features get
the gradient of the mean over its own B; so the way back through the gather multiplies by the
group's size. The weight's gradient is then the mean over the group's images already.
"""

import copy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from harness.config import ClassifierConfig
from harness.model import passes
from harness.model.best import Best
from harness.model.kept import Kept
from harness.model.margins import margin_of
from harness.model.operands import Gradients, Operands
from harness.model.passes import features_slope, first_pass
from harness.model.smoothing import Smoothing
from harness.model.statistics import combined, loss, over_slices, raised
from harness.parallel.group import Group
from harness.parallel.slices import slice_of
from harness.seeding import seeded_generator

INIT_BLOCK = 1024
"""Classes whose initial weights one generator draws; a file of any slicing agrees on them."""

TILE_BYTES = {"cpu": 5_000_000, "cuda": 1 << 30}
"""Size of a tile. On a processor its part of the weight, its gradient and its exponentials stay in
the cache; on a card it is as large as memory allows: a launch costs as much as a small tile."""
HAS_TRITON = find_spec("triton") is not None
"""Looked up once: a search for what is not there reads folders."""
MOST_ELEMENTS = 2**31
"""Elements that a tile on a card stays below: the kernels count them in 32 bits."""


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
        self.in_place = False
        """Gradients are added to those that the parameters have, past autograd."""
        self.gradients_are_stale = False
        """The next backward pass is the first of a step: what the gradients hold is not kept."""
        self.places: list[str] = []
        """Where exponentials have waited for the second pass, in the order they were first kept
        there."""
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
        features_BD = self._operand(features_BD)
        goes_back = torch.is_grad_enabled()
        asked = _Asked(self, labels_B, goes_back)
        return Scores(*_CrossEntropy.apply(features_BD, self.weight, self.bias, asked))

    @torch.no_grad()
    def predict(self, features_BD: Tensor, labels_B: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
        """Classes of the k largest logits [B, k], best first, and cross entropies [B].

        Where a logit of an image is not finite, nobody can say which is best: all its classes are
        -1, and its cross entropy is NaN. Collective over the slice group.
        """
        features_nD, labels_n = _gather(self._operand(features_BD), labels_B, self._group)
        given = replace(self.operands(features_nD, labels_n, self.weight, self.bias), margin=None)
        k = min(k, self.num_classes)
        best = Best(k, self.owned.start, len(labels_n), features_nD.new_zeros(0, dtype=given.exact))
        own = first_pass(given, self.tile(given), kept=None, look=best.look)
        values_nk, classes_nk = best.found()
        statistics_n3 = torch.stack((own.max, own.sum, own.target), dim=1)
        # float64 holds every class number exactly, float32 only those below 2^24.
        found_nf = torch.cat((values_nk.double(), classes_nk, statistics_n3), dim=1)
        # A rank only needs what all slices found in its own images.
        received = self._group.launch_all_to_all(found_nf).wait()
        found_gBf = received.view(self._group.size, len(labels_B), -1)
        values_gBk, classes_gBk, statistics_gB3 = found_gBf.split((k, k, 3), dim=2)
        values_Bc, classes_Bc = (
            each.transpose(0, 1).flatten(1) for each in (values_gBk, classes_gBk)
        )
        classes_Bk = classes_Bc.gather(1, values_Bc.topk(k, dim=1).indices).long()
        losses_B = loss(*combined(*statistics_gB3.to(given.exact).unbind(2)))
        bad_B = values_Bc.isnan().any(dim=1)
        return classes_Bk.masked_fill_(bad_B[:, None], -1), losses_B.masked_fill_(bad_B, torch.nan)

    @property
    def group(self) -> Group:
        """Ranks that own the slices."""
        return self._group

    @property
    def scale(self) -> float | None:
        """What cosines are multiplied by; None where logits are plain."""
        return None if self._config.margin == "none" else self._config.margin_scale

    def _operand(self, features_BD: Tensor) -> Tensor:
        """Features as the logits' product takes them, in its precision."""
        if self.scale is not None:
            features_BD = functional.normalize(features_BD.to(_exact(features_BD.dtype)))
        if torch.is_autocast_enabled(features_BD.device.type):
            features_BD = features_BD.to(torch.get_autocast_dtype(features_BD.device.type))
        return features_BD

    def operands(
        self, features_nD: Tensor, labels_n: Tensor, weight_KD: Tensor, bias_K: Tensor | None
    ) -> Operands:
        """The gathered images and these parameters, as the passes take them."""
        margin = margin_of(self._config)
        targets_n = labels_n - self.owned.start
        return Operands(features_nD, targets_n, weight_KD, bias_K, self.scale, margin)

    def smoothing(self, given: Operands, size: int) -> Smoothing | None:
        """This micro-batch's smoothing; None where labels are not smoothed. `size`: of a tile."""
        share = self._config.label_smoothing
        return Smoothing.of(share, self.num_classes, given, size) if share else None

    def tile(self, given: Operands) -> int:
        n, features = given.features.shape
        product = given.features.element_size()
        return tile_classes(n, features, given.weight.element_size(), product, given.weight.is_cuda)

    def gradients(self, weight_KD: Tensor, bias_K: Tensor | None) -> Gradients:
        """Where the next backward pass writes."""
        if not self.in_place:
            bias = None if bias_K is None else torch.empty_like(bias_K)
            return Gradients(torch.empty_like(weight_KD), bias, add=False)
        assert weight_KD.grad is not None
        bias = None if bias_K is None else bias_K.grad
        return Gradients(weight_KD.grad, bias, add=not self.gradients_are_stale)


def tile_classes(
    images: int, features: int, weight_bytes: int, product_bytes: int, cards: bool
) -> int:
    """Number of classes in a tile; `..._bytes`: size of one element."""
    if not cards:
        return max(1, TILE_BYTES["cpu"] // ((2 * features + images) * weight_bytes))
    # Logits, and exponentials and the weight as products take them.
    row = images * 4 + (images + features) * product_bytes
    widest = max(images, features * weight_bytes // product_bytes)
    return max(1, min(TILE_BYTES["cuda"] // row, MOST_ELEMENTS // widest - 1))


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


def _exact(dtype: torch.dtype) -> torch.dtype:
    """At least float32: what the softmax is computed in."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class _Asked:
    """What a loss needs beside the tensors that have gradients."""

    classifier: SlicedClassifier
    labels: Tensor
    """[B]."""
    goes_back: bool


class _CrossEntropy(torch.autograd.Function):
    """Mean cross entropy over all slices: one gather of features, one of statistics, and on the way
    back one reduce-scatter, under way while the weight's gradient is made.

    Labels travel behind the features as raw bits: one collective instead of two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features_BD: Tensor,
        weight_KD: Tensor,
        bias_K: Tensor | None,
        asked: _Asked,
    ) -> tuple[Tensor, Tensor]:
        classifier = asked.classifier
        features_nD, labels_n = _gather(features_BD, asked.labels, classifier.group)
        given = classifier.operands(features_nD, labels_n, weight_KD, bias_K)
        ctx.given, ctx.size, ctx.classifier = given, classifier.tile(given), classifier
        ctx.dtype = features_BD.dtype

        kept = None
        if asked.goes_back:
            ctx.kept = kept = Kept(given, classifier.gradients(weight_KD, bias_K), ctx.size)
            if kept.place not in classifier.places:
                classifier.places.append(kept.place)
        ctx.engine = engine = _engine(given, asked.goes_back)
        ctx.found = found = engine.first_pass(given, ctx.size, kept)
        max_n, sum_n = raised(found.max, found.best, found.sum, given.targets)
        ctx.smoothing = smoothing = classifier.smoothing(given, ctx.size)
        pull_n = None
        if smoothing is not None:
            pull_n, found.own = smoothing.pull(given, found), smoothing.own(found)
        ctx.whole = whole = over_slices(max_n, sum_n, found.target, classifier.group, pull_n)
        top1 = whole.hits.to(given.exact).mean()
        ctx.mark_non_differentiable(top1)
        return whole.losses.mean(), top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given, found, kept, classifier = ctx.given, ctx.found, ctx.kept, ctx.classifier
        if given is None:
            raise RuntimeError("the classifier's loss has no second way back: run it forward again")
        group = classifier.group
        slope = gradients[0] / len(given.targets)
        slope_nD = features_slope(given, found, ctx.whole, slope * group.size)
        if ctx.smoothing is not None:
            slope_nD -= ctx.smoothing.features_slope(given, slope * group.size)
        features_slope_BD = group.launch_reduce_scatter(slope_nD.to(ctx.dtype))
        # The weight's gradient is computed while the features' travels.
        ctx.engine.second_pass(given, found, ctx.whole, slope, kept)
        into = kept.into
        if ctx.smoothing is not None:
            ctx.smoothing.give(given, slope, ctx.size, into)
        # What was kept may lie where the gradient lies now: there is no second way back.
        ctx.given = ctx.found = ctx.kept = None
        if not classifier.in_place:
            return features_slope_BD.wait(), into.weight, into.bias, None
        classifier.gradients_are_stale = False
        # autograd calls who waits for the parameters' gradients, though it has none for them.
        return features_slope_BD.wait(), None, None, None


def _engine(given: Operands, goes_back: bool) -> ModuleType:
    """The module whose passes are used for these operands."""
    if goes_back and given.weight.is_cuda and given.exact == torch.float32 and HAS_TRITON:
        from harness.model import card_passes

        return card_passes
    return passes


def _gather(features_BD: Tensor, labels_B: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Features and labels of all the group's ranks, by one collective."""
    if group.size == 1:
        return features_BD, labels_B
    # An integer of w bytes is w / s numbers of s bytes: a label is one more feature in float32 and
    # float64, two more in bfloat16. A gather moves bits, whatever numbers they spell.
    wide = torch.int64 if features_BD.element_size() == 8 else torch.int32
    bits = labels_B.to(wide)[:, None].view(features_BD.dtype)
    gathered = group.all_gather(torch.cat((features_BD, bits), dim=1))
    features_nD, bits = gathered.split((features_BD.shape[1], bits.shape[1]), dim=1)
    return features_nD.contiguous(), bits.contiguous().view(wide)[:, 0].long()
