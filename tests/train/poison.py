"""Spoils one window of a training on one rank, in the way that is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from harness.model.sliced_classifier import Scores
from harness.train.step import Step

KINDS = ("loss", "gradient", "statistics", "parameters")


@dataclass
class Poison:
    """One value that is not finite, in one window, counted from 1."""

    kind: str
    window: int
    value: float

    def into(self, step: Step, passes: int = 1) -> None:
        """Hooks itself into a training that starts with its first window."""
        forwards = 0

        def now() -> bool:
            return -(-forwards // passes) == self.window

        def forward(module: Any, given: Any, scores: Scores) -> Scores | None:
            nonlocal forwards
            forwards += 1
            if self.kind == "gradient" and now() and scores.loss.grad_fn is not None:
                scores.loss.grad_fn.register_hook(backward)
            if self.kind != "loss" or not now():
                return None
            return Scores(scores.loss + self.value, scores.top1)

        def backward(
            gradients: tuple[Tensor | None, ...], _: Any
        ) -> tuple[Tensor | None, ...] | None:
            """Of the weight: what goes on to it, or what was written where it lies."""
            weight = step.model.classifier.weight
            (place,) = [n for n, each in enumerate(gradients) if is_like(each, weight)] or [None]
            if place is None:
                assert weight.grad is not None
                weight.grad.view(-1)[0] = self.value
                return None
            spoilt = gradients[place].clone()
            spoilt.view(-1)[0] = self.value
            return (*gradients[:place], spoilt, *gradients[place + 1 :])

        def stepped(*_: Any) -> None:
            if not now():
                return
            if self.kind == "parameters":
                step.model.shared.values[step.model.shared.owned.start] = self.value
            if self.kind == "statistics":
                for buffer in step.model.backbone.buffers():
                    if buffer.is_floating_point():
                        buffer.view(-1)[0] = self.value

        step.model.classifier.register_forward_hook(forward)
        if self.kind in ("parameters", "statistics"):
            step.optimizer.register_step_post_hook(stepped)


def is_like(gradient: Tensor | None, weight: Tensor) -> bool:
    return gradient is not None and gradient.shape == weight.shape


def checkpoints(folder: Path) -> list[int]:
    """The windows of all that a run has left, every one of which is whole and finite."""
    found = sorted((folder / "checkpoints").glob("*")) if folder.exists() else []
    for each in found:
        for file in each.glob("*.safetensors"):
            for name, tensor in load_file(file).items():
                assert tensor.double().isfinite().all(), f"{name} in {file}"
    return [int(each.name) for each in found]
