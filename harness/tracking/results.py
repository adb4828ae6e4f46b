"""The results of a study by variant, and the baseline and target that they are measured against."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.config import Config
from harness.errors import UserError
from harness.measure.summary import RunSummary
from harness.tracking.failure import Failure, diverged_at
from harness.tracking.prediction import Prediction

LEEWAY = 0.01
"""Distance of the default target below the baseline's final accuracy."""
PRIMARY = "val/top1"
"""Metric of the primary validation set."""


@dataclass(frozen=True)
class Variant:
    """One experiment of a study and its runs, one per seed."""

    config: Config
    summaries: tuple[RunSummary, ...]
    """Summaries of the successful runs, by seed, without runs that diverged."""
    failures: tuple[str, ...] = ()
    """Reasons of the other runs that have ended."""
    running: int = 0
    """Number of runs that are not known to have ended."""
    mixed: tuple[str, ...] = ()
    """Settings that its completed runs chose differently, with their values by seed."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def timed(self) -> tuple[RunSummary, ...]:
        """The completed runs whose speed, phases and bytes are known."""
        return tuple(run for run in self.summaries if run.speed_known)

    @property
    def diverged(self) -> tuple[str, ...]:
        """For each run that diverged: what was not finite, and when."""
        return tuple(found for each in self.failures if (found := diverged_at(each)))

    @property
    def failed(self) -> int:
        """Number of runs that failed in another way than by diverging."""
        return len(self.failures) - len(self.diverged)

    @property
    def fate(self) -> str:
        """Why the variant has no result, as a verb phrase."""
        if self.running:
            return "has not ended"
        if not self.failures:
            return "was not started"
        return "failed" if self.failed else "diverged"


@dataclass(frozen=True)
class Target:
    """The accuracy that variants are timed to."""

    top1: float
    """Share of correct answers on the primary validation set."""
    text: str
    """The target and where it comes from, for users."""


@dataclass(frozen=True)
class Results:
    """Everything that a comparison is made from, from runs just ended or read from MLflow."""

    study: str
    variants: tuple[Variant, ...]
    environments: tuple[Mapping[str, Any], ...] = ()
    """Facts about machines and versions that the runs recorded."""
    predictions: tuple[Prediction, ...] = ()
    predicted_before: bool = False
    """Whether the predictions are known to be older than the first run."""
    in_turn: bool = False
    """Whether the variants are known to have run in turn on the same hosts, in both orders."""
    failures: tuple[Failure, ...] = ()
    """Failed runs that MLflow may not know of."""
    timing: str | None = None
    """How times were obtained, if not from the clocks of the runs."""

    @property
    def title(self) -> str:
        places = {(run.ranks, run.nodes) for each in self.variants for run in each.summaries}
        sizes = (f"{ranks} ranks on {nodes} nodes" for ranks, nodes in sorted(places))
        return f"{self.study}: {' and '.join(sizes)}"


@dataclass(frozen=True)
class Terms:
    """What a study is judged by; None: by the rules of `baseline_of` and `target_of`."""

    target: float | None = None
    """Share of correct answers on the primary validation set."""
    baseline: str | None = None
    """Name of a variant."""

    def __post_init__(self) -> None:
        if self.target is not None and not 0 < self.target <= 1:
            raise UserError(
                f"--target must be above 0 and at most 1, got {self.target:g}; give e.g. 0.95"
            )

    def check(self, names: Sequence[str]) -> None:
        """Raises UserError if the baseline is not one of the variants, given by `names`."""
        if self.baseline is not None and self.baseline not in names:
            raise UserError(
                f"--baseline {self.baseline} is not a variant of this study; it has "
                f"{', '.join(names)}"
            )


def baseline_of(variants: Sequence[Variant], given: str | None = None) -> Variant:
    """The given variant, else the first one that is purely data parallel and synchronous, else the
    first."""
    for variant in variants:
        if variant.name == given:
            return variant
    for variant in variants:
        config = variant.config
        if config.classifier.layout == "replicated" and config.exchange.traits.baseline:
            return variant
    return variants[0]


def target_of(baseline: Variant, given: float | None) -> Target | None:
    """The given target, else the baseline's final accuracy - LEEWAY; None if that is not > 0."""
    if given is not None:
        return Target(given, f"{given:.2%} as given")
    found = [run.final.get(PRIMARY, math.nan) for run in baseline.summaries]
    ends = [end for end in found if math.isfinite(end)]
    top1 = sum(ends) / len(ends) - LEEWAY if ends else 0.0
    if top1 <= 0:
        return None
    return Target(top1, f"{top1:.2%}, the final accuracy of {baseline.name} less 1 point")
