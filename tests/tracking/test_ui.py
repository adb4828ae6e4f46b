"""`harness ui`: what it prints, which port it takes, and that it leaves no process behind."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from harness.cli import main
from harness.config import TrackingConfig
from harness.errors import UserError
from harness.tracking import ui
from harness.tracking.connection import connect, open_experiment
from harness.tracking.record import way_to_see
from tests.horovodrun import ROOT
from tests.stores import new_store

FILTER = "searchFilter=tags.study%20%3D%20%27which%27"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a store that has a study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = new_store(tmp_path)
    client = connect(uri)
    tags = {"study": "which", "variant": "fast", "seed": "0"}
    client.create_run(open_experiment(client, uri, "harness"), tags=tags)
    return tmp_path


def test_a_port_in_use_is_followed_by_the_next_free_one(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = ui._free_port("127.0.0.1", port)
        assert found > port
        assert capfd.readouterr().err == f"port {port} is in use; using {found}\n"
    assert ui._free_port("127.0.0.1", port) == port
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--study", "what"], "no study 'what' in sqlite:///"),
        (["--uri", "sqlite:///none.db"], "there is no MLflow store"),
        (["--uri", "mlruns"], "is not a store"),
        (["--port", "0"], "argument --port: 0 does not fit; give a whole number from 1 to 65,535"),
        (["--host", "no.such.host.invalid"], "cannot serve at --host no.such.host.invalid"),
        (["which"], "takes options only, found which"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], told: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui", *words]) == 2
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert told in line
    assert out == ""


def test_of_a_store_that_is_a_server_the_address_is_enough(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:pa55word@host:5000/")
    assert main(["ui"]) == 0
    assert capfd.readouterr().out == "http://host:5000/\n"


def test_what_a_comparison_ends_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(uri: str | None, study: str = "which") -> str:
        tracking = {"uri": uri, "experiment": "harness"}
        return way_to_see(TrackingConfig.model_validate(tracking), "1", study)

    assert line(None).endswith("harness ui --study which")
    assert line("sqlite:///mlflow.db").endswith("harness ui --study which")
    assert line(None, "a study").endswith("harness ui --study 'a study'")
    other = line("sqlite:///other.db")
    assert other.endswith(f"harness ui --study which --uri sqlite:///{here}/other.db")
    assert line("http://host:5000") == f"see it at http://host:5000/#/experiments/1/runs?{FILTER}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://t0ken@host:5000")
    assert line(None) == f"see it at http://host:5000/#/experiments/1/runs?{FILTER}"


def test_a_server_that_cannot_start_says_why(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "x")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert ui.show(None, None, "127.0.0.1", 5000) == 1
    assert "MLflow's server has ended" in capfd.readouterr().err


def test_it_serves_the_pages_until_it_is_ended(here: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", "ui", "--study", "which"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.endswith(f"/#/experiments/1/runs?{FILTER}")
        for name in ("127.0.0.1", socket.gethostname()):
            port = address.partition("#")[0].rpartition(":")[2]
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}", headers={"Host": f"{name}:{port.rstrip('/')}"}
            )
            with urllib.request.urlopen(asked, timeout=30) as page:
                assert b"MLflow" in page.read()
        below = psutil.Process(process.pid).children(recursive=True)
        assert below
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        end = time.monotonic() + 30
        while any(each.is_running() and each.status() != "zombie" for each in below):
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


def test_a_host_that_is_none() -> None:
    with pytest.raises(UserError, match="cannot serve at"):
        ui._free_port("no.such.host.invalid", 5000)
