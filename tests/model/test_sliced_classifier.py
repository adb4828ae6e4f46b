"""The sliced classifier, on real ranks, equals a dense one in float64: every number it gives."""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from harness.config import ClassifierConfig
from harness.measure import traffic as formulas
from harness.measure.phase import Phase
from harness.measure.traffic import Traffic
from harness.model import sliced_classifier
from harness.model.initial import INIT_BLOCK, initial_weight
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.group import Group
from harness.parallel.slices import slice_of
from tests.alone import group_of_one, meters
from tests.ranks import run_on_ranks

FEATURES = 6
TILE_BYTES = 1000
"""Tiles of a few classes: the largest cases have many."""
SHARE = 0.25
"""What the loss is multiplied by before the way back, as when windows have 4 micro-batches."""


@dataclass(frozen=True)
class Case:
    classes: int = 13
    images: int = 4
    """Of a rank."""
    scale: float = 1.0
    """On the weight, and so on the logits."""
    own_class: int | None = None
    """Every image is of this one; otherwise of any."""
    margin: str = "none"
    towards: float = 0.0
    """How far features lie along, or against, their own class: then cosines are near 1 and -1."""
    noise: float = 1.0
    """On the features."""
    dtype: torch.dtype = torch.float64
    autocast: bool = False
    smoothing: float = 0.0

    @property
    def config(self) -> ClassifierConfig:
        return ClassifierConfig(
            margin=self.margin,
            margin_scale=8.0,
            margin_size=0.4,
            label_smoothing=self.smoothing,
        )


CASES = {
    "uneven classes, more of them than images": Case(),
    "one class per rank or little more": Case(classes=3),
    "fewer classes than the best five": Case(classes=4, images=7),
    "all positives on the first slice": Case(own_class=0),
    "all positives on the last slice": Case(own_class=12),
    "one image": Case(images=1),
    "many images": Case(classes=40, images=50),
    "large logits": Case(scale=1e4),
    "cosface": Case(margin="cosface"),
    "cosface, one image": Case(margin="cosface", images=1, own_class=12),
    "arcface": Case(margin="arcface", images=40, towards=2.0),
    "smoothed": Case(smoothing=0.1),
    "smoothed, large logits": Case(smoothing=0.3, scale=1e4),
    "smoothed, cosface": Case(smoothing=0.2, margin="cosface", images=20),
    "smoothed, arcface": Case(smoothing=0.2, margin="arcface", images=40, towards=2.0),
}
NOT_EXACT = {
    "float32": Case(classes=2000, images=40, dtype=torch.float32),
    "float32, large logits": Case(scale=1e4, dtype=torch.float32),
    "bf16": Case(classes=2000, images=40, dtype=torch.float32, autocast=True),
    "bf16 cosface": Case(classes=2000, dtype=torch.float32, autocast=True, margin="cosface"),
    "arcface along the class": Case(margin="arcface", towards=1.0, noise=0.0),
}


@dataclass(frozen=True)
class Inputs:
    features: Tensor
    """[n, D], of all ranks."""
    labels: Tensor
    weight: Tensor
    bias: Tensor


def inputs(case: Case, ranks: int) -> Inputs:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    n = ranks * case.images
    labels = torch.randint(0, case.classes, (n,), generator=generator)
    if case.own_class is not None:
        labels = torch.full((n,), case.own_class)
    weight = normal(case.classes, FEATURES) * case.scale
    along = weight[labels] * (1 - 2 * (torch.arange(n) % 2))[:, None]
    features = normal(n, FEATURES) * case.noise + along * case.towards
    return Inputs(features, labels, weight, normal(case.classes))


@dataclass(frozen=True)
class Found:
    """What one rank is given: gradients are of SHARE x loss."""

    loss: Tensor
    top1: Tensor
    features_grad: Tensor
    """[B, D], of this rank's images."""
    weight_grad: Tensor
    """[C, D]: the slices of all ranks, joined by the test."""
    bias_grad: Tensor | None
    best: Tensor
    """[B, 5], this rank's images."""
    losses: Tensor
    """[B]."""
    sent: float = 0.0
    """Bytes of the way forth and back."""


class Large(int):
    """So many ranks, who add statistics up as large groups do."""


def on_this_rank(gathered_ranks: int) -> dict[str, Found]:
    formulas.GATHERED_RANKS = gathered_ranks
    sliced_classifier.TILE_BYTES["cpu"] = TILE_BYTES
    n = dist.get_world_size()
    process_group = dist.group.WORLD if n > 1 else None
    counted = meters()
    group = Group(tuple(range(n)), dist.get_rank(), 1, process_group, counted, Phase.SLICE_WAIT)
    cases = CASES | NOT_EXACT
    return {name: sliced(case, group, counted.traffic) for name, case in cases.items()}


