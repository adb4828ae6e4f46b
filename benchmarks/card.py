"""`python -m benchmarks.card`: times the classifier and the trainer's step on one card.

The classifier's variants alternate in one run. `card ms` is the time in which the card computed,
without gaps in which it waited for the host; `extra MB` is the peak that a step allocates beyond
weight, gradient and features. The result is a page.
"""

import argparse
import gc
import json
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.card_page import page
from benchmarks.card_step import (
    CARD,
    FEATURES,
    MARGIN,
    SCALE,
    STEPS,
    card_milliseconds,
    group,
    milliseconds,
    step,
    step_config,
)
from harness.config import ClassifierConfig
from harness.model.margins import margin_of
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.world import one_precision

SHAPES = ((125_000, 1024), (1_000_000, 1024), (1_000_000, 256))
"""Pairs of classes in a slice and gathered images."""
MARGINS = ("none", "cosface", "arcface")
ROUNDS, WARM = 15, 3


def settings(margin: str) -> ClassifierConfig:
    values = {"margin": margin, "margin_scale": SCALE, "margin_size": MARGIN}
    return ClassifierConfig.model_validate(values)


def moved(margin: str, cosines: Tensor) -> Tensor:
    own = margin_of(settings(margin))
    assert own is not None
    return own.move(cosines)


def classifier(classes: int, margin: str) -> SlicedClassifier:
    """A classifier on the card, with gradients that micro-batches write to in place."""
    made = SlicedClassifier(FEATURES, classes, settings(margin), group(), seed=0).to(CARD)
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.in_place = True
    return made


def dense_loss(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, margin: str
) -> Tensor:
    """The loss as usually written in torch: all logits at once, margins in at least float32."""
    if margin == "none":
        return functional.cross_entropy(functional.linear(features, weight, bias), labels)
    cosines = functional.linear(functional.normalize(features), functional.normalize(weight))
    own = cosines.gather(1, labels[:, None])
    target = moved(margin, own.to(torch.promote_types(own.dtype, torch.float32))).to(own.dtype)
    return functional.cross_entropy(cosines.scatter(1, labels[:, None], target) * SCALE, labels)


def products(weight: Tensor, features: Tensor) -> Callable[[], None]:
    """The three matrix products that any exact classifier needs, with results in float32."""
    weight, features = weight.bfloat16(), features.bfloat16()
    slopes = torch.randn(len(weight), len(features), device=CARD).bfloat16()

    def multiply() -> None:
        torch.mm(weight, features.T, out_dtype=torch.float32)
        torch.mm(slopes.T, weight, out_dtype=torch.float32)
        torch.mm(slopes, features, out_dtype=torch.float32)

    return multiply


def variants_of(classes: int, images: int, margin: str) -> dict[str, Callable[[], None]]:
    own = classifier(classes, margin)
    weight = own.weight.detach().requires_grad_()
    bias = None if own.bias is None else own.bias.detach().requires_grad_()
    features = torch.randn(images, FEATURES, device=CARD, requires_grad=True)
    labels = torch.randint(classes, (images,), device=CARD)

    def sliced(stale: bool = True) -> None:
        own.gradients_are_stale, features.grad = stale, None
        with torch.autocast("cuda", torch.bfloat16):
            scores = own(features, labels)
        scores.loss.backward()

    def dense(loss: Callable[..., Tensor]) -> None:
        weight.grad = features.grad = None
        if bias is not None:
            bias.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            found = loss(features, labels, weight, bias, margin)
        found.backward()
        weight.grad = None

    compiled = torch.compile(dense_loss, dynamic=False)
    return {
        "three products": products(weight.detach(), features.detach()),
        "sliced classifier": sliced,
        "sliced classifier, later micro-batch": lambda: sliced(stale=False),
        "torch, autocast": lambda: dense(dense_loss),
        "torch, autocast, torch.compile": lambda: dense(compiled),
    }


def extra_bytes(step: Callable[[], None]) -> int:
    """Peak of the bytes that a step allocates beyond those allocated before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measured(variants: Mapping[str, Callable[[], None]]) -> dict[str, dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(WARM + ROUNDS):
        for name, variant in variants.items():
            took = milliseconds(variant)
            if number >= WARM:
                times[name].append(took)
    found = {}
    for name, variant in variants.items():
        low, _, high = statistics.quantiles(times[name], n=4)
        found[name] = {
            "ms": statistics.median(times[name]),
            "quartiles": [low, high],
            "card_ms": card_milliseconds(variant),
            "extra_mb": extra_bytes(variant) / 1e6,
        }
    return found


def errors(classes: int = 5003, images: int = 300) -> dict[str, dict[str, float]]:
    """Errors of loss and gradients against torch in float64, ||own - exact|| / ||exact||."""
    found = {}
    for margin in MARGINS:
        for half in (False, True):
            own = classifier(classes, margin)
            own.gradients_are_stale = True
            features = torch.randn(images, FEATURES, device=CARD, requires_grad=True)
            labels = torch.randint(classes, (images,), device=CARD)
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                loss = own(features, labels).loss
            loss.backward()
            exact = [features.detach().double().requires_grad_()]
            exact += [each.detach().double().requires_grad_() for each in own.parameters()]
            bias = exact[2] if len(exact) > 2 else None
            wanted = dense_loss(exact[0], labels, exact[1], bias, margin)
            wanted.backward()
            names = ("features", "weight", "bias")
            gradients = (features.grad, *(each.grad for each in own.parameters()))
            row = {"loss": apart(loss, wanted)}
            for name, gradient, true in zip(names, gradients, exact, strict=False):
                assert gradient is not None
                assert true.grad is not None
                row[name] = apart(gradient, true.grad)
            found[f"{margin}, {'bf16' if half else 'fp32'}"] = row
    return found


def apart(found: Tensor, wanted: Tensor) -> float:
    difference = (found.detach().double() - wanted.detach()).norm()
    return float(difference / wanted.detach().norm())


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, required=True, help="folder for card.json and card.md")
    parser.add_argument("--commit", default=None, help="commit, if the sources are no repository")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    one_precision()
    found: dict[str, Any] = {
        "card": torch.cuda.get_device_name(CARD),
        "torch": torch.__version__,
        "commit": chosen.commit or commit(),
        "errors": errors(),
        "steps": [],
        "classifier": [],
    }
    chosen.into.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        (chosen.into / "card.json").write_text(json.dumps(found, indent=1) + "\n")
        (chosen.into / "card.md").write_text(page(found, ROUNDS))

    for classes in (1_000_000, 125_000):
        for changes in STEPS:
            own = step(step_config(classes, batch := 256, 112, changes))
            passes = changes["exchange"].get("backward_passes_per_step", 1)
            row = {"classes": classes, "batch": batch, "passes": passes}
            found["steps"].append(row | {"margin": changes["classifier"]["margin"]} | own)
            gc.collect()
            save()
    for classes, images in SHAPES:
        for margin in MARGINS:
            variants = measured(variants_of(classes, images, margin))
            row = {"classes": classes, "images": images, "margin": margin, "variants": variants}
            found["classifier"].append(row)
            gc.collect()
            torch.cuda.empty_cache()
            save()
    print(page(found, ROUNDS))


if __name__ == "__main__":
    main()
