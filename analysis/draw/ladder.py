"""The ladder of a study whose trainings are timed by speeds measured on a link."""

import json
from pathlib import Path

from benchmarks.on_link import on_link
from harness.compare.folder import variants_in
from harness.compare.ladder import Ladder
from harness.compare.ladder_chart import describe, draw
from harness.errors import UserError
from harness.tracking.results import baseline_of, target_of

__all__ = ["describe", "draw", "read"]


def read(trainings: str | Path, speeds: str | Path) -> Ladder:
    """The ladder of the runs in a folder, timed by a table of `benchmarks.throughput`, for the
    default baseline and target.

    Raises UserError if the variants do not form a ladder.
    """
    table = json.loads(Path(speeds).read_text(encoding="utf-8"))
    variants = on_link(variants_in(Path(trainings)), table)
    baseline = baseline_of(variants)
    found = Ladder.of(variants, baseline, target_of(baseline, None))
    if found is None:
        raise UserError(
            f"the variants in {trainings} do not form a ladder; it takes three, each with all "
            f"levers of the one below and one more"
        )
    return found