def sliced(case: Case, group: Group, traffic: Traffic) -> Found:
    given = inputs(case, group.size)
    classifier = SlicedClassifier(FEATURES, case.classes, case.config, group, seed=0)
    classifier = classifier.to(case.dtype)
    owned = slice(classifier.owned.start, classifier.owned.stop)
    with torch.no_grad():
        classifier.weight.copy_(given.weight[owned])
        if classifier.bias is not None:
            classifier.bias.copy_(given.bias[owned])
    features = given.features.to(case.dtype).chunk(group.size)[group.index].requires_grad_()
    labels = given.labels.chunk(group.size)[group.index]
    before = traffic.total
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        scores = classifier(features, labels)
    (scores.loss * SHARE).backward()
    sent = traffic.total - before
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        best, losses = classifier.predict(features, labels)
    return Found(
        loss=scores.loss.detach(),
        top1=scores.top1,
        features_grad=features.grad,
        weight_grad=classifier.weight.grad,
        bias_grad=None if classifier.bias is None else classifier.bias.grad,
        best=best,
        losses=losses,
        sent=sent.in_node,
    )


def on_ranks(ranks: int) -> list[dict[str, Found]]:
    return _on_ranks(int(ranks), 1 if isinstance(ranks, Large) else ranks)


@cache
def _on_ranks(ranks: int, gathered_ranks: int) -> list[dict[str, Found]]:
    return run_on_ranks(on_this_rank, ranks, gathered_ranks)


def with_margin(cosine: Tensor, config: ClassifierConfig) -> Tensor:
    """The target's cosine, as the papers write it; arcface's line beyond pi - m is this code's."""
    size = config.margin_size
    if config.margin == "cosface":
        return cosine - size
    angle = cosine.arccos()
    return torch.where(angle + size < math.pi, (angle + size).cos(), cosine - size * math.sin(size))


def dense_logits(case: Case, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if case.margin == "none":
        return features @ weight.T + bias
    lengths = features.norm(dim=1)[:, None] * weight.norm(dim=1)
    return features @ weight.T / lengths


def dense(case: Case, ranks: int, rank: int) -> Found:
    """All classes in one place, plain autograd; the part of `rank`."""
    given = inputs(case, ranks)
    features, weight, bias = (
        tensor.clone().requires_grad_() for tensor in (given.features, given.weight, given.bias)
    )
    logits = plain = dense_logits(case, features, weight, bias)
    rows = torch.arange(len(given.labels))
    if case.margin != "none":
        scale = case.config.margin_scale
        target = with_margin(plain[rows, given.labels], case.config)
        logits = plain.index_put((rows, given.labels), target) * scale
        plain = plain * scale
    losses = functional.cross_entropy(
        logits, given.labels, reduction="none", label_smoothing=case.smoothing
    )
    own = slice(rank * case.images, (rank + 1) * case.images)
    mean = losses.mean()
    weight_grad, bias_grad = torch.autograd.grad(
        mean * SHARE, (weight, bias), retain_graph=True, allow_unused=True
    )
    (features_grad,) = torch.autograd.grad(losses[own].mean() * SHARE, features)
    return Found(
        loss=mean.detach(),
        top1=(logits.argmax(1) == given.labels).double().mean(),
        features_grad=features_grad[own],
        weight_grad=weight_grad,
        bias_grad=bias_grad,
        best=plain.topk(min(5, case.classes)).indices[own],
        losses=-torch.log_softmax(plain, 1)[rows, given.labels][own].detach(),
    )


def joined(ranks: int, name: str) -> list[Found]:
    """What each rank found, with the whole gradient of the weight and the bias."""
    found = [rank[name] for rank in on_ranks(ranks)]
    weight_grad = torch.cat([each.weight_grad for each in found])
    biases = [each.bias_grad for each in found if each.bias_grad is not None]
    bias_grad = torch.cat(biases) if biases else None
    return [
        Found(**{**vars(each), "weight_grad": weight_grad, "bias_grad": bias_grad})
        for each in found
    ]


RANKS = pytest.mark.parametrize(
    "ranks", [1, 2, 3, Large(3)], ids=["1", "2", "3", "3-as-large-groups-do"]
)
EXACT = pytest.mark.parametrize("name", CASES)


@RANKS
@EXACT
def test_everything_equals_the_dense_classifier(ranks: int, name: str) -> None:
    for rank, found in enumerate(joined(ranks, name)):
        expected = dense(CASES[name], ranks, rank)
        assert torch.equal(found.best, expected.best)
        for key in ("loss", "top1", "features_grad", "weight_grad", "bias_grad", "losses"):
            own, oracle = getattr(found, key), getattr(expected, key)
            torch.testing.assert_close(own, oracle, rtol=1e-11, atol=1e-11, msg=f"{key} {own}")


@RANKS
@pytest.mark.parametrize("name", CASES)
def test_the_scores_are_equal_on_all_ranks(ranks: int, name: str) -> None:
    first, *others = joined(ranks, name)
    assert all(torch.equal(first.loss, other.loss) for other in others)
    assert all(torch.equal(first.top1, other.top1) for other in others)


@RANKS
def test_a_wrong_image_under_large_logits_costs_what_it_costs(ranks: int) -> None:
    """A probability that is clamped at 1e-30 would cost 69 and teach nothing."""
    for name in ("large logits", "float32, large logits"):
        case = (CASES | NOT_EXACT)[name]
        expected = dense(case, ranks, 0)
        found = joined(ranks, name)[0]
        assert expected.losses.max() > 1e3
        torch.testing.assert_close(found.losses.double(), expected.losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            found.weight_grad.double(), expected.weight_grad, rtol=1e-5, atol=1e-5
        )


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@RANKS
@pytest.mark.parametrize(
    ("name", "tolerance"), [("float32", 1e-5), ("bf16", 0.02), ("bf16 cosface", 0.02)]
)
def test_lower_precision_is_near_and_the_softmax_stays_float32(
    ranks: int, name: str, tolerance: float
) -> None:
    case = NOT_EXACT[name]
    for rank, found in enumerate(joined(ranks, name)):
        expected = dense(case, ranks, rank)
        for key in ("loss", "features_grad", "weight_grad", "losses"):
            assert relative_error(getattr(found, key), getattr(expected, key)) < tolerance, key
        assert found.loss.dtype == found.losses.dtype == torch.float32
        assert found.weight_grad.dtype == found.features_grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "feature_bytes", "label_bytes", "statistic_bytes"),
    [("many images", 8, 8, 8), ("float32", 4, 4, 4), ("bf16", 2, 4, 4), ("bf16 cosface", 2, 4, 4)],
)
def test_what_a_micro_batch_sends(
    name: str, feature_bytes: int, label_bytes: int, statistic_bytes: int
) -> None:
    """Features there and back, labels with them, three numbers for each gathered image."""
    images = (CASES | NOT_EXACT)[name].images
    features, statistics = images * FEATURES * feature_bytes, 3 * 3 * images * statistic_bytes
    expected = 2 * (2 * features + images * label_bytes + statistics)
    assert [found.sent for found in joined(3, name)] == [expected] * 3
    # 2(n-1)/n of the maximum's row, and of the two rows of sums.
    summed = 2 * (2 * features + images * label_bytes) + 2 * 2 / 3 * statistics
    assert [found.sent for found in joined(Large(3), name)] == pytest.approx([summed] * 3)


