"""The classifier, sliced over ranks: linear or cosine logits and an exact softmax cross entropy.

Shapes: B images of this rank, n = group size * B gathered images, D features, C classes, K classes
of this slice.

Gradient convention: the loss is the mean over the n gathered images, but a rank's features get the
gradient of the mean over its own B. So the backward pass through the gather multiplies by the
group's size. The weight's gradient is already the mean over the group's images.
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
"""Number of classes whose initial weights one generator draws, so that every slicing gets the same
weights."""

TILE_BYTES = {"cpu": 5_000_000, "cuda": 1 << 30}
"""Size of a tile in bytes. On a CPU its part of the weight, gradient and exponentials stay in the
cache. On a card it is as large as memory allows, since a launch costs as much as a small tile."""
HAS_TRITON = find_spec("triton") is not None
"""Looked up once, because searching for a missing package reads folders."""
MOST_ELEMENTS = 2**31
"""Upper bound of the elements of a tile on a card: the kernels count them in 32 bits."""


class Scores(NamedTuple):
    """Loss and hits over the slice group's images, equal on all its ranks."""

    loss: Tensor
    """Mean cross entropy, scalar, differentiable."""
    top1: Tensor
    """Share of images whose target has the largest logit, the lowest class winning ties; scalar. An
    image whose loss is not finite counts as a miss."""


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
        """Gradients are added directly to the parameters' gradients, bypassing autograd."""
        self.gradients_are_stale = False
        """The next backward pass is the first of a step and overwrites the gradients."""
        self.places: list[str] = []
        """The places where exponentials were kept for the second pass, in the order of first
        use."""
        self.weight = nn.Parameter(
            initial_weight(seed, self.owned.start, self.owned.stop, features)
        )
        self.bias = nn.Parameter(torch.zeros(self.owned.size)) if config.margin == "none" else None

    def among(self, group: Group) -> "SlicedClassifier":
        """A copy that shares slice and parameters, but communicates in another group of the same
        size."""
        twin = copy.copy(self)
        twin._group = group
        return twin

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Scores:
        """Scores of the group's images, of which this rank brings B. Collective over the slice
        group."""
        features_BD = self._operand(features_BD)
        goes_back = torch.is_grad_enabled()
        asked = _Asked(self, labels_B, goes_back)
        return Scores(*_CrossEntropy.apply(features_BD, self.weight, self.bias, asked))

    @torch.no_grad()
    def predict(self, features_BD: Tensor, labels_B: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
        """The classes of the k largest logits [B, k], best first, and the cross entropies [B].

        If a logit of an image is not finite, the largest one is undefined: all its classes are -1
        and its cross entropy is NaN. Collective over the slice group.
        """
        features_nD, labels_n = _gather(self._operand(features_BD), labels_B, self._group)
        given = replace(self.operands(features_nD, labels_n, self.weight, self.bias), margin=None)
        k = min(k, self.num_classes)
        best = Best(k, self.owned.start, len(labels_n), features_nD.new_zeros(0, dtype=given.exact))
        own = first_pass(given, self.tile(given), kept=None, look=best.look)
        values_nk, classes_nk = best.found()
        statistics_n3 = torch.stack((own.max, own.sum, own.target), dim=1)
        # float64 represents every class number exactly, float32 only those below 2^24.
        found_nf = torch.cat((values_nk.double(), classes_nk, statistics_n3), dim=1)
        # An all-to-all, because a rank only needs the results for its own images.
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
        """The ranks that own the slices."""
        return self._group

    @property
    def scale(self) -> float | None:
        """The factor of the cosines; None if logits are plain."""
        return None if self._config.margin == "none" else self._config.margin_scale

    def _operand(self, features_BD: Tensor) -> Tensor:
        """The features as the product takes them: normalised for cosines, in the product's
        precision."""
        if self.scale is not None:
            features_BD = functional.normalize(features_BD.to(_exact(features_BD.dtype)))
        if torch.is_autocast_enabled(features_BD.device.type):
            features_BD = features_BD.to(torch.get_autocast_dtype(features_BD.device.type))
        return features_BD

    def operands(
        self, features_nD: Tensor, labels_n: Tensor, weight_KD: Tensor, bias_K: Tensor | None
    ) -> Operands:
        """The gathered images and the parameters, as the two passes take them."""
        margin = margin_of(self._config)
        targets_n = labels_n - self.owned.start
        return Operands(features_nD, targets_n, weight_KD, bias_K, self.scale, margin)

    def smoothing(self, given: Operands, size: int) -> Smoothing | None:
        """The label smoothing of this micro-batch; None if labels are not smoothed. `size` is a
        tile's."""
        share = self._config.label_smoothing
        return Smoothing.of(share, self.num_classes, given, size) if share else None

    def tile(self, given: Operands) -> int:
        n, features = given.features.shape
        product = given.features.element_size()
        return tile_classes(n, features, given.weight.element_size(), product, given.weight.is_cuda)

    def gradients(self, weight_KD: Tensor, bias_K: Tensor | None) -> Gradients:
        """The tensors that the next backward pass writes or adds to."""
        if not self.in_place:
            bias = None if bias_K is None else torch.empty_like(bias_K)
            return Gradients(torch.empty_like(weight_KD), bias, add=False)
        assert weight_KD.grad is not None
        bias = None if bias_K is None else bias_K.grad
        return Gradients(weight_KD.grad, bias, add=not self.gradients_are_stale)


def tile_classes(
    images: int, features: int, weight_bytes: int, product_bytes: int, cards: bool
) -> int:
    """Number of classes in a tile. `weight_bytes` and `product_bytes` are sizes of one element."""
    if not cards:
        return max(1, TILE_BYTES["cpu"] // ((2 * features + images) * weight_bytes))
    # Bytes of a class: its float32 logits, its exponentials, and its row as products take it.
    row = images * 4 + (images + features) * product_bytes
    widest = max(images, features * weight_bytes // product_bytes)
    return max(1, min(TILE_BYTES["cuda"] // row, MOST_ELEMENTS // widest - 1))


def initial_weight(seed: int, start: int, stop: int, features: int) -> Tensor:
    """Rows start..stop-1, [stop - start, D]; a function of (seed, class), whatever the slicing."""
    rows = torch.empty(stop - start, features)
    for block in range(start // INIT_BLOCK, -(-stop // INIT_BLOCK)):
        first = block * INIT_BLOCK
        generator = seeded_generator(seed, "classes", block)
        drawn = torch.randn(INIT_BLOCK, features, generator=generator) * features**-0.5
        low, high = max(first, start), min(first + INIT_BLOCK, stop)
        rows[low - start : high - start] = drawn[low - first : high - first]
    return rows


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the softmax: at least float32."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class _Asked:
    """The inputs of a loss that have no gradient."""

    classifier: SlicedClassifier
    labels: Tensor
    """[B]."""
    goes_back: bool


class _CrossEntropy(torch.autograd.Function):
    """Mean cross entropy over all slices.

    Communication: one gather of features (the labels travel with them, as raw bits), one of
    statistics, and in the backward pass one reduce-scatter that runs while the weight's gradient is
    computed.
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
            raise RuntimeError(
                "the classifier's loss has no second backward pass: run it forward again"
            )
        group = classifier.group
        slope = gradients[0] / len(given.targets)
        slope_nD = features_slope(given, found, ctx.whole, slope * group.size)
        if ctx.smoothing is not None:
            slope_nD -= ctx.smoothing.features_slope(given, slope * group.size)
        features_slope_BD = group.launch_reduce_scatter(slope_nD.to(ctx.dtype))
        # The weight's gradient is computed while the features' gradient travels.
        ctx.engine.second_pass(given, found, ctx.whole, slope, kept)
        into = kept.into
        if ctx.smoothing is not None:
            ctx.smoothing.give(given, slope, ctx.size, into)
        # The kept exponentials may share memory with the gradient, so there is no second backward
        # pass.
        ctx.given = ctx.found = ctx.kept = None
        if not classifier.in_place:
            return features_slope_BD.wait(), into.weight, into.bias, None
        classifier.gradients_are_stale = False
        # autograd still calls the hooks of the parameters, although it has no gradient for them.
        return features_slope_BD.wait(), None, None, None


def _engine(given: Operands, goes_back: bool) -> ModuleType:
    """The module whose passes are used: the card's kernels or torch."""
    if goes_back and given.weight.is_cuda and given.exact == torch.float32 and HAS_TRITON:
        from harness.model import card_passes

        return card_passes
    return passes


def _gather(features_BD: Tensor, labels_B: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Features [n, D] and labels [n] of all ranks of the group, in one collective."""
    if group.size == 1:
        return features_BD, labels_B
    # Labels are packed as bits: an integer of w bytes is viewed as w / s floats of s bytes, so a
    # label is one more feature column in float32 and float64, and two in bfloat16. A gather copies
    # bits and does no arithmetic, so any bit pattern, NaN included, survives.
    wide = torch.int64 if features_BD.element_size() == 8 else torch.int32
    bits = labels_B.to(wide)[:, None].view(features_BD.dtype)
    gathered = group.all_gather(torch.cat((features_BD, bits), dim=1))
    features_nD, bits = gathered.split((features_BD.shape[1], bits.shape[1]), dim=1)
    return features_nD.contiguous(), bits.contiguous().view(wide)[:, 0].long()
