"""Reopens a study recorded in MLflow: the same comparison as after its runs, without running."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from harness.compare.comparable import check_comparable
from harness.compare.conclude import conclude
from harness.config import tracking_in
from harness.errors import UserError
from harness.paths import folder_name
from harness.tracking.address import store_uri
from harness.tracking.folders import claimed, now
from harness.tracking.prediction import Prediction
from harness.tracking.results import Terms
from harness.tracking.study import read_study


@dataclass(frozen=True)
class Source:
    """Where a recorded study is stored."""

    study: str
    uri: str | None = None
    """MLflow store; None means MLFLOW_TRACKING_URI, else mlflow.db in the working directory."""
    experiment: str | None = None
    """MLflow experiment; None means the only one that holds the study."""


def reopen(
    source: Source,
    terms: Terms,
    predictions: tuple[Prediction, ...],
    folder: Path | None,
    recorded: bool,
) -> int:
    """Compares a recorded study and returns the exit code.

    `predictions`, if any, replace those of the study; `recorded`: the comparison is logged to
    MLflow. Raises UserError for a study that cannot be read.
    """
    tracking = tracking_in(source.uri, source.experiment)
    study = read_study(store_uri(tracking), source.study, source.experiment)
    results = study.results
    if predictions:
        results = replace(results, predictions=predictions, predicted_before=False)
    check_comparable(study.runs)
    terms.check([variant.name for variant in results.variants])
    if not any(variant.summaries for variant in results.variants):
        reasons = "; ".join(study.unended) or "all of them failed"
        raise UserError(
            f"no run of the study {source.study} completed, so there is nothing to compare "
            f"({reasons}); fix that, and run its experiments again with --study {source.study}"
        )
    for line in study.unended:
        print(line, file=sys.stderr, flush=True)
    with claimed(folder, Path("runs") / folder_name(source.study) / f"{now()}-again") as place:
        conclude(
            results,
            terms,
            place,
            tracking_in(source.uri, study.experiment) if recorded else None,
        )
    return 0
