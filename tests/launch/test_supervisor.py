"""Which hosts take part again after a failure, and from where a run goes on."""

import os
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from horovod.runner.common.util.env import is_exportable
from horovod.runner.util.remote import get_remote_command

from harness.config import Config
from harness.errors import UserError
from harness.launch import supervisor
from harness.launch.fitness import Checked, check_hosts
from harness.launch.hosts import Host, read_hosts
from harness.launch.launch import Outcome
from harness.launch.supervisor import (
    Policy,
    Training,
    newest_window,
    placed,
    replaced,
    supervise,
)
from harness.signals import Noted, handled
from harness.tracking.run_folder import RunFolder
from harness.train.checkpoint.verdict import mark_bad

H1, H2, H3 = Host("h1", 4), Host("h2", 4), Host("h3", 4)


@pytest.mark.parametrize(
    ("bad", "spares", "expected"),
    [
        ((), (), (H1, H2)),
        ((H2,), (), (H1,)),
        ((H1,), (H3,), (H3, H2)),
        ((H1, H2), (H3,), (H3,)),
        ((H1, H3), (H3,), (H2,)),
        ((H2,), (Host("small", 2),), (H1,)),
        ((H2,), (Host("large", 8),), (H1, Host("large", 4))),
        ((H1, H2), (), ()),
    ],
)
def test_a_spare_takes_the_place_of_a_host_that_failed(
    bad: tuple[Host, ...], spares: tuple[Host, ...], expected: tuple[Host, ...]
) -> None:
    def checked(hosts: tuple[Host, ...]) -> list[Checked]:
        return [Checked(host, "broken" if host in bad else "") for host in hosts]

    assert replaced(checked((H1, H2)), checked(spares)) == expected


def test_this_machine_passes_and_a_folder_that_cannot_be_written_does_not(tmp_path: Path) -> None:
    here = (Host("localhost", 1), Host("127.0.0.1", 1))
    assert [each.fault for each in check_hosts(here, tmp_path / "new", cards=False)] == ["", ""]
    file = tmp_path / "file"
    file.touch()
    (found,) = check_hosts(here[:1], file / "below", cards=False)
    assert found.fault == f"cannot write {file / 'below'} (Not a directory)"


def test_a_host_without_enough_cards_fails(tmp_path: Path) -> None:
    (found,) = check_hosts((Host("localhost", 99),), tmp_path, cards=True)
    assert found.fault.endswith("cards answer instead of 99")


def test_the_newest_checkpoint_that_is_whole_and_not_bad_counts(tmp_path: Path) -> None:
    assert newest_window(tmp_path) == 0
    for name in ("000000020", "000000040", "000000060", "000000080.partial"):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        if name != "000000060":
            (folder / "checkpoint.json").touch()
    assert newest_window(tmp_path) == 40
    mark_bad(tmp_path / "checkpoints" / "000000040", "the loss of window 43 is not finite")
    assert newest_window(tmp_path) == 20


GONE = "127.0.0.2"
"""An address of this machine at which no ssh answers."""


@pytest.mark.parametrize("gone", [GONE, "no-such-host.invalid"])
@pytest.mark.parametrize(
    ("spares", "hosts", "ranks"),
    [("", "localhost:1", 1), ("127.0.0.1:3", "localhost:1,127.0.0.1:1", 2)],
)
def test_a_host_that_is_gone_is_left_out_or_replaced(
    spares: str,
    hosts: str,
    ranks: int,
    gone: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = Config.model_validate({"train": {"steps": 1}})
    training = Training(tmp_path / "x.yaml", (), config, tmp_path, 2, f"localhost:1,{gone}:1")
    found = placed(training, Policy(1, read_hosts(spares) if spares else ()))
    assert (found.hosts, found.ranks) == (hosts, ranks)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"harness: {gone} is left out: ")
    if not spares:
        with pytest.raises(UserError, match="a comparison needs the same ranks"):
            placed(training, Policy(1, same_ranks=True))
        with pytest.raises(UserError, match="no host passed"):
            placed(replace(training, hosts=f"{gone}:2"), Policy(1))


def test_where_all_hosts_pass_nothing_changes(tmp_path: Path) -> None:
    config = Config.model_validate({"train": {"steps": 1}})
    training = Training(tmp_path / "x.yaml", (), config, tmp_path, 2, None)
    assert placed(training, Policy(1)) is training


