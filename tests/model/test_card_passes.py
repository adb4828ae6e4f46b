"""The kernels between a card's products do what the plain passes do; without a card by Triton's
interpreter."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from harness.config import ClassifierConfig
from harness.model import sliced_classifier
from harness.model.sliced_classifier import SlicedClassifier
from tests.alone import group_of_one
from tests.horovodrun import ROOT

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="no Triton: pip install triton==3.9.0"
)
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no card")


@needs_triton
def test_in_every_place_with_every_margin_they_find_the_same() -> None:
    command = [sys.executable, "-m", "tests.model.card_passes_program"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    apart = json.loads(done.stdout)
    assert len(apart) == 23
    assert {name: far for name, far in apart.items() if not far < 3e-5} == {}


@needs_card
@pytest.mark.parametrize("margin", ["none", "cosface", "arcface"])
@pytest.mark.parametrize(("images", "sampling"), [(64, 1.0), (200, 1.0), (64, 0.1)])
def test_a_card_finds_what_a_processor_finds(margin: str, images: int, sampling: float) -> None:
    """And the host waits for nothing of it; nor of a draw, unless more images than its share has
    classes might all have another."""
    config = ClassifierConfig(margin=margin, margin_scale=16.0, sampling=sampling)
    torch.manual_seed(0)
    features, labels = torch.randn(images, 96), torch.randint(3001, (images,))
    found = []
    for device in ("cpu", "cuda"):
        classifier = SlicedClassifier(96, 3001, config, group_of_one(), seed=0).to(device)
        for parameter in classifier.parameters():
            unwritten = torch.nan if sampling == 1 else 0.0
            parameter.grad = torch.full_like(parameter, unwritten)
        classifier.micro_batch = 5
        classifier.in_place = classifier.gradients_are_stale = True
        own, given = features.to(device).requires_grad_(), labels.to(device)
        for _ in range(2):
            torch.cuda.set_sync_debug_mode("error")
            scores = classifier(own, given)
            scores.loss.backward()
            torch.cuda.set_sync_debug_mode("default")
        grads = [own.grad, *(each.grad for each in classifier.parameters())]
        found.append([scores.loss, scores.top1, *grads])
    for on_processor, on_card in zip(*found, strict=True):
        torch.testing.assert_close(on_card.cpu(), on_processor, rtol=1e-4, atol=1e-6)


@needs_card
@pytest.mark.parametrize("tile_bytes", [1 << 18, 1 << 30])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_card_judges_as_a_processor_does(
    autocast: bool, tile_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole numbers, of which many logits are equal and all are exact."""
    monkeypatch.setitem(sliced_classifier.TILE_BYTES, "cuda", tile_bytes)
    classifier = SlicedClassifier(16, 3001, ClassifierConfig(), group_of_one(), seed=0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-3, 4, (64, 16), generator=generator).float()
    with torch.no_grad():
        classifier.weight.copy_(torch.randint(-3, 4, (3001, 16), generator=generator))
    labels = torch.randint(3001, (64,), generator=generator)
    found = []
    for device in ("cpu", "cuda"):
        classifier = classifier.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            found.append(classifier.predict(features.to(device), labels.to(device)))
    (best, losses), (on_card, losses_on_card) = found
    assert torch.equal(on_card.cpu(), best)
    torch.testing.assert_close(losses_on_card.cpu(), losses, rtol=1e-6, atol=1e-5)
