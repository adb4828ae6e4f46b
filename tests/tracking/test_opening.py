"""A run is opened in its store, or refused in one line within seconds, with nothing left open."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from harness.config import Config, DataConfig, TrackingConfig
from harness.errors import UserError
from harness.tracking import connection as store_module
from harness.tracking.address import key_of, sqlite_file, sqlite_uri, store_uri
from harness.tracking.connection import connect, open_experiment, open_store
from harness.tracking.tracker import Tracker
from tests.horovodrun import ROOT
from tests.stores import new_store


def config(uri: str, **tracking: Any) -> Config:
    own = {"uri": uri, "system_metrics_seconds": 0, **tracking}
    return Config.model_validate({"name": "t", "train": {"steps": 5}, "tracking": own})


def begin(folder: Path, uri: str, **tracking: Any) -> Tracker:
    folder.mkdir()
    return Tracker.start(config(uri, **tracking), folder, {})


def runs(uri: str) -> list[Run]:
    client = connect(uri)
    places = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(places))


@contextmanager
def locked(file: Path, how: str) -> Iterator[None]:
    """The store while another process is writing to it."""
    program = f"""
import sqlite3, sys
base = sqlite3.connect({str(file)!r}, isolation_level=None)
base.execute("begin {how}")
print("locked", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    try:
        yield
    finally:
        other.communicate(timeout=30)


@pytest.mark.parametrize("how", ["immediate", "exclusive"])
def test_a_store_that_stays_locked_is_one_line(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCKED_SECONDS", 1.0)
    uri = new_store(tmp_path)
    told = pytest.raises(UserError, match=r"does not answer \(database is locked\)")
    with locked(tmp_path / "mlflow.db", how), told:
        begin(tmp_path / "run", uri)
    assert list((tmp_path / "run").iterdir()) == []
    assert runs(uri) == []


def test_a_store_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    uri = new_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", check_same_thread=False)) as base:
        base.isolation_level = None
        base.execute("begin immediate")
        threading.Timer(1.5, base.rollback).start()
        begin(tmp_path / "run", uri).finish("FINISHED")
    assert [run.info.status for run in runs(uri)] == ["FINISHED"]


def test_what_the_store_refuses_of_a_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    uri = new_store(tmp_path)
    fonts = [f"/fonts/{number:04}" for number in range(1000)]  # a parameter has 6,000 characters
    given = config(uri).model_copy(
        update={"data": DataConfig.model_validate({"train_fonts": fonts})}
    )
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="does not accept a run") as error:
        Tracker.start(given, tmp_path / "run", {})
    assert "\n" not in str(error.value)
    assert list((tmp_path / "run").iterdir()) == []
    assert {run.info.status for run in runs(uri)} <= {"FAILED"}


def test_a_run_that_was_made_before_the_store_refused_is_closed_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    uri = new_store(tmp_path)
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    with pytest.raises(UserError, match=r"does not accept a run \(No space left on device\)"):
        begin(tmp_path / "run", uri)
    assert [run.info.status for run in runs(uri)] == ["FAILED"]
    assert list((tmp_path / "run").iterdir()) == []


def test_a_store_by_another_version_of_mlflow_is_called_that(tmp_path: Path) -> None:
    uri = new_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as base:
        base.execute("update alembic_version set version_num = 'fffffffff'")
        base.commit()
    with pytest.raises(UserError, match=r"another version of MLflow .* use that version, or set"):
        begin(tmp_path / "run", uri)


def test_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    uri = new_store(tmp_path)
    content = bytearray((tmp_path / "mlflow.db").read_bytes())
    content[100:20_000] = b"\xff" * 19_900
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(UserError, match=r"does not answer \(.*malformed"):
        begin(tmp_path / "run", uri)


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    begin(tmp_path / "run", uri).finish("KILLED")
    assert [run.info.status for run in runs(uri)] == ["KILLED"]


OPENS = """
import sys, time
from pathlib import Path
from harness.config import Config, DataConfig
from harness.tracking.tracker import Tracker
import mlflow.store.tracking.sqlalchemy_store
folder = Path(sys.argv[1])
folder.mkdir()
(folder.parent / f"{folder.name}.ready").touch()
while not (folder.parent / "go").exists():
    time.sleep(0.002)
tracking = {"uri": "sqlite:///" + str(folder.parent / "mlflow.db"), "experiment": "new"}
config = Config.model_validate({"train": {"steps": 1}, "tracking": tracking})
Tracker.start(config, folder, {}).finish("FINISHED")
"""


def test_runs_that_begin_at_once_make_the_store_and_the_experiment_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENS, str(tmp_path / name)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    end = time.monotonic() + 250
    while len(list(tmp_path.glob("*.ready"))) < len(processes):
        assert time.monotonic() < end
        time.sleep(0.05)
    (tmp_path / "go").touch()
    for process in processes:
        _, said = process.communicate(timeout=250)
        assert process.returncode == 0, said
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert [run.info.status for run in runs(uri)] == ["FINISHED"] * len(processes)
    names = [each.name for each in connect(uri).search_experiments()]
    assert sorted(names) == ["Default", "new"]


def test_whoever_does_not_see_the_lock_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if MLflow's own server made the store, or on a file system without locks."""
    uri, opened = new_store(tmp_path), list[str]()
    true = store_module.connect

    def loses(uri: str) -> MlflowClient:
        opened.append(uri)
        if len(opened) < 3:
            raise RuntimeError("(sqlite3.OperationalError) duplicate column name: step")
        return true(uri)

    monkeypatch.setattr(store_module, "connect", loses)
    open_store(uri)
    assert opened == [uri] * 3


@pytest.mark.parametrize("name", ["a b", "a%20b", "a?b", "a#b", "ä", "a%3Fb@x:y", "100%"])
def test_a_folder_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / name
    here.mkdir()
    new_store(here)
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = store_uri(TrackingConfig())
    assert sqlite_file(uri) == here / "mlflow.db"
    client = open_store(uri)
    run = client.create_run(open_experiment(client, uri, "x")).info.run_id
    (here / "file.txt").write_text("content")
    client.log_artifact(run, "file.txt")
    assert (here / "mlartifacts" / run / "artifacts" / "file.txt").read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == [name], "something beside it"
    with closing(sqlite3.connect(here / "mlflow.db")) as base:
        assert base.execute("select count(*) from runs").fetchone() == (1,)


def test_an_address_is_decoded_as_mlflow_does(tmp_path: Path) -> None:
    assert sqlite_file("sqlite:////tmp/my%20store.db") == Path("/tmp/my store.db")
    assert sqlite_file("sqlite:////tmp/a.db?timeout=3") == Path("/tmp/a.db")
    assert sqlite_file("http://host/x") is None
    for file in (Path("/tmp/a?b%c#d.db"), Path("/tmp/a.db")):
        assert sqlite_file(sqlite_uri(file)) == file


def test_messages_name_what_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = Config.model_validate({"train": {"steps": 1}})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI=mlruns is not a store"):
        store_uri(nothing.tracking)
    with pytest.raises(UserError, match=r"^tracking.uri=http-x://h is not a store"):
        store_uri(config("http-x://u:p@h".replace("u:p@", "")).tracking)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none/mlflow.db")
    with pytest.raises(UserError, match=r"or set MLFLOW_TRACKING_URI to another"):
        open_store(store_uri(nothing.tracking))
    assert key_of("http://host") == "tracking.uri"
    assert store_uri(config("databricks").tracking) == "databricks"


@pytest.mark.parametrize("uri", ["databricks", "databricks://none", "postgresql://127.0.0.1:9/x"])
def test_what_is_not_to_be_reached_is_one_line(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="does not answer") as error:
        open_store(store_uri(config(uri).tracking))
    assert "\n" not in str(error.value)


def test_a_user_without_a_name_has_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `docker run --user`: no entry in /etc/passwd, and no variable."""

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", unknown)
    uri = new_store(tmp_path)
    begin(tmp_path / "run", uri).finish("FINISHED")
    assert runs(uri)[0].data.tags["mlflow.user"] == str(os.getuid())


def test_nothing_about_the_machine_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.measure import machine

    def fails(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/proc/meminfo")

    for name in ("psutil.virtual_memory", "socket.gethostname"):
        monkeypatch.setattr(name, fails)
    monkeypatch.setattr(machine, "_cpu_model", fails)
    monkeypatch.setattr("subprocess.run", fails)
    found = machine.environment()
    assert (found["memory_bytes"], found["host"], found["git_commit"]) == (None, None, None)


def test_reading_needs_no_leave_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = new_store(tmp_path)
    may = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and may(path, mode))
    with pytest.raises(UserError, match="cannot write the MLflow store"):
        open_store(uri)
    open_store(uri, reads=True)


def test_shipping_a_store_takes_no_lock_along(tmp_path: Path) -> None:
    """A store that has its tables is opened without a lock."""
    uri = new_store(tmp_path)
    open_store(uri)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    shutil.rmtree(tmp_path)
