"""The record of a run in real stores: a SQLite file, and an MLflow server that is taken away."""

import itertools
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from harness.config import Config
from harness.errors import UserError
from harness.tracking.address import store_uri
from harness.tracking.connection import check_store, connect, set_status
from harness.tracking.node_gauges import monitor_node
from harness.tracking.run_folder import RunFolder
from harness.tracking.tracker import Tracker
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def config(uri: str | None, **tracking: Any) -> Config:
    own = {"uri": uri, "study": "which", "system_metrics_seconds": 0.2, **tracking}
    return Config.model_validate(
        {"name": "hybrid", "seed": 3, "train": {"steps": 5}, "tracking": own}
    )


def start(uri: str, folder: Path) -> Tracker:
    folder.mkdir(exist_ok=True)
    return Tracker.start(config(uri), folder, {"git_commit": "abc", "host": "h"})


def in_file(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def test_a_run_is_whole_in_the_store_and_in_its_folder(store: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = start(store, folder)
    for step in range(120):
        tracker.log(step, {"train/loss": step / 4, "time/step_ms": 7.0})
    (folder / "chart.txt").write_text("a chart")
    tracker.artifact(folder / "chart.txt")
    tracker.finish("FINISHED")

    assert tracker.run_id is not None
    assert RunFolder(folder).mlflow_run_id == tracker.run_id
    client = connect(store)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "hybrid-s3"
    expected = {"study": "which", "variant": "hybrid", "seed": "3"}
    assert {name: run.data.tags[name] for name in expected} == expected
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert run.data.params == {
        name: str(value) for name, value in config(store).flattened().items()
    }
    steps = [(step, step / 4) for step in range(120)]
    assert history(client, tracker.run_id, "train/loss") == steps
    assert [(line["step"], line["metrics"]["train/loss"]) for line in in_file(folder)] == steps
    names = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert names == {"config.yaml", "environment.json", "metrics.jsonl", "chart.txt"}
    local = Path(client.download_artifacts(tracker.run_id, "config.yaml", str(tmp_path)))
    assert "hybrid" in local.read_text()


def test_values_that_are_no_numbers_are_counted(store: str, tmp_path: Path) -> None:
    tracker = start(store, tmp_path / "run")
    values = (1.0, math.inf, 2.0, math.nan, -math.inf)
    for step, value in enumerate(values):
        tracker.log(step, {"train/loss": value, "time/step_ms": 1.0})
    tracker.finish("FINISHED")

    assert tracker.run_id is not None
    client = connect(store)
    assert history(client, tracker.run_id, "train/loss") == [(0, 1.0), (2, 2.0)]
    counted = [(1, 1.0), (3, 2.0), (4, 3.0)]
    assert history(client, tracker.run_id, "train/loss_nonfinite") == counted
    assert len(history(client, tracker.run_id, "time/step_ms")) == 5
    assert len(in_file(tmp_path / "run")) == 5


def test_the_end_is_named_while_a_large_file_still_travels(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file arrives even if it takes longer than the end waits for anything else."""
    monkeypatch.setattr("harness.tracking.delivery.FINISH_SECONDS", 1.0)
    send, ended_before = MlflowClient.log_artifact, list[str]()

    def slow(client: MlflowClient, run_id: str, path: str, folder: str | None = None) -> None:
        if path.endswith("large.bin"):
            time.sleep(4)
            ended_before.append(connect(store).get_run(run_id).info.status)
        send(client, run_id, path, folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", slow)
    tracker = start(store, tmp_path / "run")
    (tmp_path / "large.bin").write_bytes(bytes(10))
    tracker.large_artifact(tmp_path / "large.bin", "traces")
    tracker.finish("FINISHED")
    assert ended_before == ["FINISHED"]
    found = connect(store).list_artifacts(str(tracker.run_id), "traces")
    assert [file.path for file in found] == ["traces/large.bin"]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_is_named_as_what_it_was(store: str, tmp_path: Path, status: Any) -> None:
    tracker = start(store, tmp_path / "run")
    assert tracker.run_id is not None
    assert connect(store).get_run(tracker.run_id).info.status == "RUNNING"
    tracker.finish(status)
    assert connect(store).get_run(tracker.run_id).info.status == status


DIES = """
import sys
from pathlib import Path
from harness.config import Config
from harness.tracking.run_folder import RunFolder
from harness.tracking.tracker import Tracker
tracking = {"uri": sys.argv[1]}
config = Config.model_validate({"train": {"steps": 5}, "tracking": tracking})
Tracker.start(config, Path(sys.argv[2]), {}).log(0, {"train/loss": 1.0})
raise SystemExit("the process ends without saying how")
"""


def test_a_run_that_died_is_not_called_finished_and_the_launcher_can_say_so(
    store: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", DIES, store, str(tmp_path)]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "without saying how" in died.stderr
    assert [line["metrics"] for line in in_file(tmp_path)] == [{"train/loss": 1.0}]
    run_id = RunFolder(tmp_path).mlflow_run_id
    assert run_id is not None
    assert connect(store).get_run(run_id).info.status == "RUNNING"
    set_status(store, run_id, "KILLED")
    assert connect(store).get_run(run_id).info.status == "KILLED"


def test_each_node_has_its_gauges(store: str, tmp_path: Path) -> None:
    tracker = start(store, tmp_path / "run")
    with (
        monitor_node(config(store), tracker.run_id, 0),
        monitor_node(config(store), tracker.run_id, 1),
    ):
        time.sleep(1.0)
    tracker.finish("FINISHED")
    assert tracker.run_id is not None
    client = connect(store)
    for node in (0, 1):
        found = history(client, tracker.run_id, f"system/node_{node}/cpu_utilization_percentage")
        assert [step for step, _ in found] == list(range(len(found)))
        assert len(found) >= 3
        assert all(0 <= value <= 100 for _, value in found)
        memory = history(
            client, tracker.run_id, f"system/node_{node}/system_memory_usage_megabytes"
        )
        assert memory[0][1] > 100


def test_without_tracking_the_folder_has_everything(tmp_path: Path) -> None:
    tracker = Tracker.start(config("http://127.0.0.1:9", enabled=False), tmp_path, {})
    tracker.log(1, {"train/loss": 2.0})
    with monitor_node(config("http://127.0.0.1:9", enabled=False), tracker.run_id, 0):
        tracker.finish("FINISHED")
    assert tracker.run_id is None
    assert RunFolder(tmp_path).mlflow_run_id is None
    assert [(line["step"], line["metrics"]) for line in in_file(tmp_path)] == [
        (1, {"train/loss": 2.0})
    ]


def test_a_silent_tracker_takes_everything(tmp_path: Path) -> None:
    tracker = Tracker.silent()
    tracker.log(1, {"train/loss": 2.0})
    tracker.artifact(tmp_path / "nothing")
    tracker.finish("FAILED")
    assert tracker.run_id is None


def test_the_default_store_is_a_file_here_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(config(None).tracking) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    assert store_uri(config(None).tracking) == "http://host:1"
    assert store_uri(config("sqlite:///own.db").tracking) == f"sqlite:///{tmp_path}/own.db"


def test_a_server_that_refuses_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=r"does not answer \(connection refused\); start it"):
        check_store(config(uri).tracking)


def test_a_server_that_never_answers_is_asked_once_and_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(UserError, match=r"does not answer \(timed out\)") as told:
            check_store(config(f"http://127.0.0.1:{server.getsockname()[1]}").tracking)
        assert connections(server) == 1
    assert "\n" not in str(told.value)


def connections(server: socket.socket) -> int:
    """How often somebody has connected to a server that accepts nobody."""
    server.setblocking(False)
    for number in itertools.count():
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return number
    raise AssertionError


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (403, b"Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        (403, b"no", "correct its user and password, or their rights"),
        (401, b"who are you", "correct its user and password"),
    ],
)
def test_a_server_that_lets_nobody_in_is_told(status: int, body: bytes, advice: str) -> None:
    class Denies(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keeps the server's output out of the tests' output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Denies) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="refuses access") as told:
            check_store(config(f"http://127.0.0.1:{server.server_port}").tracking)
        server.shutdown()
    assert advice in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("./mlruns", "is not a store"),
        ("file:///tmp/mlruns", "is not a store"),
        ("sqlite:////no/such/folder/mlflow.db", "cannot write"),
        (
            "http://user:s3cret@host:5000",
            "MLFLOW_TRACKING_URI, or keep them in ~/.mlflow/credentials",
        ),
        ("http://s3cret@host:5000", "contains a user, password or token"),
        ("http://host:5000?token=s3cret", "contains a user, password or token"),
        ("sqlite://mlflow.db", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////tmp", "names the folder /tmp"),
        ("http://[half", "does not answer"),
    ],
)
def test_a_store_that_cannot_be_is_told(uri: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        check_store(config(uri).tracking)
    assert "s3cret" not in str(error.value)


def test_checking_makes_no_store(tmp_path: Path) -> None:
    check_store(config(f"sqlite:///{tmp_path / 'mlflow.db'}").tracking)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be taken for one " * 20)
    with pytest.raises(UserError, match=r"does not answer .*not a database"):
        check_store(config(f"sqlite:///{tmp_path / 'mlflow.db'}").tracking)


def test_a_deleted_experiment_is_told(store: str, tmp_path: Path) -> None:
    client = connect(store)
    client.delete_experiment(client.create_experiment("harness"))
    with pytest.raises(UserError, match=r"was deleted; .* restore --experiment-id"):
        start(store, tmp_path / "run")


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, Callable[[signal.Signals], None]]]:
    """A real server; its address, and a way to send its processes a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(port), 240)
        yield uri, lambda number: os.killpg(server.pid, number)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_training_goes_on_when_the_server_hangs_comes_back_and_dies(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    send_request, asking = requests.Session.send, set[threading.Thread]()

    def send_noted(*arguments: Any, **options: Any) -> requests.Response:
        asking.add(threading.current_thread())
        return send_request(*arguments, **options)

    monkeypatch.setattr(requests.Session, "send", send_noted)
    with mlflow_server(tmp_path) as (uri, send):
        check_store(config(uri).tracking)
        first, second = start(uri, tmp_path / "first"), start(uri, tmp_path / "second")
        first.log(0, {"train/loss": 1.0})
        second.log(0, {"train/loss": 1.0})
        assert first.run_id is not None
        client = connect(store)
        wait_for(lambda: bool(history(client, str(first.run_id), "train/loss")))
        with monitor_node(config(uri), second.run_id, 0):
            time.sleep(1.5)
            send(signal.SIGSTOP)
            asking.clear()
            for step in range(1, 200):
                first.log(step, {"train/loss": 1.0})
                time.sleep(0.03)
            assert asking, "nothing was sent"
            assert threading.current_thread() not in asking, "the training waited for an answer"
            send(signal.SIGCONT)
            first.finish("FINISHED")
            send(signal.SIGKILL)
            for step in range(1, 60):
                second.log(step, {"train/loss": 1.0})
                time.sleep(0.03)
        second.finish("FINISHED")

    # The first run lost the store for a while only, and is complete in it.
    assert [step for step, _ in history(client, first.run_id, "train/loss")] == list(range(200))
    assert client.get_run(first.run_id).info.status == "FINISHED"
    # The second lost it for good: its folder is complete, and one warning tells where it is.
    assert [line["step"] for line in in_file(tmp_path / "second")] == list(range(60))
    told = [record.getMessage() for record in caplog.records if "second" in record.getMessage()]
    assert len(told) == 1
    assert "training goes on" in told[0]
    assert str(tmp_path / "second") in told[0]
    others = [
        record.getMessage() for record in caplog.records if "first" not in record.getMessage()
    ]
    assert others == told
