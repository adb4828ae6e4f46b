"""Exactly one run makes a run's folder, and nothing is left of a run that never started."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.config import Config
from harness.errors import UserError
from harness.tracking.folders import check_free, claim, claimed, new_file
from harness.tracking.tracker import Tracker

SETTINGS = Config.model_validate({"train": {"steps": 1}, "tracking": {"enabled": False}})


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: claim(None, tmp_path / "runs" / "r-1"), range(24)))
    names = {each.folder.name for each in claims}
    assert names == {"r-1", *(f"r-1-{number}" for number in range(2, 25))}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names


def test_logs_that_begin_at_once_are_files_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda _: new_file(tmp_path / "a.b-s0.log"), range(8)))
    assert {file.name for file in files} == {
        "a.b-s0.log",
        *(f"a.b-s0-{number}.log" for number in range(2, 9)),
    }


def test_of_two_runs_that_were_given_one_folder_one_is_refused(tmp_path: Path) -> None:
    def start(number: int) -> str:
        try:
            Tracker.start(SETTINGS, claim(tmp_path / "out", tmp_path).folder, {}).finish("FINISHED")
        except UserError as error:
            return str(error)
        return "trained"

    (tmp_path / "out").mkdir()
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(start, range(8)))
    assert said.count("trained") == 1
    assert sum("already contains a run; give another" in each for each in said) == 7


@pytest.mark.parametrize(
    "left", ["config.yaml", "metrics.jsonl", "summary.json", "checkpoint.json"]
)
def test_a_given_folder_that_holds_a_run_is_refused(tmp_path: Path, left: str) -> None:
    (tmp_path / left).touch()
    with pytest.raises(UserError, match="already contains a run"):
        claim(tmp_path, tmp_path / "automatic")
    assert [path.name for path in tmp_path.iterdir()] == [left]


def test_a_given_folder_may_be_there_and_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    check_free(tmp_path)
    assert claim(tmp_path, tmp_path / "automatic").folder == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make the run's folder .*file: File exists"):
        claim(tmp_path / "file", tmp_path / "automatic")


def test_after_an_error_only_what_is_empty_goes(tmp_path: Path) -> None:
    def fails(given: Path | None, leaves: str = "") -> None:
        with claimed(given, tmp_path / "a" / "b" / "run") as folder:
            if leaves:
                (folder / leaves).touch()
            raise UserError("the model is none")

    for given in (None, tmp_path / "new" / "folder"):
        with pytest.raises(UserError, match="the model is none"):
            fails(given)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="the model is none"):
        fails(None, "trace")
    assert (tmp_path / "a" / "b" / "run" / "trace").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="the model is none"):
        fails(tmp_path / "mine")
    assert (tmp_path / "mine").exists()
