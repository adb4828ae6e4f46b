"""What is said of a run that has ended: only what is known of it."""

from pathlib import Path

from harness.train.run_journal import closing_report, summary_metrics
from tests.recorded import PHASES_MS, summary, untimed

COSTS = {
    *("summary/images_per_second", "summary/step_ms", "summary/cross_node_mb_per_step"),
    *(f"summary/{phase}_ms" for phase in PHASES_MS),
}


def test_a_run_of_no_timed_window_sends_no_zeros() -> None:
    """MLflow would draw them as bars beside those of other runs."""
    whole, short = summary_metrics(summary()), summary_metrics(untimed(summary()))
    assert whole.keys() - short.keys() == COSTS
    assert {"summary/train_seconds", "summary/val_top1"} <= short.keys()


def test_a_run_of_no_timed_window_is_not_said_to_be_infinitely_slow() -> None:
    said = closing_report(untimed(summary()), Path("run"))
    assert "throughput   not known, because no window was timed" in said
    assert "0 images/s" not in said
    assert "1,280 images/s over 290 windows" in closing_report(summary(), Path("run"))
