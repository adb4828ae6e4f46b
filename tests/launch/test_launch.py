"""Real horovodruns of small ranks: how they end, what is reported, and that no process is left."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.errors import UserError
from harness.launch import launch as launching
from harness.launch.launch import MARK, Outcome, launch
from harness.signals import Noted, handled
from tests.waiting import wait_for

RANK = Path(__file__).with_name("rank.py")
ROOT = Path(__file__).resolve().parents[2]
HOSTS = "localhost:1,127.0.0.1:1"
LAUNCH = """
import sys
from pathlib import Path
from harness.launch.launch import launch
folder = Path(sys.argv[3])
command = [sys.executable, sys.argv[1], sys.argv[2], str(folder)]
outcome = launch(command, 2, "localhost:1,127.0.0.1:1", folder / "log.txt")
print("stopped", outcome.stopped, "exit", outcome.exit_code)
"""


def run(mode: str, folder: Path) -> tuple[Outcome, str]:
    screen = io.StringIO()
    command = [sys.executable, str(RANK), mode, str(folder)]
    outcome = launch(command, 2, HOSTS, folder / "log.txt", screen)
    assert_gone(folder)
    return outcome, screen.getvalue()


def assert_gone(folder: Path) -> None:
    """Asserts that no rank is alive, nor any process of the launch with this folder as argument."""
    names = [file.read_text() for file in folder.glob("started-*")]
    assert names, "no rank started: the test would show nothing"
    alive = [pid for pid in names if psutil.pid_exists(int(pid))]
    relatives = []
    for process in psutil.process_iter():
        try:
            if MARK in process.environ() and str(folder) in process.cmdline():
                relatives.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    assert alive == []
    assert relatives == []


def test_rank_0_is_shown_everything_is_logged_and_no_secret_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    monkeypatch.setenv("HOROVOD_FUSION_THRESHOLD", "1024")
    outcome, screen = run("progress", tmp_path)
    assert (outcome.exit_code, outcome.reason, outcome.stopped) == (0, "", False)
    assert sorted(screen.splitlines()) == ["done 0", "rank 0 starts"]
    assert sorted(outcome.log.read_text().splitlines()) == [
        "[0 stderr] done 0",
        "[0 stdout] rank 0 starts",
        "[1 stderr] done 1",
        "[1 stdout] rank 1 starts",
    ]
    names = set((tmp_path / "environment-1").read_text().splitlines())
    assert {"PATH", "HOROVOD_FUSION_THRESHOLD", MARK} <= names
    assert not {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"} & names


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    outcome, _ = run("mistake", tmp_path)
    assert outcome.exit_code == 2
    assert outcome.reason == "harness: num_classes is 3; use replicated"


def test_a_crash_is_told_by_its_cause_not_by_its_victims(tmp_path: Path) -> None:
    outcome, screen = run("crash", tmp_path)
    assert outcome.exit_code == 1
    assert outcome.reason.startswith("rank 1 failed:\nTraceback (most recent call last)")
    assert outcome.reason.endswith("ValueError: the cause")
    assert "Traceback" not in screen
    assert "HorovodInternalError: gone" in outcome.log.read_text()


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    outcome, _ = run("killed", tmp_path)
    assert outcome.exit_code == 1
    assert "rank 1 was killed by SIGKILL" in outcome.reason


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        ("stuck", "rank 1 on 127.0.0.1 did not move, and others wait"),
        ("halted", "rank 1 on 127.0.0.1 did not move (its process is stopped), and others wait"),
        ("waiting", "all ranks wait for each other, and nothing crosses the network: "),
    ],
)
def test_who_stands_still_is_named_and_all_are_ended(
    mode: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.launch.standstill.SETTLE_SECONDS", 4.0)
    monkeypatch.setattr("harness.launch.standstill.IDLE_RATE", 10**12)  # tests use the network, too
    outcome, screen = run(mode, tmp_path)
    assert outcome.exit_code == 1
    first, here, there, _ = outcome.reason.splitlines()
    assert first.startswith(cause)
    assert re.fullmatch(r"  rank 0 on localhost: exchange_wait of window 7 for \d+ s", here)
    assert there.startswith(f"  rank 1 on 127.0.0.1: {'data' if mode == 'stuck' else 'exchange'}")
    log = outcome.log.read_text()
    # Who sleeps answers with its stack; the process that is stopped cannot.
    assert log.count("most recent call first") == (1 if mode == "halted" else 2)
    assert "harness-pulse" not in log + screen


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("_started", signal.SIGTERM),
        ("_started", signal.SIGUSR1),
        ("_end", signal.SIGINT),
        ("_end", signal.SIGTERM),
        ("_end", signal.SIGUSR1),
    ],
)
def test_a_signal_that_arrives_while_ranks_start_or_end_is_not_lost(
    moment: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who starts a run again after a failure must know that it is to end."""
    original = getattr(launching, moment)

    def interrupted(*given: object) -> object:
        os.kill(os.getpid(), number)
        return original(*given)

    monkeypatch.setattr(launching, moment, interrupted)
    command = [sys.executable, str(RANK), "killed", str(tmp_path)]
    with handled([number], Noted().arrives):  # otherwise it might end this process
        outcome = launch(command, 2, HOSTS, tmp_path / "log.txt", io.StringIO())
    assert (outcome.exit_code, outcome.stopped) == (1, True)
    assert ("was killed by SIGKILL" in outcome.reason) == (moment == "_end")


