"""A study as its folder keeps it: each run's config and summary in a folder of its own in there."""

from collections.abc import Sequence
from pathlib import Path

from harness.errors import UserError
from harness.tracking.recorded import RecordedRun, variants_of
from harness.tracking.results import Variant
from harness.tracking.run_folder import CONFIG, SUMMARY, RunFolder


def variants_in(folder: Path) -> tuple[Variant, ...]:
    """Those with runs that ended well, in the order of their names, each run by its seed.

    Raises UserError if there are none.
    """
    runs = [_recorded(RunFolder(path.parent)) for path in sorted(folder.rglob(SUMMARY))]
    if not runs:
        raise UserError(f"{folder} holds no run with a {SUMMARY}; give a study's own folder")
    return variants_of(sorted(runs, key=lambda run: (run.name, run.seed)))


def _recorded(files: RunFolder) -> RecordedRun:
    """A run that ended well."""
    config = files.config
    if config is None:
        raise UserError(f"{files.path} has a {SUMMARY} and no {CONFIG}; put that there")
    return RecordedRun(
        files.mlflow_run_id or "", config, "FINISHED", files.read_summary(), files.path
    )


def write_runs(folder: Path, variants: Sequence[Variant]) -> None:
    """What `variants_in` reads."""
    for each in variants:
        for run in each.summaries:
            files = RunFolder(folder / f"{each.name}-s{run.seed}")
            files.path.mkdir(parents=True, exist_ok=True)
            config = each.config.model_copy(update={"seed": run.seed})
            (files.path / CONFIG).write_text(config.to_yaml(), encoding="utf-8")
            files.write_summary(run)
