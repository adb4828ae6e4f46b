"""A classifier of which some classes take part is the dense one of these classes, to the digit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.config import ClassifierConfig
from harness.measure.phase import Phase
from harness.model import kept, sliced_classifier
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.group import Group
from harness.parallel.slices import slice_of
from tests.alone import group_of_one, meters
from tests.drawn import drawn
from tests.live_bytes import live_bytes
from tests.model.test_tiles import FEATURES, MARGINS, PARTS, Slopes, assert_equal, combined, dense
from tests.ranks import run_on_ranks

CLASSES, SEED, MICRO_BATCH = 23, 5, 11


def config_of(margin: str, share: float, smoothing: float = 0.0) -> ClassifierConfig:
    straight = margin == "straight_through"
    return ClassifierConfig(
        margin="arcface" if straight else margin,
        margin_scale=8.0,
        margin_size=0.4,
        **combined(PARTS),
        margin_slope="straight_through" if straight else "exact",
        label_smoothing=smoothing,
        sampling=share,
    )


def classifier_of(
    config: ClassifierConfig, group: Group | None = None, classes: int = CLASSES
) -> SlicedClassifier:
    found = SlicedClassifier(FEATURES, classes, config, group or group_of_one(), SEED).double()
    found.micro_batch = MICRO_BATCH
    return found


def batch(images: int, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, FEATURES, dtype=torch.float64, generator=generator)
    return features, torch.randint(classes, (images,), generator=generator)


def slopes(classifier: SlicedClassifier, features: Tensor, labels: Tensor) -> Slopes:
    features = features.clone().requires_grad_()
    loss = classifier(features, labels).loss
    loss.backward()
    bias = None if classifier.bias is None else classifier.bias.grad
    return Slopes(loss.detach(), features.grad, classifier.weight.grad, bias)


def expected(
    classifier: SlicedClassifier, features: Tensor, labels: Tensor, micro_batch: int = MICRO_BATCH
) -> Slopes:
    """Plain autograd of a classifier that has only the classes that a plain program draws."""
    config, classes = classifier._config, classifier.num_classes
    rows = drawn(config.sampling, SEED, micro_batch, slice_of(classes, 1, 0), labels.tolist())
    few = SlicedClassifier(FEATURES, len(rows), config, group_of_one(), SEED).double()
    few.weight.data = classifier.weight.detach()[rows]
    if few.bias is not None:
        few.bias.data = classifier.bias.detach()[rows]
    found = dense(few, features, torch.searchsorted(torch.tensor(rows), labels))
    weight = torch.zeros_like(classifier.weight).index_copy(0, torch.tensor(rows), found.weight)
    bias = found.bias
    if bias is not None:
        bias = torch.zeros_like(classifier.bias).index_copy(0, torch.tensor(rows), bias)
    return Slopes(found.loss, found.features, weight, bias)


@pytest.fixture(params=[1, 3, 10 * CLASSES])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Classes in a tile of up to 40 images' classifier."""
    monkeypatch.setitem(
        sliced_classifier.TILE_BYTES, "cpu", request.param * (2 * FEATURES + 40) * 8
    )
    return request.param


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scratch", [0, 1 << 20], ids=["again", "scratch"])
@pytest.mark.parametrize(("share", "images"), [(0.3, 5), (0.8, 40)])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.usefixtures("tile")
def test_the_first_micro_batch_overwrites_its_rows_and_the_others_add(
    margin: str,
    share: float,
    images: int,
    scratch: int,
    smoothing: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of three draws rows of its own; other rows keep their zeros."""
    monkeypatch.setitem(kept.SCRATCH_BYTES, "cpu", scratch)
    classifier = classifier_of(config_of(margin, share, smoothing))
    classifier.in_place = classifier.gradients_are_stale = True
    for parameter in classifier.parameters():
        parameter.grad = torch.zeros_like(parameter)
    total = [torch.zeros_like(each) for each in classifier.parameters()]
    rows = set()
    for number in range(3):
        classifier.micro_batch = number
        given = batch(images, seed=number)
        found, oracle = slopes(classifier, *given), expected(classifier, *given, number)
        total[0] += oracle.weight
        if oracle.bias is not None:
            total[1] += oracle.bias
        rows |= set(oracle.weight.any(dim=1).nonzero()[:, 0].tolist())
        torch.testing.assert_close(found.loss, oracle.loss, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(found.features, oracle.features, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(found.weight, total[0], rtol=1e-11, atol=1e-12)
        if found.bias is not None:
            torch.testing.assert_close(found.bias, total[1], rtol=1e-11, atol=1e-12)
    assert set(classifier.drawn_rows().tolist()) == rows
    rest = [each for each in range(CLASSES) if each not in rows]
    assert not any(parameter.grad[rest].any() for parameter in classifier.parameters())


def test_the_rows_of_a_step_are_those_since_its_first_micro_batch() -> None:
    classifier = classifier_of(config_of("none", 0.2))
    classifier.in_place = True
    for parameter in classifier.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(2):
        classifier.gradients_are_stale = True
        slopes(classifier, *batch(3))
        slopes(classifier, *batch(3))
    assert len(classifier.drawn_rows()) == 2 * 5


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 12),
    classes=st.integers(1, 30),
    tile=st.integers(1, 31),
    margin=st.sampled_from(MARGINS),
    smoothing=st.sampled_from([0.0, 0.1]),
    share=st.sampled_from([0.01, 0.3, 0.9]),
)
def test_any_shape(
    images: int, classes: int, tile: int, margin: str, smoothing: float, share: float
) -> None:
    classifier = classifier_of(config_of(margin, share, smoothing), classes=classes)
    given = batch(images, classes)
    before = sliced_classifier.TILE_BYTES["cpu"]
    sliced_classifier.TILE_BYTES["cpu"] = tile * (2 * FEATURES + images) * 8
    try:
        assert_equal(slopes(classifier, *given), expected(classifier, *given))
    finally:
        sliced_classifier.TILE_BYTES["cpu"] = before


@pytest.mark.parametrize("margin", MARGINS)
def test_all_classes_give_the_numbers_of_no_sampling_to_the_bit(margin: str) -> None:
    """With sampling=1, whatever the micro-batch; and to the digit if the draw is of all."""
    plain = classifier_of(config_of(margin, 1.0))
    plain.micro_batch = None
    for share, equal in ((1.0, torch.equal), (0.999, torch.allclose)):
        classifier = classifier_of(config_of(margin, share))
        own, other = slopes(plain, *batch(7)), slopes(classifier, *batch(7))
        pairs = zip(vars(own).values(), vars(other).values(), strict=True)
        assert all(equal(one, two) for one, two in pairs if one is not None)
        plain.zero_grad()


def test_evaluations_have_all_classes() -> None:
    found = [
        classifier_of(config_of("cosface", share)).predict(*batch(9), k=CLASSES)
        for share in (0.1, 1.0)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_half_precision_is_near() -> None:
    """Products in bf16, the softmax in float32, gradients of the drawn rows alone."""
    for margin in ("none", "arcface"):
        classifier = classifier_of(config_of(margin, 0.3, smoothing=0.1)).float()
        features, labels = batch(6)
        with torch.autocast("cpu", torch.bfloat16):
            found = slopes(classifier, features.float(), labels)
        oracle = expected(classifier.double(), features, labels)
        for key in ("loss", "features", "weight"):
            own, other = getattr(found, key).double(), getattr(oracle, key)
            assert float((own - other).norm() / other.norm()) < 0.02, key
        assert torch.equal(found.weight.any(dim=1), oracle.weight.any(dim=1))


def test_nothing_of_the_size_of_all_rows_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of the drawn tenth: rows are gathered tile by tile. Keys are a number a class, and
    exponentials wait in a tensor of their own."""
    classes, features, images, tile = 40_000, 256, 16, 200_000
    monkeypatch.setitem(sliced_classifier.TILE_BYTES, "cpu", tile)
    config = ClassifierConfig(margin="cosface", sampling=0.1)
    classifier = SlicedClassifier(features, classes, config, group_of_one(), seed=0)
    classifier.in_place = classifier.gradients_are_stale = True
    classifier.micro_batch = 0
    classifier.weight.grad = torch.zeros_like(classifier.weight)
    given, labels = torch.randn(images, features, requires_grad=True), torch.arange(images)
    classifier(given, labels).loss.backward()
    with live_bytes() as found:
        classifier(given, labels).loss.backward()
    keys, exponentials = 3 * 8 * classes, classes // 10 * images * 4
    assert found.peak < keys + exponentials + 2 * tile < classes // 10 * features * 4 / 2


@dataclass(frozen=True)
class Case:
    classes: int
    images: int
    """Of a rank."""
    share: float
    margin: str = "none"
    smoothing: float = 0.0
    own_class: int | None = None


CASES = {
    "uneven classes": Case(13, 4, 0.4),
    "one class per rank or little more": Case(4, 2, 0.5),
    "all positives on the first slice": Case(13, 4, 0.4, own_class=0),
    "all positives on the last slice": Case(13, 4, 0.4, own_class=12),
    "more positives than the share": Case(40, 30, 0.1),
    "more positives than the share, smoothed": Case(40, 30, 0.1, smoothing=0.2),
    "smoothed": Case(41, 3, 0.5, smoothing=0.1),
    "cosface": Case(41, 5, 0.3, margin="cosface"),
    "smoothed, arcface": Case(41, 5, 0.3, margin="arcface", smoothing=0.2),
    "combined": Case(29, 5, 0.3, margin="combined"),
}


def inputs(case: Case, ranks: int) -> tuple[Tensor, Tensor]:
    features, labels = batch(ranks * case.images, case.classes)
    return features, labels if case.own_class is None else torch.full_like(labels, case.own_class)


def on_this_rank() -> dict[str, Slopes]:
    n = dist.get_world_size()
    group = Group(tuple(range(n)), dist.get_rank(), 1, dist.group.WORLD, meters(), Phase.SLICE_WAIT)
    sliced_classifier.TILE_BYTES["cpu"] = 1000
    found = {}
    for name, case in CASES.items():
        config = config_of(case.margin, case.share, case.smoothing)
        classifier = classifier_of(config, group, case.classes)
        own = (each.chunk(n)[group.index] for each in inputs(case, n))
        found[name] = slopes(classifier, *own)
    return found


@pytest.fixture(scope="module", params=[2, 3])
def on_ranks(request: pytest.FixtureRequest) -> list[dict[str, Slopes]]:
    return run_on_ranks(on_this_rank, request.param)


@pytest.mark.parametrize("name", CASES)
def test_slices_draw_each_for_itself_and_are_one_softmax(
    on_ranks: list[dict[str, Slopes]], name: str
) -> None:
    case, ranks = CASES[name], len(on_ranks)
    features, labels = inputs(case, ranks)
    rows = [
        row
        for owner in range(ranks)
        for row in drawn(
            case.share, SEED, MICRO_BATCH, slice_of(case.classes, ranks, owner), labels.tolist()
        )
    ]
    config = config_of(case.margin, case.share, case.smoothing)
    whole = classifier_of(config, classes=case.classes)
    few = SlicedClassifier(FEATURES, len(rows), config, group_of_one(), SEED).double()
    few.weight.data = whole.weight.detach()[rows]
    oracle = dense(few, features, torch.searchsorted(torch.tensor(rows), labels))
    weight = torch.cat([found[name].weight for found in on_ranks])
    assert math.isfinite(float(oracle.loss))
    torch.testing.assert_close(weight[rows], oracle.weight, rtol=1e-11, atol=1e-12)
    rest = [each for each in range(case.classes) if each not in rows]
    assert not weight[rest].any()
    if oracle.bias is not None:
        bias = torch.cat([found[name].bias for found in on_ranks])
        torch.testing.assert_close(bias[rows], oracle.bias, rtol=1e-11, atol=1e-12)
    for rank, found in enumerate(on_ranks):
        own = slice(rank * case.images, (rank + 1) * case.images)
        torch.testing.assert_close(found[name].loss, oracle.loss, rtol=1e-11, atol=1e-12)
        # Of the mean loss over the rank's own images.
        torch.testing.assert_close(
            found[name].features, oracle.features[own] * ranks, rtol=1e-11, atol=1e-12
        )
