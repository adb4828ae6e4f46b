"""The files that a comparison writes into its folder."""

from dataclasses import dataclass
from pathlib import Path

from harness.tracking.failure import FAILURES_FILE

TABLE_FILE = "comparison.md"


@dataclass(frozen=True)
class ComparisonFiles:
    """The paths of the files of one comparison."""

    table: Path
    """Text and tables, as Markdown."""
    numbers: Path
    chart: Path
    tests: Path
    report: Path
    ladder: Path | None = None
    """None if the variants are not steps of a ladder."""
    prediction_errors: Path | None = None
    """None if nothing was predicted."""
    failures: Path | None = None
    """None if no run failed."""

    @classmethod
    def in_folder(
        cls, folder: Path, ladder: bool, predictions: bool, failures: bool
    ) -> "ComparisonFiles":
        """The files in `folder`; the flags: which optional ones the study has."""
        table = folder / TABLE_FILE
        return cls(
            table,
            table.with_suffix(".csv"),
            table.with_suffix(".png"),
            folder / "verdict.csv",
            folder / "report.html",
            folder / "ladder.png" if ladder else None,
            folder / "predictions.csv" if predictions else None,
            folder / FAILURES_FILE if failures else None,
        )

    @property
    def all(self) -> list[Path]:
        found = (self.table, self.numbers, self.chart, self.tests, self.report)
        some = (self.ladder, self.prediction_errors, self.failures)
        return [*found, *(path for path in some if path is not None)]