def test_ranks_may_tidy_up_when_the_user_stops_them(tmp_path: Path) -> None:
    said = stop_when_ready("tidy", tmp_path, signal.SIGINT)
    assert said.endswith("stopped True exit 1\n")
    assert len(list(tmp_path.glob("tidied-*"))) == 2
    assert_gone(tmp_path)


def test_ranks_that_do_not_listen_are_ended(tmp_path: Path) -> None:
    said = stop_when_ready("deaf", tmp_path, signal.SIGTERM)
    assert said.endswith("stopped True exit 1\n")
    assert_gone(tmp_path)


def test_ranks_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    stop_when_ready("tidy", tmp_path, signal.SIGKILL)
    wait_for(lambda: len(list(tmp_path.glob("tidied-*"))) == 2)


def stop_when_ready(mode: str, folder: Path, number: signal.Signals) -> str:
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(RANK), mode, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for(lambda: len(list(folder.glob("ready-*"))) == 2)
    finally:
        process.send_signal(number)
    return process.communicate(timeout=60)[0]


@pytest.mark.parametrize(
    ("hosts", "told"),
    [
        ("localhost:1", "--np 2 needs 2 slots, but --hosts localhost:1 has 1"),
        ("localhost", "write NAME:SLOTS"),
        ("localhost:2,:1", "write NAME:SLOTS"),
        ("no-such-host.invalid:2", "does not resolve"),
    ],
)
def test_hosts_that_cannot_be_used_are_told_before_the_start(
    hosts: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        launch([sys.executable, str(RANK), "progress", str(tmp_path)], 2, hosts, tmp_path / "log")
    assert os.listdir(tmp_path) == []


SSH = """#!/bin/sh
cd /
for line; do :; done
exec sh -c "$line"
"""
"""In the place of ssh: the last argument is a line for the shell of a host, in another folder."""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.3"])
def test_ranks_start_in_the_folder_of_the_launch_whatever_its_name(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.3 is no address of this machine's interfaces, so its rank is started by ssh."""
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "it's a; $(folder) & more"
    folder.mkdir()
    monkeypatch.chdir(folder)
    outcome = launch(["sh", "-c", "pwd -P"], 1, f"{host}:1", tmp_path / "log", io.StringIO())
    assert outcome.exit_code == 0, outcome
    assert outcome.log.read_text() == f"[0 stdout] {folder}\n"


def test_no_home_folder_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run as users without one, or with one that is read-only."""
    monkeypatch.setenv("HOME", "/proc/no-home")
    outcome = launch(["true"], 1, "localhost:1", tmp_path / "log", io.StringIO())
    assert outcome.exit_code == 0, outcome


def test_a_locale_that_lacks_characters_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "iso-8859-1")  # as in such a locale
    said = "import sys; print('50%|\u2588\u2588 \u00b7 \u5b57'); print(sys.stdout.encoding)"
    command = [sys.executable, "-c", said]
    outcome = launch(command, 1, "localhost:1", tmp_path / "log", io.StringIO())
    assert outcome.exit_code == 0, outcome
    assert outcome.log.read_text(encoding="utf-8") == "[0 stdout] 50%|██ · 字\n[0 stdout] utf-8\n"
