"""A study stored in a folder: one subfolder per run, with the run's config and summary."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.errors import UserError
from harness.tracking.failure import FAILURES_FILE, Failure, divergence, read_failures
from harness.tracking.recorded import RecordedRun, variants_of
from harness.tracking.results import Variant
from harness.tracking.run_folder import CONFIG, SUMMARY, RunFolder


def variants_in(folder: Path) -> tuple[Variant, ...]:
    """The variants that have completed runs, sorted by name; each one's runs are sorted by seed.

    Runs that failed are those that comparisons recorded there. Raises UserError if there is no
    completed run.
    """
    runs = [_recorded(RunFolder(path.parent)) for path in sorted(folder.rglob(SUMMARY))]
    if not runs:
        raise UserError(f"{folder} contains no run with a {SUMMARY}; give the folder of a study")
    ended = {(run.name, run.seed) for run in runs}
    runs += [
        RecordedRun("", each.config, "FAILED", None, folder, each.reason)
        for each in failures_in(folder)
        if (each.config.name, each.config.seed) not in ended
    ]
    return variants_of(sorted(runs, key=lambda run: (run.name, run.seed)))


def failures_in(folder: Path) -> list[Failure]:
    """The failed runs of all comparisons in this folder."""
    files = sorted(folder.rglob(FAILURES_FILE))
    return [failure for file in files for failure in read_failures(file)]


def _recorded(files: RunFolder) -> RecordedRun:
    """Reads one completed run. Raises UserError if its config is missing."""
    config = files.config
    if config is None:
        raise UserError(f"{files.path} has a {SUMMARY} but no {CONFIG}; restore the {CONFIG}")
    summary = files.read_summary()
    found = RecordedRun(files.mlflow_run_id or "", config, "FINISHED", summary, files.path)
    if summary.diverged:
        return replace(found, summary=None, failure=divergence(summary.diverged))
    return found


def write_runs(folder: Path, variants: Sequence[Variant]) -> None:
    """Writes the files that `variants_in` reads: a config and a summary for each run."""
    for each in variants:
        for run in each.summaries:
            files = RunFolder(folder / f"{each.name}-s{run.seed}")
            files.path.mkdir(parents=True, exist_ok=True)
            config = each.config.model_copy(update={"seed": run.seed})
            (files.path / CONFIG).write_text(config.to_yaml(), encoding="utf-8")
            files.write_summary(run)
