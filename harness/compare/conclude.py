"""Turns the results of a study into the comparison's outputs: table, verdict, chart, report."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.compare import ladder_text
from harness.compare.chart import draw, draw_ladder
from harness.compare.ladder import Ladder
from harness.compare.report import write_report
from harness.compare.scoring import score_cells, scores, scores_meaning
from harness.compare.sentences import as_paragraphs, meaning, sentences
from harness.compare.table import aligned, as_markdown, as_text, comparison, piped
from harness.compare.verdict import Verdict, judge
from harness.config import TrackingConfig
from harness.errors import RunFailed
from harness.tracking.comparison_files import ComparisonFiles
from harness.tracking.connection import short_reason
from harness.tracking.failure import write_failures
from harness.tracking.record import record, way_to_see
from harness.tracking.results import Results, Target, Terms, Variant, baseline_of, target_of


@dataclass(frozen=True)
class Conclusion:
    """A study's numbers, and everything that is computed from them."""

    results: Results
    baseline: Variant
    target: Target | None
    frame: pd.DataFrame
    verdict: Verdict
    scored: pd.DataFrame | None
    """Predictions beside measurements; None without predictions."""
    ladder: Ladder | None
    """What each lever is worth; None unless the variants form a ladder."""

    @classmethod
    def of(cls, results: Results, terms: Terms) -> "Conclusion":
        variants = results.variants
        baseline = baseline_of(variants, terms.baseline)
        target = target_of(baseline, terms.target)
        frame = comparison(variants, baseline, target)
        predicted = results.predictions
        scored = scores(variants, frame, predicted) if predicted else None
        verdict = judge(variants, baseline, target)
        ladder = Ladder.of(variants, baseline, target)
        return cls(results, baseline, target, frame, verdict, scored, ladder)

    @property
    def _meaning(self) -> list[str]:
        """Notes on the terms of the verdict, and on how times were measured."""
        timing = self.results.timing
        return [*meaning(self.verdict), *([timing] if timing else [])]

    @property
    def text(self) -> str:
        """The comparison as text for a terminal."""
        parts = [as_text(self.frame, self.baseline, self.target)]
        if self.scored is not None:
            meant = as_paragraphs([scores_meaning(self.results.predicted_before)])
            parts.append(f"{aligned(score_cells(self.scored))}\n{meant}")
        if self.ladder is not None:
            parts.append(ladder_text.as_text(self.ladder))
        parts.append(as_paragraphs(sentences(self.verdict)))
        parts.append(as_paragraphs(self._meaning))
        return "\n\n".join(parts)

    @property
    def markdown(self) -> str:
        """The comparison as a Markdown page."""
        first, *rivals = sentences(self.verdict)
        lines = [f"**{first}**", "\n".join(f"* {each}" for each in rivals)]
        parts = [f"# {self.results.title}", *filter(None, lines)]
        parts.append(as_markdown(self.frame, self.baseline, self.target))
        if self.scored is not None:
            meant = scores_meaning(self.results.predicted_before)
            parts.append(f"{piped(score_cells(self.scored))}\n\n* {meant}")
        parts.append("\n".join(f"* {each}" for each in self._meaning))
        if self.ladder is not None:
            parts.append(ladder_text.as_markdown(self.ladder))
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> ComparisonFiles:
        """Writes all files into `folder`. Raises OSError if one cannot be written."""
        results = self.results
        files = ComparisonFiles.in_folder(
            folder,
            ladder=self.ladder is not None,
            predictions=self.scored is not None,
            failures=bool(results.failures),
        )
        files.table.write_text(self.markdown, encoding="utf-8")
        self.frame.to_csv(files.numbers)
        draw(results.variants, self.target, results.title, files.chart)
        self.verdict.frame.to_csv(files.tests, index=False)
        write_report(results, self.frame, self.verdict, self.scored, self.ladder, files.report)
        if self.ladder is not None and files.ladder is not None:
            draw_ladder(self.ladder, files.ladder)
        if self.scored is not None and files.prediction_errors is not None:
            self.scored.to_csv(files.prediction_errors)
        if files.failures is not None:
            write_failures(results.failures, files.failures)
        return files


def conclude(results: Results, terms: Terms, folder: Path, tracking: TrackingConfig | None) -> None:
    """Prints the comparison, writes its files into `folder`, and logs them to MLflow.

    `tracking`: where MLflow is; with None, nothing is logged. Raises RunFailed if the files
    cannot be written.
    """
    found = Conclusion.of(results, terms)
    print(f"\n{found.text}", flush=True)
    try:
        files = found.write(folder)
    except OSError as error:
        raise RunFailed(
            f"cannot write the comparison's files to {folder} ({error.strerror}); fix that, then "
            f"run harness compare --from-study {results.study}"
        ) from error
    ladder = f"\nladder {files.ladder}" if files.ladder is not None else ""
    print(f"\ntable {files.table}\nchart {files.chart}{ladder}\nreport {files.report}", flush=True)
    if tracking is not None and tracking.enabled:
        _log(tracking, found, files)


def _log(tracking: TrackingConfig, found: Conclusion, files: ComparisonFiles) -> None:
    results = found.results
    try:
        experiment_id = record(
            tracking, results.study, found.frame, files, failures=len(results.failures)
        )
    except Exception as error:  # the table is already printed and written: MLflow is optional
        reason = short_reason(error)
        print(
            f"warning: the comparison was not logged to MLflow: {reason}",
            file=sys.stderr,
            flush=True,
        )
        return
    print(way_to_see(tracking, experiment_id, results.study), flush=True)
