"""Runs of a study with the noise of real ones: the values are fixed, the truth is known."""

import math
from collections.abc import Sequence

from harness.measure.summary import RunSummary
from harness.tracking.results import Target, Variant

from .recorded import summary, variant

EVALUATIONS = 40
TARGET = Target(0.9, "90.00% as given")
SPEEDS = (1.012, 0.991, 1.004, 0.987, 1.009)
"""Of five runs, as shares of the variant's own: a machine is never as fast twice."""
OTHER_SPEEDS = (0.996, 1.008, 0.998, 1.003, 0.990)
ENDS = (0.9710, 0.9688, 0.9702, 0.9721, 0.9695)
OTHER_ENDS = (0.9705, 0.9699, 0.9691, 0.9718, 0.9710)


def trained(
    name: str, seed: int, speed: float, end: float, evaluations: int = EVALUATIONS
) -> RunSummary:
    """A run that nears `end` as trainings do; at speed 1 it takes 40 s, 22 of them to 90 %."""
    between = EVALUATIONS / evaluations
    accuracies = [end * (1 - math.exp(-k * between / 8)) for k in range(1, evaluations)]
    run = summary(
        name,
        seed=seed,
        images_per_second=1280 * speed,
        accuracies=(*accuracies, end),
        seconds=between / speed,
    )
    return run.model_copy(update={"validation_images": {"unseen_design": 10_000}})


def trainings(
    name: str,
    speeds: Sequence[float] = SPEEDS,
    ends: Sequence[float] = ENDS,
    *,
    faster: float = 1.0,
    better: float = 0.0,
    layout: str = "replicated",
    failures: tuple[str, ...] = (),
    evaluations: int = EVALUATIONS,
) -> Variant:
    """A run per speed; the variant is so much faster, and better by a share, than those say."""
    runs = [
        trained(name, seed, faster * speed, end + better, evaluations)
        for seed, (speed, end) in enumerate(zip(speeds, ends, strict=False))
    ]
    return variant(name, *runs, layout=layout, failures=failures)
