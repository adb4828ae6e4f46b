"""A point of a sweep, and the result of its training."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict

from harness.measure.summary import RunSummary


class Point(BaseModel):
    """One training: an experiment with a learning rate, a momentum and a seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    experiment: str
    lr: float
    momentum: float
    seed: int

    @property
    def overrides(self) -> list[str]:
        return [
            f"optimizer.lr={self.lr:g}",
            f"optimizer.momentum={self.momentum:g}",
            f"seed={self.seed}",
            "tracking.enabled=false",
            "staleness.curvature_after_warmup=false",
        ]


class Result(BaseModel):
    """Accuracy on the primary validation set over training images; no curve if it diverged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    point: Point
    curve: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, point: Point, summary: RunSummary) -> "Result":
        curve = [(each.images, each.metrics["val/top1"]) for each in summary.evaluations]
        return cls(point=point, curve=tuple(curve))

    @property
    def final(self) -> float:
        """Final top-1 accuracy, from 0 to 1; 0 if the training diverged."""
        return self.curve[-1][1] if self.curve else 0.0

    def images_to(self, target: float) -> float:
        """Training images at which the accuracy first crosses the target; inf if it never does.

        It is interpolated linearly between two evaluations.
        """
        before, lower = 0.0, 0.0
        for images, top1 in self.curve:
            if top1 >= target:
                return before + (images - before) * (target - lower) / (top1 - lower)
            before, lower = float(images), top1
        return math.inf

    def line(self) -> str:
        """One line about the training, for the log."""
        point = self.point
        found = f"{100 * self.final:.2f} %" if self.curve else "diverged"
        return (
            f"{point.name} lr {point.lr:g} momentum {point.momentum:g} seed {point.seed}: {found}"
        )


def described(results: list[Result], target: float) -> dict[str, Any]:
    """The point's settings, with means over seeds."""
    images = [each.images_to(target) for each in results]
    return {
        "lr": results[0].point.lr,
        "momentum": results[0].point.momentum,
        "seeds": sorted(each.point.seed for each in results),
        "final": sum(each.final for each in results) / len(results),
        "images_to_target": sum(images) / len(images),
    }
