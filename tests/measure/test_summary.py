"""A run's summary comes back as it was written, whole or not at all."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.measure.summary import Evaluation, RunSummary, Spread
from harness.tracking.run_folder import SUMMARY as SUMMARY_FILE
from harness.tracking.run_folder import RunFolder

SPREAD = Spread(minimum=1.0, mean=2.0, maximum=4.0)


def evaluation(window: int, top1: float) -> Evaluation:
    metrics = {"val/top1": top1, "val/loss": 2.5}
    return Evaluation(window=window, images=window * 8, train_seconds=window / 10, metrics=metrics)


SUMMARY = RunSummary(
    name="hybrid",
    seed=3,
    ranks=4,
    nodes=2,
    windows=30,
    images=240,
    parameters_backbone=1000,
    parameters_classifier=91,
    images_per_second=1 / 3,
    untimed_windows=10,
    timed_windows=20,
    step_ms=SPREAD,
    phases_ms={"data": SPREAD},
    cross_node_mb_per_step=1.5,
    cross_node_mb_per_step_formula=1.5,
    in_node_mb_per_step=0.5,
    in_node_mb_per_step_formula=0.5,
    train_seconds=3.0,
    evaluations=(evaluation(10, 0.25), evaluation(20, 0.75), evaluation(30, 0.5)),
    mlflow_run_id=None,
    commit="0123abc",
)


def test_it_comes_back_as_it_was_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_summary(SUMMARY)
    assert RunFolder(tmp_path).read_summary() == SUMMARY
    assert [path.name for path in tmp_path.iterdir()] == [SUMMARY_FILE]


def test_one_from_before_ranks_were_told_apart_still_reads(tmp_path: Path) -> None:
    old = SUMMARY.model_dump_json(exclude={"per_rank"})
    (tmp_path / SUMMARY_FILE).write_text(old)
    assert RunFolder(tmp_path).read_summary() == SUMMARY


def test_a_write_that_ends_early_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder(tmp_path).write_summary(SUMMARY)

    def half(path: Path, text: str, encoding: str) -> int:
        with path.open("w", encoding=encoding) as file:
            file.write(text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space"):
        RunFolder(tmp_path).write_summary(SUMMARY.model_copy(update={"seed": 4}))
    assert RunFolder(tmp_path).read_summary() == SUMMARY


def test_the_last_evaluation_is_the_final_one() -> None:
    assert SUMMARY.final == {"val/top1": 0.5, "val/loss": 2.5}


@pytest.mark.parametrize(
    ("target", "seconds"), [(0.0, 1.0), (0.25, 1.0), (0.26, 2.0), (0.75, 2.0), (0.76, None)]
)
def test_seconds_to_a_target_are_those_of_the_first_that_reached_it(
    target: float, seconds: float | None
) -> None:
    assert SUMMARY.seconds_to(target) == seconds


def test_whoever_stops_at_the_target_pays_one_drain() -> None:
    """The end has paid its own, in its time."""
    last = SUMMARY.evaluations[-1]
    drained = SUMMARY.model_copy(update={"drain_seconds": 0.4, "windows": last.window})
    first = SUMMARY.evaluations[0]
    assert drained.seconds_to(0.0) == pytest.approx(first.train_seconds + 0.4)
    only_the_end = drained.model_copy(update={"evaluations": (last,)})
    assert only_the_end.seconds_to(0.0) == last.train_seconds


def test_it_is_a_record() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SUMMARY.seed = 4
    with pytest.raises(ValidationError, match="colour"):
        RunSummary.model_validate(SUMMARY.model_dump() | {"colour": "red"})


def diverged() -> RunSummary:
    last = SUMMARY.evaluations[-1]
    metrics = last.metrics | {"val/loss": math.nan, "exchange/distance": math.inf}
    return SUMMARY.model_copy(
        update={"evaluations": (last.model_copy(update={"metrics": metrics}),)}
    )


def test_a_run_that_diverged_comes_back(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_summary(diverged())
    final = RunFolder(tmp_path).read_summary().final
    assert math.isnan(final["val/loss"])
    assert final["exchange/distance"] == math.inf
    assert final["val/top1"] == 0.5


def test_null_in_an_older_file_is_not_a_number(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_summary(diverged())
    file = tmp_path / SUMMARY_FILE
    file.write_text(file.read_text().replace("NaN", "null").replace("Infinity", "null"))
    final = RunFolder(tmp_path).read_summary().final
    assert math.isnan(final["val/loss"])
    assert math.isnan(final["exchange/distance"])


def test_a_drain_of_any_length_leaves_evaluations_as_far_apart() -> None:
    """What is known of a time is that it lies between two evaluations."""
    for drain in (0.0, 1e-6, 0.4):
        run = SUMMARY.model_copy(update={"drain_seconds": drain, "windows": 10**6})
        times = [run.seconds_at(each) for each in run.evaluations]
        assert times == [each.train_seconds + drain for each in run.evaluations]
        saved = run.evaluations[0].model_copy(update={"drained": True})
        assert run.seconds_at(saved) == saved.train_seconds


def test_images_of_a_step_are_those_of_the_run_itself(tmp_path: Path) -> None:
    """It may go on from one on other ranks, whose windows had another size."""
    run = SUMMARY.model_copy(update={"images_per_window": 16})
    assert run.images_per_step == 16
    (tmp_path / SUMMARY_FILE).write_text(run.model_dump_json(exclude={"images_per_window"}))
    assert RunFolder(tmp_path).read_summary().images_per_step == 240 / 30, "as far as it is known"
