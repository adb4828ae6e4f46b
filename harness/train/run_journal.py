"""Where a run's metrics and summary go: tracker, terminal, folder."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from harness.errors import RunFailed
from harness.measure.data_bound import bound_by_data
from harness.measure.summary import (
    DIVERGED_TAG,
    UNDISTURBED,
    UNRECORDED,
    Provenance,
    Restarts,
    RunSummary,
)
from harness.measure.utilisation import summary_bars, utilisation_line
from harness.tracking.run_folder import SKIPPED, RunFolder
from harness.tracking.tracker import Tracker
from harness.train.ledger import NullJournal


class OtherRank(NullJournal):
    """The journal of every rank except the first; it records nothing."""

    provenance = UNRECORDED

    def name_classes(self, names: Sequence[str]) -> None:
        return None

    def report_skipped(self, skipped: Sequence[tuple[str, str]]) -> None:
        return None

    def conclude(self, summary: RunSummary) -> None:
        return None

    def close(self) -> None:
        return None


class RunJournal:
    """The journal of rank 0: metrics to the tracker, progress to the terminal, the summary to the
    folder."""

    def __init__(
        self,
        folder: Path,
        tracker: Tracker,
        commit: str | None,
        restarts: Restarts = UNDISTURBED,
    ) -> None:
        self.provenance = Provenance(tracker.run_id, commit, restarts)
        self._folder = folder
        self._tracker = tracker
        self._progress = tqdm(unit="window", mininterval=1.0, dynamic_ncols=True, delay=1e-3)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._tracker.log(step, metrics)

    def advance(self, window: int, windows: int, note: str) -> None:
        self._progress.total = windows
        self._progress.set_postfix_str(note, refresh=False)
        self._progress.update(window - self._progress.n)

    def warn(self, name: str, line: str) -> None:
        """Prints a warning on stderr and stores the latest of each name in the tag
        `warning/<name>`."""
        self._progress.write(f"warning: {line}", file=sys.stderr)
        self._tracker.tag(f"warning/{name}", line)

    def attach(self, path: Path, folder: str) -> None:
        """Sends a file of the run to the tracker while training continues."""
        self._tracker.large_artifact(path, folder)

    def name_classes(self, names: Sequence[str]) -> None:
        """Keeps the names of the classes, if they have names."""
        if names:
            self._keep("classes", lambda: RunFolder(self._folder).write_classes(names))

    def report_skipped(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Lists images that were replaced because they could not be read, and says so."""
        if skipped:
            self._keep("skipped", lambda: RunFolder(self._folder).write_skipped(skipped))
            line = f"{len(skipped):,} images could not be read; others of their class replaced them"
            self.warn("skipped", f"{line}; {self._folder / SKIPPED} lists them")

    def _keep(self, name: str, write: Callable[[], Path]) -> None:
        try:
            self._tracker.artifact(write())
        except OSError as error:
            self.warn(name, f"cannot write to {self._folder}: {error.strerror}; free space there")

    def conclude(self, summary: RunSummary) -> None:
        """Writes the summary file, logs `summary/*` once and prints the closing report.

        Raises RunFailed, after everything else, if the file could not be written.
        """
        problem = None
        try:
            self._tracker.artifact(RunFolder(self._folder).write_summary(summary))
        except OSError as error:
            problem = error
        self._tracker.log(0, summary_metrics(summary))
        if summary.diverged:
            self._tracker.tag(DIVERGED_TAG, summary.diverged)
        self.close()
        print(closing_report(summary, self._folder), flush=True)
        if problem is not None:
            raise RunFailed(
                f"the training is complete, but its summary cannot be written to {self._folder} "
                f"({problem.strerror}); free space there: the results are only in the output above "
                f"and in MLflow"
            ) from problem

    def close(self) -> None:
        """Ends the progress bar, so that later output begins on a new line."""
        self._progress.close()


def summary_metrics(summary: RunSummary) -> dict[str, float]:
    """One number per metric for the whole run; MLflow draws them as bars over runs.

    What is not known, because no window was timed, is left out.
    """
    found = {"summary/train_seconds": summary.train_seconds}
    if summary.speed_known:
        found |= _costs(summary)
    if summary.restarts:
        found |= {
            "summary/restarts": summary.restarts,
            "summary/lost_seconds": summary.lost_seconds,
        }
    found |= {f"summary/{name.replace('/', '_')}": value for name, value in summary.final.items()}
    return found


def _costs(summary: RunSummary) -> dict[str, float]:
    """The metrics of the timed windows."""
    found = {
        "summary/images_per_second": summary.images_per_second,
        "summary/step_ms": summary.step_ms.mean,
        "summary/cross_node_mb_per_step": summary.cross_node_mb_per_step,
    }
    found |= {f"summary/{name}_ms": spread.mean for name, spread in summary.phases_ms.items()}
    return found | summary_bars(summary.per_rank)


def _waits_in_backward(summary: RunSummary) -> bool:
    return any(rank.waits_in_backward for rank in summary.per_rank)


def closing_report(summary: RunSummary, folder: Path) -> str:
    """The report printed when a run has ended."""
    accuracy = " · ".join(
        f"{name} {value:.2%}" for name, value in summary.final.items() if name.endswith("/top1")
    )
    accuracy += f"; diverged: {summary.diverged}" if summary.diverged else ""
    lost = f"{summary.restarts}, which cost {summary.lost_seconds:,.1f} s"
    untimed = ("  throughput   not known, because no window was timed",)
    return "\n".join(
        (
            f"{summary.name}, seed {summary.seed}: {summary.ranks} ranks on {summary.nodes} nodes, "
            f"{summary.images:,} images in {summary.train_seconds:.1f} s of training",
            *(_report_of_costs(summary) if summary.speed_known else untimed),
            f"  accuracy     {accuracy}",
            *([f"  restarts     {lost}"] if summary.restarts else ()),
            f"  in           {folder}",
        )
    )


def _report_of_costs(summary: RunSummary) -> list[str]:
    """The lines about the timed windows."""
    phases = " · ".join(
        f"{name} {spread.mean:.1f}"
        for name, spread in summary.phases_ms.items()
        if spread.mean >= 0.05
    )
    means = {name: spread.mean for name, spread in summary.phases_ms.items()}
    bound = () if _waits_in_backward(summary) else (bound_by_data(means),)
    return [
        f"  throughput   {summary.images_per_second:,.0f} images/s over "
        f"{summary.timed_windows} windows (the first {summary.untimed_windows} excluded)",
        f"  window       {summary.step_ms.mean:.1f} ms = {phases}",
        *(f"  bound by     data: {shares}" for shares in bound if shares),
        f"  utilisation  {utilisation_line(summary.per_rank)}",
        f"  sent         {summary.cross_node_mb_per_step:.2f} MB through a node's link, "
        f"{summary.in_node_mb_per_step:.2f} MB by a rank inside its node, per window",
    ]
