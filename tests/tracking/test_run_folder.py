"""What a run writes into its folder is read back; a missing file is None, not an error."""

from pathlib import Path

import pytest

from harness.config import Config
from harness.tracking.run_folder import CONFIG, METRICS, RECORD, RESTARTS, RunFolder

SETTINGS = Config.model_validate({"name": "t", "seed": 3, "train": {"steps": 5}})


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    assert not any(map(files.has, RECORD))
    assert (files.config, files.summary, files.mlflow_run_id) == (None, None, None)
    assert (files.environment, files.points()) == ({}, [])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.write_config(SETTINGS)
    files.write_environment({"cores": 2})
    files.write_mlflow({"run_id": "7", "tracking_uri": "sqlite:///mlflow.db"})
    assert files.config == SETTINGS
    assert files.environment == {"cores": 2}
    assert files.mlflow_run_id == "7"


def test_of_two_runs_in_one_folder_one_begins(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_config(SETTINGS)
    with pytest.raises(FileExistsError):
        RunFolder(tmp_path).write_config(SETTINGS)


def test_a_line_of_metrics_that_is_cut_is_left_out(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    line = '{"step": 1, "time": 2.5, "metrics": {"train/loss": 3.0}}\n'
    with files.open_metrics() as metrics:
        metrics.write(line + line[:20])
    assert files.points() == [{"step": 1, "time": 2.5, "metrics": {"train/loss": 3.0}}]


def test_a_run_that_could_not_begin_leaves_nothing(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.write_config(SETTINGS)
    files.open_metrics().close()
    assert files.has(CONFIG)
    assert files.has(METRICS)
    files.unmake()
    assert list(tmp_path.iterdir()) == []


def test_a_line_of_metrics_or_a_checkpoint_shows_that_windows_were_trained(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.write_config(SETTINGS)
    with files.open_metrics() as metrics:
        assert not files.has_trained
        metrics.write("{")
    assert files.has_trained
    (tmp_path / METRICS).unlink()
    files.checkpoint(20).with_name("000000020.partial").mkdir(parents=True)
    assert files.has_trained


def test_a_line_of_restarts_that_is_cut_is_left_out_and_harms_no_later_one(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.add_restart('{"restart": 1}')
    with (tmp_path / RESTARTS).open("a") as file:
        file.write('{"restart": 2, "at')
    assert files.restarts() == [{"restart": 1}]
    files.add_restart('{"restart": 2}')
    files.add_restart('{"restart": 3}')
    assert [line["restart"] for line in files.restarts()] == [1, 2, 3]
