"""A study taken up from its store says what it said when it ran; predictions stand beside it."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.cli import main
from harness.config import load
from harness.measure.store import open_store
from harness.study import compare as study
from harness.study.compare import compare
from harness.study.prediction import Prediction, write_predictions
from harness.study.record import record_predictions
from harness.study.results import Terms
from harness.study.store import read_study

from .test_compare import client, experiment, fake_command

FILES = ("comparison.md", "comparison.csv", "verdict.csv", "report.html")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a study of two variants and two seeds has run, with its store."""
    here = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(study, "train_command", fake_command)
        open_store(f"sqlite:///{here}/mlflow.db")
        more = "tracking: {experiment: recorded}"
        paths = [experiment(here, name, more) for name in ("fast", "base")]
        assert compare(paths, [], 1, None, 2, "which", Terms(), here / "first") == 0
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
        assert (here / "again" / name).read_text() == (here / "first" / name).read_text(), name
    assert (here / "again" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    out = capfd.readouterr().out
    assert "First by time to 89.00%: fast" in out
    assert "mlflow ui" in out.splitlines()[-1]
    own = client(here).search_runs(
        [client(here).get_experiment_by_name("recorded").experiment_id],  # type: ignore[union-attr]
        "tags.variant = 'comparison'",
    )
    assert len(own) == 2  # the first, and this one


def test_it_can_be_asked_again_with_another_baseline_and_target(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--baseline", "fast", "--target", "0.8", "--no-record", "--folder", "again"]
    assert main(["compare", "--from-study", "which", *words]) == 0
    out = capfd.readouterr().out
    said = " ".join(out.split())
    assert "base: 2 seeds cannot tell. It reaches 80.00% 2.00 times later than fast" in said
    assert "baseline: fast" in out
    assert "mlflow" not in out
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
    record_predictions(settings, "which", [prediction("base", 110.0)])
    assert read_study("sqlite:///mlflow.db", "which").predictions == (prediction("base", 110.0),)

    words = ["--no-record", "--folder", "again"]
    assert main(["compare", "--from-study", "which", *words]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    base = "base 110.0 100.0 +10.0 1200 1005 +19.4 33.0 30.0 +3.0 12.00 12.50 -4.0"
    assert base.split() in rows
    fast = "fast - 100.0 - - 2005 - - 30.0 - - 12.50 -"
    assert fast.split() in rows
    errors = pd.read_csv(here / "again" / "predictions.csv", index_col="variant")
    assert errors.loc["base", "step_ms_error_percent"] == pytest.approx(10)
    assert "Predicted beside measured" in (here / "again" / "report.html").read_text()
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
    ("words", "told"),
    [
        (["base.yaml", "--from-study", "which"], "runs nothing, found base.yaml"),
        (["--from-study", "which", "--seeds", "3"], "--seeds belongs to runs to come"),
        (["base.yaml", "--no-record"], "--no-record belongs to a recorded study"),
        (["--from-study", "which", "--baseline", "best"], "no variant of this study; it has fast"),
        (["base.yaml", "--baseline", "best"], "--baseline best is no variant of this study"),
        (["--from-study", "what"], "no study 'what'"),
        (["--from-study", "which", "--experiment", "else"], "no study 'which'"),
        (["--from-study", "which", "--uri", "sqlite:///none.db"], "there is no MLflow store"),
        (["--from-study", "which", "--predictions", "none.json"], "cannot read the predictions"),
        (["--from-study", "which", "--target", "95"], "--target 95 is no share"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], told: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert main(["compare", *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line
    assert sorted(here.rglob("*")) == before
