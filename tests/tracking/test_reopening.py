"""A run that goes on after a failure: no step is there twice, and none is missing."""

import math
import shutil
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from harness.config import Config
from harness.measure.summary import DIVERGED_TAG
from harness.tracking.run_folder import RunFolder
from harness.tracking.tracker import Tracker

CONFIG = {"train": {"steps": 9}, "name": "again"}


def config_of(empty_store: Path, folder: Path) -> Config:
    store = shutil.copy(empty_store, folder / "mlflow.db")
    tracking = {"uri": f"sqlite:///{store}", "folder": str(folder), "system_metrics_seconds": 0}
    return Config.model_validate(CONFIG | {"tracking": tracking})


def loss(window: int, attempt: int) -> dict[str, float]:
    return {"train/loss": window + attempt / 10}


def test_no_step_is_there_twice_and_none_is_missing(empty_store: Path, tmp_path: Path) -> None:
    config, folder = config_of(empty_store, tmp_path), tmp_path / "run"
    folder.mkdir()
    first = Tracker.start(config, folder, {})
    for window in range(1, 6):
        first.log(window, loss(window, 0))
    first.tag(DIVERGED_TAG, "the loss")
    first.finish("FAILED")
    assert first.run_id is not None
    # Two windows were recorded in the folder and had not reached the store.
    file = RunFolder(folder).append_metrics()
    for window in (6, 7):
        file.write(f'{{"step": {window}, "time": 1.0, "metrics": {{"train/loss": {window}.0}}}}\n')
    file.write('{"step": 8, "ti')
    file.close()

    again = Tracker.go_on(config, folder, {"hosts": []}, window=6)
    assert again.run_id == first.run_id
    for window in range(7, 10):
        again.log(window, loss(window, 1))
    again.finish("FINISHED")

    recorded = [(point["step"], point["metrics"]) for point in RunFolder(folder).points()]
    assert recorded == [(n, loss(n, 0)) for n in range(1, 7)] + [(n, loss(n, 1)) for n in (7, 8, 9)]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert DIVERGED_TAG not in run.data.tags
    points = client.get_metric_history(again.run_id, "train/loss")
    assert Counter(point.step for point in points) == dict.fromkeys(range(1, 10), 1)


def test_what_was_trained_twice_keeps_its_first_value_in_the_store(
    empty_store: Path, tmp_path: Path
) -> None:
    config, folder = config_of(empty_store, tmp_path), tmp_path / "run"
    folder.mkdir()
    first = Tracker.start(config, folder, {})
    first.log(1, loss(1, 0))
    first.log(2, loss(2, 0))
    first.finish("FAILED")
    again = Tracker.go_on(config, folder, {}, window=1)
    again.log(2, loss(2, 1) | {"new": 1.0})
    again.log(0, {"summary/step_ms": 1.0})
    again.finish("FINISHED")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert again.run_id is not None
    (second,) = [
        point for point in client.get_metric_history(again.run_id, "train/loss") if point.step == 2
    ]
    assert second.value == 2.0
    assert client.get_run(again.run_id).data.metrics["new"] == 1.0


def test_a_store_that_is_away_is_no_reason_not_to_go_on(tmp_path: Path) -> None:
    config = Config.model_validate(
        CONFIG | {"tracking": {"uri": "http://127.0.0.1:9", "folder": str(tmp_path)}}
    )
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_config(config)
    folder.write_mlflow({"run_id": "known"})
    again = Tracker.go_on(config, folder.path, {}, window=0)
    again.log(1, loss(1, 1))
    again.finish("FINISHED")
    assert again.run_id == "known"
    assert [point["step"] for point in folder.points()] == [1]


def test_an_exchange_that_was_chosen_again_is_recorded(empty_store: Path, tmp_path: Path) -> None:
    """On other ranks, where a run measures again. The rest of the config stays as it began."""
    config, folder = config_of(empty_store, tmp_path), tmp_path / "run"
    folder.mkdir()
    Tracker.start(config, folder, {}).finish("FAILED")
    resumed = config.train.model_copy(update={"resume": str(folder)})
    other = config.exchanging(route="flat").model_copy(update={"train": resumed})
    again = Tracker.go_on(other, folder, {}, window=0)
    again.finish("FINISHED")
    assert again.run_id is not None
    assert RunFolder(folder).config == config.exchanging(route="flat")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    told = client.get_run(again.run_id).data.tags["warning/exchange"]
    assert told.startswith("the run goes on with exchange.route=flat instead of auto, which was")
    kept = Path(client.download_artifacts(again.run_id, "config.yaml", str(tmp_path)))
    assert kept.read_text() == (folder / "config.yaml").read_text()


def test_values_that_are_no_numbers_are_counted_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = Config.model_validate(CONFIG | {"tracking": {"enabled": False}})
    first = Tracker.start(config, folder, {})
    for window in (1, 2, 3):
        first.log(window, {"train/loss": math.nan})
    first.finish("FAILED")
    again = Tracker.go_on(config, folder, {}, window=2)
    again.log(3, {"train/loss": math.inf})
    again.finish("FINISHED")
    counts = [point["metrics"]["train/loss_nonfinite"] for point in RunFolder(folder).points()]
    assert counts == [1, 2, 3]
