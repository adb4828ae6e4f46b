"""What the runs of a study came to, by variant, and what they are measured against."""

from dataclasses import dataclass

from harness.config import Config
from harness.measure.summary import RunSummary

LEEWAY = 0.01
"""The target, where none is given, lies so much below the baseline's final accuracy."""
PRIMARY = "val/top1"


@dataclass(frozen=True)
class Variant:
    """One experiment of a study and its runs, a run per seed."""

    config: Config
    summaries: tuple[RunSummary, ...]
    """Of the runs that ended well, by seed."""
    failures: tuple[str, ...] = ()
    """Why others did not."""

    @property
    def name(self) -> str:
        return self.config.name


@dataclass(frozen=True)
class Target:
    """The accuracy that variants are timed to."""

    top1: float
    """Share of the primary validation set."""
    told: str
    """Where it comes from."""


def baseline_of(variants: tuple[Variant, ...]) -> Variant:
    """The first that is purely data parallel and waits; where none is, the first."""
    for variant in variants:
        config = variant.config
        if config.classifier.layout == "replicated" and config.exchange.kind == "synchronous":
            return variant
    return variants[0]


def target_of(baseline: Variant, given: float | None) -> Target | None:
    """The one given, else a little below the baseline's own end; None where it learned nothing."""
    if given is not None:
        return Target(given, f"{given:.2%} as given")
    ends = [run.final[PRIMARY] for run in baseline.summaries if PRIMARY in run.final]
    top1 = sum(ends) / len(ends) - LEEWAY if ends else 0.0
    if top1 <= 0:
        return None
    return Target(top1, f"{top1:.2%}, the final accuracy of {baseline.name} less 1 point")
