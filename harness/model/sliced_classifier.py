"""The classifier, sliced over ranks: linear or cosine logits and an exact softmax cross entropy.

Shapes: B images of this rank, n = group size * B gathered images, D features, C classes, K classes
of this slice, of which R take part in a micro-batch: all, unless classes are sampled.

Gradient convention: the loss is the mean over the n gathered images, but a rank's features get the
gradient of the mean over its own B. So the backward pass through the gather multiplies by the
group's size. The weight's gradient is already the mean over the group's images.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from harness.config import ClassifierConfig
from harness.model.best import Best, largest
from harness.model.engine import engine_of
from harness.model.gathered import gathered
from harness.model.initial import initial_weight
from harness.model.kept import Kept
from harness.model.margins import margin_of
from harness.model.operands import Gradients, Operands
from harness.model.passes import features_slope, first_pass
from harness.model.sampling import Sampler
from harness.model.smoothing import Smoothing
from harness.model.statistics import combined, loss, over_slices, raised
from harness.parallel.group import Group
from harness.parallel.slices import slice_of

TILE_BYTES = {"cpu": 5_000_000, "cuda": 1 << 30}
"""Size of a tile in bytes. On a CPU its part of the weight, gradient and exponentials stay in the
cache. On a card it is as large as memory allows, since a launch costs as much as a small tile."""
MOST_ELEMENTS = 2**31
"""Upper bound of the elements of a tile on a card: the kernels count them in 32 bits."""


class Scores(NamedTuple):
    """Loss and hits over the slice group's images, among the classes that take part; equal on all
    its ranks."""

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
        slices = [slice_of(num_classes, group.size, index) for index in range(group.size)]
        self.owned = slices[group.index]
        self._group = group
        self._sampler: Sampler | None = None
        if config.sampling < 1:
            self._sampler = Sampler(config.sampling, seed, slices, group.index)
        self._config = config
        self.in_place = False
        """Gradients are added directly to the parameters' gradients, bypassing autograd."""
        self.gradients_are_stale = False
        """The next backward pass is the first of a step and overwrites the gradients."""
        self.micro_batch: int | None = None
        """Number of the micro-batch, by which classes are sampled; None: all classes take part."""
        self.drawn: list[Tensor] = []
        """The sampled rows of each backward pass of this step."""
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
        with _no_autocast(features_BD):
            return Scores(*_CrossEntropy.apply(features_BD, self.weight, self.bias, asked))

    @torch.no_grad()
    def predict(self, features_BD: Tensor, labels_B: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
        """The classes of the k largest logits [B, k], best first and of equal ones the lowest
        first, and the cross entropies [B].

        If a logit of an image is not finite, the largest one is undefined: all its classes are -1
        and its cross entropy is NaN. Collective over the slice group.
        """
        features_nD, labels_n = gathered(self._operand(features_BD), labels_B, self._group)
        given = replace(self.operands(features_nD, labels_n, self.weight, self.bias), margin=None)
        k = min(k, self.num_classes)
        best = Best(k, self.owned.start, len(labels_n), features_nD.new_zeros(0, dtype=given.exact))
        with _no_autocast(features_nD):
            own = first_pass(given, self.tile(given), kept=None, look=best.look)
        values_nk, classes_nk = best.found()
        statistics_n3 = torch.stack((own.max, own.sum, own.target), dim=1)
        # float64 represents every class number exactly, float32 only those below 2^24.
        found_nf = torch.cat((values_nk.double(), classes_nk, statistics_n3), dim=1)
        # An all-to-all, because a rank only needs the results for its own images.
        received = self._group.launch_all_to_all(found_nf).wait()
        found_gBf = received.view(self._group.size, len(labels_B), -1)
        values_gBk, classes_gBk, statistics_gB3 = found_gBf.split((k, k, 3), dim=2)
        # Slices are in the order of their classes.
        values_cB, classes_cB = (
            each.transpose(1, 2).flatten(0, 1) for each in (values_gBk, classes_gBk)
        )
        classes_Bk = classes_cB.gather(0, largest(values_cB, k)[1]).T.long()
        losses_B = loss(*combined(*statistics_gB3.to(given.exact).unbind(2)))
        bad_B = values_cB.isnan().any(dim=0)
        return classes_Bk.masked_fill_(bad_B[:, None], -1), losses_B.masked_fill_(bad_B, torch.nan)

    def drawn_rows(self) -> Tensor:
        """The sampled rows of all backward passes of this step; some may be there twice."""
        none = torch.zeros(0, dtype=torch.int64, device=self.weight.device)
        return torch.cat((none, *self.drawn))

    def rows_of_window(self, passes: int, window: int) -> Tensor:
        """The rows that are drawn in a window of `passes` micro-batches, ascending; see
        `Sampler`."""
        assert self._sampler is not None
        micro_batches = range(window * passes, (window + 1) * passes)
        return self._sampler.rows_of_window(micro_batches, self.weight.device)

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

    def sampled(self, given: Operands, labels_n: Tensor) -> tuple[Operands, int]:
        """The operands of the classes that take part in this micro-batch, and the number of these
        classes on all slices."""
        if self._sampler is None or self.micro_batch is None:
            return given, self.num_classes
        draw = self._sampler.draw(self.micro_batch, labels_n)
        return replace(given, rows=draw.rows, targets=draw.places(given.targets)), draw.total

    def smoothing(self, given: Operands, size: int, classes: int) -> Smoothing | None:
        """The label smoothing of this micro-batch; None if labels are not smoothed. `size` is a
        tile's; `classes` take part on all slices."""
        share = self._config.label_smoothing
        return Smoothing.of(share, classes, given, size) if share else None

    def goes_back(self, given: Operands, place: str) -> None:
        """Records a forward pass that a backward pass follows, and the exponentials' place."""
        if place not in self.places:
            self.places.append(place)
        if given.rows is not None:
            self.drawn = [] if self.gradients_are_stale else self.drawn
            self.drawn.append(given.rows)

    def tile(self, given: Operands) -> int:
        n, features = given.features.shape
        product = given.features.element_size()
        return tile_classes(n, features, given.weight.element_size(), product, given.weight.is_cuda)

    def gradients(self, weight_KD: Tensor, bias_K: Tensor | None) -> Gradients:
        """The tensors that the next backward pass writes or adds to."""
        if not self.in_place:
            # Classes that take no part have gradients of zero.
            made = torch.empty_like if self._sampler is None else torch.zeros_like
            return Gradients(made(weight_KD), None if bias_K is None else made(bias_K), add=False)
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


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the softmax: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _no_autocast(features_BD: Tensor) -> torch.autocast:
    """Inside the block nothing is rounded but what the code rounds.

    The passes round the operands of their products themselves, and not the results (`product`).
    Autocast would round these, and others too: the target's logit, its margin, and what smooths
    labels.
    """
    return torch.autocast(features_BD.device.type, enabled=False)


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
        features_nD, labels_n = gathered(features_BD, asked.labels, classifier.group)
        given = classifier.operands(features_nD, labels_n, weight_KD, bias_K)
        given, classes = classifier.sampled(given, labels_n)
        ctx.given, ctx.size, ctx.classifier = given, classifier.tile(given), classifier
        ctx.dtype = features_BD.dtype

        kept = None
        if asked.goes_back:
            ctx.kept = kept = Kept(given, classifier.gradients(weight_KD, bias_K), ctx.size)
            classifier.goes_back(given, kept.place)
        ctx.engine = engine = engine_of(given, asked.goes_back)
        ctx.found = found = engine.first_pass(given, ctx.size, kept)
        max_n, sum_n = raised(found.max, found.best, found.sum, given.targets)
        ctx.smoothing = smoothing = classifier.smoothing(given, ctx.size, classes)
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