@RANKS
def test_bf16_is_really_bf16(ranks: int) -> None:
    found = joined(ranks, "bf16")[0]
    assert (
        relative_error(found.features_grad, dense(NOT_EXACT["bf16"], ranks, 0).features_grad) > 1e-4
    )


@RANKS
def test_arcface_stays_finite_where_the_angle_has_no_slope(ranks: int) -> None:
    for found in joined(ranks, "arcface along the class"):
        assert torch.isfinite(found.features_grad).all()
        assert torch.isfinite(found.weight_grad).all()


def test_arcface_cases_lie_on_both_sides_of_the_last_angle() -> None:
    """Otherwise the comparison above would not see the line past pi - m."""
    case = CASES["arcface"]
    given = inputs(case, 1)
    cosines = dense_logits(case, given.features, given.weight, given.bias)
    own = cosines[torch.arange(len(given.labels)), given.labels]
    beyond = own < -math.cos(case.config.margin_size)
    assert 4 < int(beyond.sum()) < len(own) - 4


@pytest.mark.parametrize("margin", ["cosface", "arcface"])
def test_a_margin_of_zero_is_none(margin: str) -> None:
    given = inputs(Case(), 1)
    config = ClassifierConfig(margin=margin, margin_size=0.0, margin_scale=8.0)
    classifier = SlicedClassifier(FEATURES, 13, config, group_of_one(), seed=0).double()
    cosines = functional.normalize(given.features) @ functional.normalize(classifier.weight).T
    expected = functional.cross_entropy(cosines * 8, given.labels)
    found = classifier(given.features, given.labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3 * INIT_BLOCK), st.integers(1, 9), st.integers(0, 2**31))
def test_initial_weights_do_not_depend_on_the_slicing(classes: int, owners: int, seed: int) -> None:
    whole = initial_weight(seed, 0, classes, 2)
    slices = [slice_of(classes, owners, owner) for owner in range(owners)]
    parts = [initial_weight(seed, each.start, each.stop, 2) for each in slices]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique(dim=0)) == classes, "two classes start from the same weights"


def test_initial_weights_depend_on_the_seed_and_have_unit_length() -> None:
    one, other = (initial_weight(seed, 0, 5000, 64) for seed in (0, 1))
    assert len(torch.cat((one, other)).unique(dim=0)) == 10_000
    assert one.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.01)


def test_a_classifier_starts_from_its_classes_rows_and_no_bias() -> None:
    classifier = SlicedClassifier(FEATURES, 13, ClassifierConfig(), group_of_one(), seed=3)
    assert torch.equal(classifier.weight, initial_weight(3, 0, 13, FEATURES))
    assert not classifier.bias.any()
