"""Under autocast only the operands of the logits' products are rounded, nothing that follows."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from harness.config import ClassifierConfig
from harness.model import passes, sliced_classifier
from harness.model.operands import Operands
from harness.model.sliced_classifier import SlicedClassifier
from tests.alone import group_of_one
from tests.model.test_card_passes import needs_triton

CLASSES, FEATURES, IMAGES = 50, 16, 12


def made(margin: str, smoothing: float = 0.0) -> SlicedClassifier:
    values = {"margin": margin, "margin_scale": 16.0, "label_smoothing": smoothing}
    config = ClassifierConfig.model_validate(values)
    return SlicedClassifier(FEATURES, CLASSES, config, group_of_one(), seed=0)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(IMAGES, FEATURES, generator=generator)
    return features, torch.randint(CLASSES, (IMAGES,), generator=generator)


def rounded(classifier: SlicedClassifier, features: Tensor) -> Tensor:
    """What autocast makes of the features."""
    cosines = classifier.scale is not None
    return (functional.normalize(features) if cosines else features).bfloat16()


@pytest.mark.parametrize("margin", ["none", "cosface", "arcface"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rounded_features_give_the_same_without_autocast(
    margin: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = images()
    found = []
    for autocast in (True, False):
        classifier = made(margin, smoothing)
        if not autocast:
            monkeypatch.setattr(classifier, "_operand", lambda f, c=classifier: rounded(c, f))
        own = features.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            scores = classifier(own, labels)
            best, losses = classifier.predict(features, labels)
        scores.loss.backward()
        assert own.grad is not None
        assert classifier.weight.grad is not None
        found.append((scores.loss, own.grad, classifier.weight.grad, best, losses))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def exact_logits(classifier: SlicedClassifier, features: Tensor) -> Tensor:
    """Of the rounded operands, in float64 [B, C]."""
    weight, scale = classifier.weight.detach(), classifier.scale
    lengths = 1.0 if scale is None else weight.double().norm(dim=1)
    products = rounded(classifier, features).double() @ weight.bfloat16().double().T
    return products / lengths * (scale or 1.0)


@pytest.mark.parametrize("margin", ["none", "cosface"])
def test_logits_are_not_rounded_after_their_product(margin: str) -> None:
    """Neither those that are judged nor those that are trained on."""
    classifier, (features, labels) = made(margin), images()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        best, losses = classifier.predict(features, labels)
    plain = exact_logits(classifier, features)
    expected = functional.cross_entropy(plain, labels, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(best, plain.topk(5).indices)
    if margin == "none":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            loss = classifier(features, labels).loss
        torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-5, atol=1e-5)


def test_logits_that_bf16_takes_for_equal_are_told_apart() -> None:
    """Ranks of the classes would be those of their numbers otherwise."""
    config = ClassifierConfig()
    classifier = SlicedClassifier(2, 4, config, group_of_one(), seed=0)
    with torch.no_grad():
        rows = torch.tensor([[1.0, step / 1024] for step in range(4)])
        assert torch.equal(rows, rows.bfloat16().float())
        assert len((rows.sum(dim=1)).bfloat16().unique()) == 1
        classifier.weight.copy_(rows)
        with torch.autocast("cpu", torch.bfloat16):
            best, _ = classifier.predict(torch.ones(2, 2), torch.tensor([0, 3]))
    assert best.tolist() == [[3, 2, 1, 0]] * 2


@needs_triton
@pytest.mark.parametrize("margin", ["none", "cosface", "arcface"])
def test_a_card_s_target_is_as_exact_as_its_other_logits(
    margin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part of the card's first pass that is torch's, as the classifier calls it."""
    from harness.model import card_passes

    classifier, (features, labels) = made(margin), images()
    targets = []

    class Engine:
        @staticmethod
        def first_pass(given: Operands, size: int, kept: object) -> object:
            found = passes.first_pass(given, size, None)
            card_passes._find_targets(given, found)
            targets.append(found.plain)
            return found

    monkeypatch.setattr(sliced_classifier, "engine_of", lambda *given: Engine)
    with torch.autocast("cpu", torch.bfloat16):
        classifier(features, labels)
    rows = classifier.weight.detach()[labels]
    rows = functional.normalize(rows) if classifier.scale else rows
    products = rows.bfloat16().double() * rounded(classifier, features).double()
    expected = products.sum(1) * (classifier.scale or 1.0)
    torch.testing.assert_close(targets[0].double(), expected, rtol=1e-5, atol=1e-6)
