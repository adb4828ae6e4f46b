"""What the demo shows: the rate by arithmetic, and tables that fit a narrow terminal."""

from pathlib import Path

import pytest

from harness.demo.text import COLUMNS, LOST_SHARE, Link, next_steps, summary
from harness.tracking.failure import divergence
from tests.recorded import summary as run
from tests.recorded import variant

BASE = variant("data_parallel", run())
METHOD = variant("hybrid_averaging", run("hybrid_averaging", images_per_second=5120, seconds=2.5))
MISSED = variant("data_parallel_int8", run("data_parallel_int8", accuracies=(0.2, 0.3, 0.4)))
LINK = Link.for_baseline(BASE)


def test_the_rate_takes_the_share_of_the_baselines_step() -> None:
    sending = 8e-6 * LINK.sent_bytes / LINK.megabits_per_second
    assert LINK.sent_bytes == 4 * 3000
    assert LINK.step_seconds == 0.1
    assert sending / (sending + LINK.step_seconds) == pytest.approx(LOST_SHARE, abs=0.01)
    assert LINK.rate == "0.32mbit"


def test_one_table_has_times_and_the_other_speeds_alone() -> None:
    text = summary((BASE, MISSED, METHOD), (BASE, METHOD), LINK)
    lines = text.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    rows = [line.split() for line in lines]
    assert rows.count(["data_parallel", "1,280", "1.00x", "30.0", "1.00x", "90.0%"]) == 1
    assert rows.count(["hybrid_averaging", "5,120", "4.00x", "7.5", "4.00x", "90.0%"]) == 1
    assert rows.count(["hybrid_averaging", "5,120", "4.00x"]) == 1
    assert ["data_parallel_int8", "1,280", "1.00x", "not", "reached", "40.0%"] in rows
    assert text.count("seconds to 89.0%") == 1
    assert "0.32 Mbit/s between them" in text


def test_its_links_lead_to_files_of_the_slow_study() -> None:
    text = next_steps(Path("/runs/slow"), "sqlite:////runs/mlflow.db", "demo")
    assert "/runs/slow/report.html" in text
    assert "ui --study demo --uri sqlite:////runs/mlflow.db" in text


def test_a_run_that_diverged_has_not_reached_the_target() -> None:
    lost = variant("other", run("other"), failures=(divergence("loss, window 3"),))
    rows = [line.split() for line in summary((BASE, lost), (BASE,), LINK).splitlines()]
    assert ["other", "1,280", "1.00x", "not", "reached", "90.0%"] in rows
