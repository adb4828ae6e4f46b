"""What the runs of a study came to, by variant, and what they are measured against."""

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
"""The target, where none is given, lies so much below the baseline's final accuracy."""
PRIMARY = "val/top1"


@dataclass(frozen=True)
class Variant:
    """One experiment of a study and its runs, a run per seed."""

    config: Config
    summaries: tuple[RunSummary, ...]
    """Of the runs that ended well, by seed; none that diverged."""
    failures: tuple[str, ...] = ()
    """Why others did not."""
    running: int = 0
    """Runs of whose end nothing is known yet."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def diverged(self) -> tuple[str, ...]:
        """Of the failures those whose numbers were not finite any more: what, and when."""
        return tuple(found for each in self.failures if (found := diverged_at(each)))

    @property
    def failed(self) -> int:
        """How many failed in another way."""
        return len(self.failures) - len(self.diverged)

    @property
    def fate(self) -> str:
        """What became of a variant that has no result."""
        if self.running:
            return "has not ended"
        if not self.failures:
            return "was not started"
        return "failed" if self.failed else "diverged"


@dataclass(frozen=True)
class Target:
    """The accuracy that variants are timed to."""

    top1: float
    """Share of the primary validation set."""
    told: str
    """Where it comes from."""


@dataclass(frozen=True)
class Results:
    """All that a comparison is made from, whether the runs have just ended or lie in MLflow."""

    study: str
    variants: tuple[Variant, ...]
    environments: tuple[Mapping[str, Any], ...] = ()
    """What each run noted of the machines and versions it ran on."""
    predictions: tuple[Prediction, ...] = ()
    foretold: bool = False
    """Whether the predictions are known to be older than the first run."""
    in_turn: bool = False
    """Whether the variants are known to have run in turn on the same hosts, there and back."""
    failures: tuple[Failure, ...] = ()
    """Of runs that MLflow may not know of."""
    timing: str | None = None
    """How times were found, where not by the clocks of the runs."""

    @property
    def title(self) -> str:
        places = {(run.ranks, run.nodes) for each in self.variants for run in each.summaries}
        told = (f"{ranks} ranks on {nodes} nodes" for ranks, nodes in sorted(places))
        return f"{self.study}: {' and '.join(told)}"


@dataclass(frozen=True)
class Terms:
    """What a study is judged by, where not by the rules below."""

    target: float | None = None
    """Share of the primary validation set."""
    baseline: str | None = None
    """A variant's name."""

    def __post_init__(self) -> None:
        if self.target is not None and not 0 < self.target <= 1:
            raise UserError(
                f"--target {self.target:g} is no share of right answers; give e.g. 0.95"
            )

    def check(self, names: Sequence[str]) -> None:
        """Raises UserError for a baseline that is none of the variants."""
        if self.baseline is not None and self.baseline not in names:
            raise UserError(
                f"--baseline {self.baseline} is no variant of this study; it has {', '.join(names)}"
            )


def baseline_of(variants: Sequence[Variant], given: str | None = None) -> Variant:
    """The one given, else the first that is purely data parallel and waits, else the first."""
    for variant in variants:
        if variant.name == given:
            return variant
    for variant in variants:
        config = variant.config
        if config.classifier.layout == "replicated" and config.exchange.traits.baseline:
            return variant
    return variants[0]


def target_of(baseline: Variant, given: float | None) -> Target | None:
    """The one given, else a little below the baseline's own end; None where it learned nothing."""
    if given is not None:
        return Target(given, f"{given:.2%} as given")
    found = [run.final.get(PRIMARY, math.nan) for run in baseline.summaries]
    ends = [end for end in found if math.isfinite(end)]
    top1 = sum(ends) / len(ends) - LEEWAY if ends else 0.0
    if top1 <= 0:
        return None
    return Target(top1, f"{top1:.2%}, the final accuracy of {baseline.name} less 1 point")
