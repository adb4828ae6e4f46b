"""Spoils one window of a training on one rank, in the way that is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from harness.model.sliced_classifier import Scores
from harness.trainer import Trainer

KINDS = ("loss", "gradient", "statistics", "parameters")


@dataclass
class Poison:
    """One value that is not finite, in one window, counted from 1."""

    kind: str
    window: int
    value: float

    def into(self, trainer: Trainer, passes: int = 1) -> None:
        """Hooks itself into a training that starts with its first window."""
        forwards = 0

        def now() -> bool:
            return -(-forwards // passes) == self.window

        def forward(module: Any, given: Any, scores: Scores) -> Scores | None:
            nonlocal forwards
            forwards += 1
            if not now():
                return None
            return Scores(scores.loss + self.value, scores.top1) if self.kind == "loss" else None

        def backward(gradient: Tensor) -> Tensor | None:
            if self.kind != "gradient" or not now():
                return None
            spoilt = gradient.clone()
            spoilt.view(-1)[0] = self.value
            return spoilt

        def stepped(optimizer: Any, *_: Any) -> None:
            if not now():
                return
            if self.kind == "parameters":
                trainer.shared.values[trainer.shared.owned.start] = self.value
            if self.kind == "statistics":
                for buffer in trainer.backbone.buffers():
                    if buffer.is_floating_point():
                        buffer.view(-1)[0] = self.value

        trainer.classifier.register_forward_hook(forward)
        trainer.classifier.weight.register_hook(backward)
        trainer.optimizer.register_step_post_hook(stepped)


def checkpoints(folder: Path) -> list[int]:
    """The windows of all that a run has left, every one of which is whole and finite."""
    found = sorted((folder / "checkpoints").glob("*")) if folder.exists() else []
    for each in found:
        for file in each.glob("*.safetensors"):
            for name, tensor in load_file(file).items():
                assert tensor.double().isfinite().all(), f"{name} in {file}"
    return [int(each.name) for each in found]
