"""Trainings timed by the speeds of a link that they did not run on."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.on_link import HOW, early_speed, on_link, with_early
from benchmarks.throughput import loaded
from harness.compare.conclude import Conclusion
from harness.compare.folder import variants_in, write_runs
from harness.config import Config, load
from harness.errors import UserError
from harness.tracking.results import Results, Terms, Variant
from tests.recorded import PHASES_MS, summary, variant

SEEDS = (0, 1, 2)
STEP_IMAGES = 128
CROSSING_MB = 7.5
"""Of a window by the route that was chosen on the link."""


DRAIN_SECONDS = 0.7


def row(name: str, *rates: float, drain_ms: float = 0.0) -> dict[str, object]:
    return {
        "variant": name,
        "rates": list(rates),
        "drains_ms": [drain_ms for _ in rates],
        "phases_ms_by_block": [PHASES_MS] * len(rates),
        "cross_node_mb": CROSSING_MB,
    }


TRAINED = (
    variant("data_parallel", *(summary(seed=seed) for seed in SEEDS)),
    Variant(
        Config.model_validate(
            {
                "name": "late",
                "classifier": {"layout": "node"},
                "exchange": {"kind": "delayed", "delay": 1},
                "train": {"steps": 300},
            }
        ),
        tuple(summary("late", seed=seed) for seed in SEEDS),
    ),
)
TABLE = [
    row("ceiling", *[9000.0] * 6),
    row("late", *[2560.0] * 6, drain_ms=1e3 * DRAIN_SECONDS),
    row("data_parallel", 640.0, 320.0, 1280.0, 640.0, 320.0, 1280.0),
]


def test_time_is_images_by_the_speed_of_the_seeds_own_rounds() -> None:
    baseline, _ = on_link(TRAINED, TABLE)
    assert [run.images_per_second for run in baseline.summaries] == [640, 320, 1280]
    for run, step in zip(baseline.summaries, (0.2, 0.4, 0.1), strict=True):
        seconds = [each.train_seconds for each in run.evaluations]
        assert seconds == pytest.approx([100 * step, 200 * step, 300 * step])
        assert run.train_seconds == pytest.approx(300 * step)
        assert run.step_ms.mean == pytest.approx(1e3 * step)
        # The table's exchange wait is 30 of 100 ms.
        assert run.phases_ms["exchange_wait"].mean == pytest.approx(300 * step)
        assert run.seconds_to(0.8) == pytest.approx(200 * step)
        assert run.cross_node_mb_per_step == CROSSING_MB


def test_a_window_of_a_run_that_goes_on_from_other_ranks_has_its_own_images() -> None:
    once = summary().model_copy(update={"images_per_window": 256})
    (found,) = on_link([variant("data_parallel", once)], [row("data_parallel", 640.0)])
    assert found.summaries[0].step_ms.mean == pytest.approx(1e3 * 256 / 640)


def test_a_drain_is_charged_once() -> None:
    _, late = on_link(TRAINED, TABLE)
    step = STEP_IMAGES / 2560
    for run in late.summaries:
        end = 300 * step + DRAIN_SECONDS
        assert run.seconds_to(0.8) == pytest.approx(200 * step + DRAIN_SECONDS), "before its end"
        assert run.seconds_to(0.9) == pytest.approx(end), "and at its end, once"
        assert run.train_seconds == pytest.approx(end)


def test_accuracy_is_as_trained_and_who_has_no_speed_is_left_out() -> None:
    (found,) = on_link(TRAINED, TABLE[:2])
    assert found.name == "late"
    assert [run.final for run in found.summaries] == [run.final for run in TRAINED[1].summaries]


def test_first_windows_that_wait_are_charged_so() -> None:
    values = TRAINED[1].config.to_yaml()
    config = Config.model_validate(yaml.safe_load(values) | {"name": "late"})
    exchange = config.exchange.model_copy(update={"synchronous_windows": 50})
    trained = Variant(config.model_copy(update={"exchange": exchange}), TRAINED[1].summaries)
    table = [row("late", *[2560.0] * 3), row("late_on_time", *[1280.0] * 3)]
    (late,) = on_link([trained], table)
    step = STEP_IMAGES / 2560
    assert late.summaries[0].seconds_to(0.8) == pytest.approx((2 * 50 + 150) * step)


def test_who_waits_at_first_brings_a_twin_that_always_does() -> None:
    async_, powersgd = "experiments/lab/hybrid_async.yaml", "experiments/rivals/ddp_powersgd.yaml"
    twin = f"{async_},exchange.delay=0,name=hybrid_async_on_time"
    assert with_early([async_, powersgd]) == (async_, powersgd, twin)
    assert early_speed(load(powersgd, ())) == "ddp"
    assert loaded(twin, ()).exchange.delay == 0


def test_fewer_rounds_than_seeds_are_refused() -> None:
    with pytest.raises(UserError, match="2 rounds for 3 seeds; measure more rounds"):
        on_link(TRAINED[:1], [row("data_parallel", 100.0, 300.0)])


def test_a_seed_has_the_waits_of_its_own_rounds() -> None:
    waits = (10.0, 20.0, 40.0)
    blocks = [
        dict.fromkeys(PHASES_MS, 0.0) | {"forward": 80.0, "exchange_wait": wait} for wait in waits
    ]
    measured = row("data_parallel", *[640.0] * 3) | {"phases_ms_by_block": blocks}
    (found,) = on_link(TRAINED[:1], [measured])
    shares = [run.phases_ms["exchange_wait"].mean / run.step_ms.mean for run in found.summaries]
    assert shares == pytest.approx([wait / (80 + wait) for wait in waits])


def test_a_seed_has_the_same_rounds_though_another_is_missing() -> None:
    """It diverged in one variant; else that one's speeds would be of other times."""
    whole, _ = on_link(TRAINED, TABLE)
    some = replace(TRAINED[0], summaries=(TRAINED[0].summaries[0], TRAINED[0].summaries[2]))
    found, _ = on_link((some, TRAINED[1]), TABLE)
    speeds = {run.seed: run.images_per_second for run in whole.summaries}
    assert {run.seed: run.images_per_second for run in found.summaries} == {
        seed: speeds[seed] for seed in (0, 2)
    }


def test_times_of_a_training_that_was_resumed_are_known_on_the_link() -> None:
    """They come from its images alone, and its checkpoints' drains are not among them."""
    drained = [
        each.model_copy(update={"drained": True, "train_seconds": 0.0})
        for each in summary().evaluations
    ]
    resumed = summary().model_copy(
        update={"train_seconds_known": False, "evaluations": tuple(drained)}
    )
    (found,) = on_link(
        [variant("data_parallel", resumed)], [row("data_parallel", 640.0, drain_ms=1e3)]
    )
    assert found.summaries[0].seconds_to(0.8) == pytest.approx(200 * STEP_IMAGES / 640 + 1.0)


def test_the_page_tells_how_times_were_found(tmp_path: Path) -> None:
    timed = on_link(TRAINED, TABLE)
    Conclusion.of(Results("slow", timed, timing=HOW), Terms()).write(tmp_path)
    assert HOW in (tmp_path / "comparison.md").read_text()
    report = (tmp_path / "report.html").read_text()
    assert HOW in report
    assert "wall time on every rank" not in report
    write_runs(tmp_path, timed)
    again = variants_in(tmp_path)
    assert [each.summaries for each in again] == [each.summaries for each in timed]
