"""A study taken up from its store says what it said when it ran; predictions stand beside it."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.cli import main
from harness.compare.report import IN_TURN
from harness.compare.run_all import Experiments, Ranks, compare
from harness.config import Config, load
from harness.launch import supervisor
from harness.tracking.connection import open_store
from harness.tracking.prediction import Prediction, write_predictions
from harness.tracking.record import record_predictions
from harness.tracking.results import Terms
from harness.tracking.run_folder import RunFolder
from harness.tracking.study import read_study
from harness.tracking.tracker import Tracker
from tests.compare.test_run_all import client, experiment, fake_command
from tests.recorded import summary

FILES = ("comparison.md", "comparison.csv", "verdict.csv", "report.html")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a study of two variants and two seeds has run, with its store."""
    here = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(supervisor, "train_command", fake_command)
        open_store(f"sqlite:///{here}/mlflow.db")
        more = "tracking: {experiment: recorded}"
        paths = [experiment(here, name, more) for name in ("fast", "base")]
        assert compare(Experiments(paths, [], 2), Ranks(1), "which", Terms(), here / "first") == 0
    return here


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in: the store finds its artifacts beside it."""
    place = tmp_path / "here"
    shutil.copytree(trained, place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return place


def test_the_same_comes_out_as_after_the_runs(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--from-study", "which", "--folder", "again"]) == 0
    for name in FILES:
        first = (here / "first" / name).read_text()
        if name == "report.html":  # only those who saw the runs know their order
            assert IN_TURN in first
            first = first.replace(f"<li>{IN_TURN}</li>", "")
        assert (here / "again" / name).read_text() == first, name
    assert (here / "again" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    out = capfd.readouterr().out
    assert "First by time to 89.00%: fast" in out
    assert out.splitlines()[-1].endswith("harness ui --study which")
    own = client(here).search_runs(
        [client(here).get_experiment_by_name("recorded").experiment_id],  # type: ignore[union-attr]
        "tags.variant = 'comparison'",
    )
    assert len(own) == 2  # the first, and this one


def test_a_disk_that_takes_no_files_keeps_nobody_from_the_answer(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "again").mkdir()
    (here / "again" / "comparison.csv").symlink_to("/dev/full")
    assert main(["compare", "--from-study", "which", "--folder", "again"]) == 1
    out, err = capfd.readouterr()
    assert "First by time to 89.00%: fast" in out
    (line,) = err.splitlines()
    assert "cannot write the comparison's files to" in line
    assert "No space left on device" in line


def test_it_can_be_asked_again_with_another_baseline_and_target(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--baseline", "fast", "--target", "0.8", "--no-record", "--folder", "again"]
    assert main(["compare", "--from-study", "which", *words]) == 0
    out = capfd.readouterr().out
    said = " ".join(out.split())
    assert "base: 2 seeds are too few for a test. It reaches 80.00% 2.00x slower than fast" in said
    assert "baseline: fast" in out
    assert "harness ui" not in out
    frame = pd.read_csv(here / "again" / "comparison.csv", index_col="variant")
    assert frame.loc["fast", "speedup"] == 1.0


def prediction(variant: str, step_ms: float) -> Prediction:
    return Prediction(
        variant=variant,
        nodes=2,
        ranks_per_node=2,
        step_ms=step_ms,
        phases_ms={"forward": step_ms - 33, "slice_wait": 3.0, "exchange_wait": 30.0},
        images_per_second=1200.0,
        cross_node_mb_per_step=12.0,
        in_node_mb_per_step=3.0,
        memory_mb=50.0,
    )


def test_predictions_of_the_study_are_found_and_scored(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = load(here / "base.yaml", ["tracking.experiment=recorded"])
    record_predictions(settings.tracking, "which", [prediction("base", 110.0)])
    found = read_study("sqlite:///mlflow.db", "which")
    assert found.predictions == (prediction("base", 110.0),)
    assert not found.predicted_before

    words = ["--no-record", "--folder", "again"]
    assert main(["compare", "--from-study", "which", *words]) == 0
    out = capfd.readouterr().out
    assert "predicted (possibly after the runs), measured" in out
    rows = [line.split() for line in out.splitlines()]
    base = "base 110.0 100.0 +10.0 1200 1005 +19.4 33.0 30.0 +3.0 12.00 12.50 -4.0"
    assert base.split() in rows
    fast = "fast - 100.0 - - 2005 - - 30.0 - - 12.50 -"
    assert fast.split() in rows
    errors = pd.read_csv(here / "again" / "predictions.csv", index_col="variant")
    assert errors.loc["base", "step_ms_error_percent"] == pytest.approx(10)
    assert "Predictions and measurements" in (here / "again" / "report.html").read_text()
    assert "| base | 110.0 | 100.0 | +10.0 |" in (here / "again" / "comparison.md").read_text()


def test_a_file_of_predictions_stands_instead(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_predictions([prediction("fast", 90.0), prediction("none", 1.0)], here / "plan.json")
    words = ["--predictions", "plan.json", "--no-record", "--folder", "again"]
    assert main(["compare", "--from-study", "which", *words]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert any(row[:4] == ["fast", "90.0", "100.0", "-10.0"] for row in rows)
    assert any(row[:4] == ["base", "-", "100.0", "-"] for row in rows)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["base.yaml", "--from-study", "which"], "runs no experiments, found base.yaml"),
        (["--from-study", "which", "--seeds", "3"], "--seeds applies only to new runs"),
        (["base.yaml", "--no-record"], "--no-record applies only to a recorded study"),
        (
            ["--from-study", "which", "--baseline", "best"],
            "not a variant of this study; it has fast",
        ),
        (["base.yaml", "--baseline", "best"], "--baseline best is not a variant of this study"),
        (["--from-study", "what"], "no study 'what'"),
        (["--from-study", "which", "--experiment", "else"], "no study 'which'"),
        (["--from-study", "which", "--uri", "sqlite:///none.db"], "there is no MLflow store"),
        (["--from-study", "which", "--predictions", "none.json"], "cannot read the predictions"),
        (
            ["--from-study", "which", "--target", "95"],
            "--target must be above 0 and at most 1, got 95",
        ),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], expected: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert main(["compare", *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert expected in line
    assert sorted(here.rglob("*")) == before


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty store, in which trainings are stand-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(supervisor, "train_command", fake_command)
    open_store(f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


MORE = "tracking: {experiment: recorded}"


def test_predictions_kept_before_the_runs_are_scored_by_both_ways(
    fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = experiment(fresh, "base", MORE)
    record_predictions(load(path).tracking, "which", [prediction("base", 90.0)])
    record_predictions(load(path).tracking, "which", [prediction("base", 110.0)])
    assert main(["compare", str(path), "--study", "which"]) == 0
    live = capfd.readouterr().out
    record_predictions(load(path).tracking, "which", [prediction("base", 100.0)])  # hindsight
    assert main(["compare", "--from-study", "which", "--no-record", "--folder", "again"]) == 0
    for out in (live, capfd.readouterr().out):
        assert "predicted before the runs, measured" in out
        assert any(line.split()[:3] == ["base", "110.0", "100.0"] for line in out.splitlines())


def test_a_given_file_of_predictions_is_kept_with_the_study(
    fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = experiment(fresh, "base", MORE)
    write_predictions([prediction("base", 120.0)], fresh / "plan.json")
    words = ["--study", "which", "--predictions", "plan.json"]
    assert main(["compare", str(path), *words]) == 0
    assert "predicted before the runs, measured" in capfd.readouterr().out
    found = read_study(f"sqlite:///{fresh}/mlflow.db", "which")
    assert found.predictions == (prediction("base", 120.0),)
    assert found.predicted_before


def test_a_run_that_died_before_mlflow_knew_it_is_found_again(
    fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [str(experiment(fresh, name, MORE)) for name in ("base", "mistaken")]
    assert main(["compare", *paths, "--study", "which"]) == 2
    live = capfd.readouterr().out
    assert main(["compare", "--from-study", "which", "--folder", "again"]) == 0
    for out in (live, capfd.readouterr().out):
        assert "mistaken: no result, its only run failed." in out
        assert any(line.endswith("0, 1 failed") for line in out.splitlines())
    (mistaken,) = (
        v for v in read_study(f"sqlite:///{fresh}/mlflow.db", "which").variants if not v.summaries
    )
    assert mistaken.failures == ("harness: data.root is missing; give a folder",)
    assert mistaken.config.classifier.layout == "node"


def other_run(here: Path, name: str, **changes: object) -> None:
    """One more run of the study, elsewhere, on other images or with other settings."""
    sections = {each: changes.pop(each, {}) for each in ("data", "optimizer", "exchange")}
    values = sections | {
        "name": name,
        "seed": 7,
        "classifier": {"layout": "node"},
        "train": {"steps": 300},
        "tracking": {"experiment": "recorded", "study": "which"},
    }
    folder = here / f"{name}-run"
    folder.mkdir()
    tracker = Tracker.start(Config.model_validate(values), folder, {})
    RunFolder(folder).write_summary(summary(name, seed=7).model_copy(update=changes))
    tracker.artifact(folder / "summary.json")
    tracker.finish("FINISHED")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ranks": 8}, "with 4 ranks on 2 nodes, other with seed 7 with 8 ranks on 2 nodes"),
        ({"nodes": 4}, "with 4 ranks on 2 nodes, other with seed 7 with 4 ranks on 4 nodes"),
        ({"data": {"num_classes": 500}}, "data.num_classes=1000, other has 500"),
        ({"data": {"validation_fonts": ["a.ttf"]}}, "data.validation_fonts="),
        ({"data": {"image_size": 48}}, "data.image_size=32, other has 48"),
    ],
)
def test_runs_that_do_not_compare_are_not_compared(
    changes: dict[str, object], expected: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other_run(here, "other", **changes)
    assert main(["compare", "--from-study", "which", "--folder", "again"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert expected in line
    assert not (here / "again").exists()


def test_runs_of_one_variant_with_other_settings_are_not_compared(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other_run(here, "fast", optimizer={"lr": 0.3})
    assert main(["compare", "--from-study", "which", "--folder", "again"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "fast ran with optimizer.lr=0.1 with seed 5 and with 0.3 with seed 7" in line
    assert not (here / "again").exists()


def test_runs_of_one_variant_may_have_chosen_different_routes(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other_run(here, "fast", exchange={"route": "hierarchical"})
    assert main(["compare", "--from-study", "which", "--no-record", "--folder", "again"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "the runs of fast chose different values of exchange.route (auto, hierarchical)" in out