def test_a_spare_that_is_used_already_is_no_spare(tmp_path: Path) -> None:
    config = Config.model_validate({"train": {"steps": 1}})
    training = Training(tmp_path / "x.yaml", (), config, tmp_path, 2, f"localhost:1,{GONE}:1")
    found = placed(training, Policy(1, read_hosts("localhost:4")))
    assert (found.hosts, found.ranks) == ("localhost:1", 1)


@pytest.fixture
def noting_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh that reaches nothing and writes its arguments to the file `given`."""
    (tmp_path / "ssh").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("noting_ssh")
def test_a_host_that_ssh_has_never_met_is_reached_as_horovodrun_reaches_it(tmp_path: Path) -> None:
    (found,) = check_hosts((Host(GONE, 1),), tmp_path, cards=False)
    assert found.fault == ""
    given = (tmp_path / "given").read_text()
    options = re.findall(r"-o (\w+=\w+)", get_remote_command("true", GONE))
    assert len(options) == 2
    for option in (*options, "BatchMode=yes"):
        assert f"-o {option} " in given


def test_a_restart_that_cannot_begin_keeps_the_reason_of_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate({"train": {"steps": 1}})
    training = Training(tmp_path / "x.yaml", (), config, tmp_path, 2, None)
    log = tmp_path / "log"

    def runs(training: Training, goes_on: bool, log: Path) -> Outcome:
        if goes_on:
            raise UserError("cannot write the log: No space left on device")
        return Outcome(1, "rank 1 failed", log, stopped=False)

    monkeypatch.setattr(supervisor, "placed", lambda training, _: training)
    monkeypatch.setattr(supervisor, "_run", runs)
    outcome = supervise(training, Policy(restarts=3), log)
    assert outcome.exit_code == 1
    assert outcome.reason.splitlines() == [
        "rank 1 failed",
        "harness: not started again: cannot write the log: No space left on device",
    ]


def test_hosts_are_asked_for_the_cards_that_the_run_began_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With train.device=auto, where ranks would take processors if a card is missing."""
    config = Config.model_validate({"train": {"steps": 1}})
    training = Training(tmp_path / "x.yaml", (), config, tmp_path, 2, None)
    asked = []

    def checked(hosts: Sequence[Host], folder: Path, cards: bool) -> list[Checked]:
        asked.append(cards)
        return [Checked(host, "") for host in hosts]

    monkeypatch.setattr(supervisor, "check_hosts", checked)
    placed(training, Policy(1))
    RunFolder(tmp_path).write_environment({"device": "cuda"})
    placed(training, Policy(1))
    assert asked == [False, True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_warning_between_two_starts_is_a_stop(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate({"train": {"steps": 1}})
    training = Training(tmp_path / "x.yaml", (), config, tmp_path, 2, None)
    starts = []

    def runs(training: Training, goes_on: bool, log: Path) -> Outcome:
        starts.append(goes_on)
        return Outcome(1, "rank 1 failed", log, stopped=False)

    def warned(folder: Path) -> int:
        os.kill(os.getpid(), number)
        return 0

    monkeypatch.setattr(supervisor, "placed", lambda training, _: training)
    monkeypatch.setattr(supervisor, "_run", runs)
    monkeypatch.setattr(supervisor, "newest_window", warned)
    with handled([number], Noted().arrives):  # otherwise it might end this process
        outcome = supervise(training, Policy(restarts=3), tmp_path / "log")
    assert (outcome.exit_code, outcome.stopped) == (1, True)
    assert starts == [False]


@pytest.mark.usefixtures("noting_ssh")
def test_a_host_is_checked_with_the_variables_that_its_ranks_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a library that only a variable leads to is missing in the check alone."""
    own = {
        "LD_LIBRARY_PATH": "/of the/driver",
        "CUDA_VISIBLE_DEVICES": "1",
        "MY_PASSWORD": "s3cret",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    check_hosts((Host(GONE, 1),), tmp_path, cards=False)
    given = (tmp_path / "given").read_text()
    assert "'LD_LIBRARY_PATH=/of the/driver'" in given
    assert "MY_PASSWORD" not in given
    assert ("CUDA_VISIBLE_DEVICES" in given) == is_exportable("CUDA_VISIBLE_DEVICES")
