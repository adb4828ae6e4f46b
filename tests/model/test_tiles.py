"""Tiles of any size, exponentials kept anywhere, gradients written or added: the same numbers."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from harness.config import ClassifierConfig
from harness.model import kept, sliced_classifier
from harness.model.kept import LogitShape, place
from harness.model.margins import margin_of
from harness.model.sliced_classifier import SlicedClassifier
from tests.alone import group_of_one

CLASSES, FEATURES = 23, 9
PARTS = (1.4, 0.3, 0.15)
MARGINS = ("none", "cosface", "arcface", "combined", "straight_through")


@dataclass(frozen=True)
class Slopes:
    loss: Tensor
    features: Tensor
    weight: Tensor
    bias: Tensor | None


def combined(parts: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("margin_m1", "margin_m2", "margin_m3"), parts, strict=True))


def classifier_of(margin: str, classes: int = CLASSES, smoothing: float = 0.0) -> SlicedClassifier:
    straight = margin == "straight_through"
    slope = "straight_through" if straight else "exact"
    config = ClassifierConfig(
        margin="arcface" if straight else margin,
        margin_scale=8.0,
        margin_size=0.4,
        **combined(PARTS),
        margin_slope=slope,
        label_smoothing=smoothing,
    )
    return SlicedClassifier(FEATURES, classes, config, group_of_one(), seed=0).double()


def batch(images: int, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, FEATURES, dtype=torch.float64, generator=generator)
    return features, torch.randint(classes, (images,), generator=generator)


def dense(classifier: SlicedClassifier, features: Tensor, labels: Tensor) -> Slopes:
    """Plain autograd of the whole."""
    config = classifier._config
    features = features.clone().requires_grad_()
    weight = classifier.weight.detach().clone().requires_grad_()
    rows = torch.arange(len(labels))
    if config.margin == "none":
        assert classifier.bias is not None
        bias = classifier.bias.detach().clone().requires_grad_()
        logits = features @ weight.T + bias
    else:
        bias = None
        cosines = functional.normalize(features) @ functional.normalize(weight).T
        target = cosines[rows, labels] - config.margin_size
        if config.margin == "arcface":
            angle = cosines[rows, labels].arccos() + config.margin_size
            line = cosines[rows, labels] - config.margin_size * math.sin(config.margin_size)
            target = torch.where(angle < math.pi, angle.cos(), line)
        if config.margin == "combined":
            times, turn, less = PARTS
            angle = times * cosines[rows, labels].arccos() + turn
            line = cosines[rows, labels] - math.cos((math.pi - turn) / times) - 1
            target = torch.where(angle < math.pi, angle.cos(), line) - less
        if config.margin_slope == "straight_through":
            own = cosines[rows, labels]
            target = own + (target - own).detach()
        logits = cosines.index_put((rows, labels), target) * config.margin_scale
    loss = functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    loss.backward()
    assert features.grad is not None
    assert weight.grad is not None
    return Slopes(loss.detach(), features.grad, weight.grad, None if bias is None else bias.grad)


def slopes(classifier: SlicedClassifier, features: Tensor, labels: Tensor) -> Slopes:
    features = features.clone().requires_grad_()
    loss = classifier(features, labels).loss
    loss.backward()
    assert features.grad is not None
    assert classifier.weight.grad is not None
    bias = None if classifier.bias is None else classifier.bias.grad
    return Slopes(loss.detach(), features.grad, classifier.weight.grad, bias)


def assert_equal(found: Slopes, expected: Slopes) -> None:
    for key, own in vars(found).items():
        torch.testing.assert_close(own, getattr(expected, key), rtol=1e-11, atol=1e-12, msg=key)


def tile_of(monkeypatch: pytest.MonkeyPatch, classes: int, images: int) -> None:
    row = (2 * FEATURES + images) * 8
    monkeypatch.setitem(sliced_classifier.TILE_BYTES, "cpu", classes * row)


@pytest.mark.parametrize("tile", [1, 7, CLASSES, 10 * CLASSES])
@pytest.mark.parametrize("images", [1, 5, FEATURES, 40])
@pytest.mark.parametrize("margin", MARGINS)
def test_tiles_of_any_size_give_the_same(
    margin: str, images: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile_of(monkeypatch, tile, images)
    classifier, given = classifier_of(margin), batch(images)
    assert_equal(slopes(classifier, *given), dense(classifier, *given))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scratch", [0, 1 << 20], ids=["again", "scratch"])
@pytest.mark.parametrize("images", [5, 40])
@pytest.mark.parametrize("margin", MARGINS)
def test_in_place_the_first_overwrites_and_the_others_add(
    margin: str, images: int, scratch: int, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three micro-batches; what the gradients held before is no number at all."""
    tile_of(monkeypatch, 7, images)
    monkeypatch.setitem(kept.SCRATCH_BYTES, "cpu", scratch)
    classifier = classifier_of(margin, smoothing=smoothing)
    classifier.in_place = classifier.gradients_are_stale = True
    for parameter in classifier.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    weight, bias = classifier.weight.grad, None if classifier.bias is None else classifier.bias.grad
    total = [torch.zeros_like(each) for each in classifier.parameters()]
    for number in range(3):
        given = batch(images, seed=number)
        found, expected = slopes(classifier, *given), dense(classifier, *given)
        total[0] += expected.weight
        if expected.bias is not None:
            total[1] += expected.bias
        torch.testing.assert_close(found.features, expected.features, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(found.weight, total[0], rtol=1e-11, atol=1e-12)
        if found.bias is not None:
            torch.testing.assert_close(found.bias, total[1], rtol=1e-11, atol=1e-12)
        assert not classifier.gradients_are_stale
    assert classifier.weight.grad is weight, "it is written where it lies"
    assert classifier.bias is None or classifier.bias.grad is bias


def test_combined_margins_have_the_others_among_them() -> None:
    cosines = torch.linspace(-0.85, 1, 50, dtype=torch.float64)
    for own, parts in (("cosface", (1.0, 0.0, 0.4)), ("arcface", (1.0, 0.4, 0.0))):
        plain = margin_of(ClassifierConfig(margin=own, margin_size=0.4))
        general = margin_of(ClassifierConfig(margin="combined", **combined(parts)))
        assert plain is not None
        assert general is not None
        torch.testing.assert_close(general.move(cosines), plain.move(cosines))


@pytest.mark.parametrize("parts", [PARTS, (1.0, 0.5, 0.0), (4.0, 0.0, 0.1), (0.5, 0.2, 0.0)])
def test_a_combined_margin_falls_with_the_angle_and_never_jumps(
    parts: tuple[float, float, float],
) -> None:
    margin = margin_of(ClassifierConfig(margin="combined", **combined(parts)))
    assert margin is not None
    moved = margin.move(torch.linspace(-1, 1, 20_001, dtype=torch.float64))
    steps = moved.diff()
    assert steps.min() >= 0
    assert steps.max() < 0.05


def test_who_waits_for_a_gradient_hears_of_one_that_is_written_past_autograd() -> None:
    for in_place in (False, True):
        classifier, heard = classifier_of("none"), list[Tensor]()
        for parameter in classifier.parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.register_post_accumulate_grad_hook(heard.append)
        classifier.in_place = in_place
        slopes(classifier, *batch(4))
        assert {id(each) for each in heard} == {id(each) for each in classifier.parameters()}
        assert len(heard) == 2, "once each"


def test_there_is_no_second_way_back() -> None:
    classifier, (features, labels) = classifier_of("none"), batch(4)
    loss = classifier(features.requires_grad_(), labels).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second"):
        loss.backward()


def test_without_a_way_back_nothing_is_kept() -> None:
    classifier, (features, labels) = classifier_of("none"), batch(4)
    classifier.in_place = True  # and no gradient to write to
    with torch.no_grad():
        found = classifier(features, labels).loss
    assert found == pytest.approx(float(dense(classifier, features, labels).loss))


@pytest.mark.parametrize("size", [1e4, -1e4, 1e10])
def test_logits_of_any_size_have_exact_statistics(
    size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile's sum underflows beside another's."""
    tile_of(monkeypatch, 5, 6)
    classifier, (features, labels) = classifier_of("none"), batch(6)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias[7:12] = size
        classifier.bias[20:] = -size
    assert_equal(slopes(classifier, features, labels), dense(classifier, features, labels))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spoilt", [0, 11, CLASSES - 1])
def test_a_logit_that_is_not_finite_is_seen_in_the_loss(
    value: float, spoilt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile_of(monkeypatch, 7, 4)
    classifier, (features, _) = classifier_of("none"), batch(4)
    with torch.no_grad():
        classifier.bias[spoilt] = value
    labels = torch.tensor([spoilt, 1, 2, 3])
    scores = classifier(features, labels)
    assert not scores.loss.isfinite()
    assert scores.top1 == 0 or value == -math.inf


def test_where_exponentials_are_kept() -> None:
    """In the gradient's own rows as long as they are free and long enough; else by their size."""

    def found(images: int, product_bytes: int, added: bool) -> str:
        shape = LogitShape(images, features=512, classes=100_000)
        return place(shape, product_bytes, gradient_bytes=4, occupied=added, cards=False)

    assert found(128, product_bytes=4, added=False) == "gradient"
    assert found(512, product_bytes=4, added=False) == "gradient"
    assert found(1024, product_bytes=2, added=False) == "gradient"
    assert found(128, product_bytes=4, added=True) == "scratch"
    assert found(513, product_bytes=4, added=False) == "again"
    assert found(1025, product_bytes=2, added=False) == "again"


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 12),
    classes=st.integers(1, 30),
    tile=st.integers(1, 31),
    margin=st.sampled_from(MARGINS),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_any_shape(images: int, classes: int, tile: int, margin: str, smoothing: float) -> None:
    classifier, given = classifier_of(margin, classes, smoothing), batch(images, classes)
    before = sliced_classifier.TILE_BYTES["cpu"]
    sliced_classifier.TILE_BYTES["cpu"] = tile * (2 * FEATURES + images) * 8
    try:
        assert_equal(slopes(classifier, *given), dense(classifier, *given))
    finally:
        sliced_classifier.TILE_BYTES["cpu"] = before
