"""A lab leaves the machine as it was, however it is made and ends; errors tell what forbids it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.errors import UserError
from harness.lab.cpu_limit import find_groups
from harness.lab.entry import RealSsh, obstacle_to_ssh
from harness.lab.host import NAMESPACES, STATE, LabHost, write_files
from harness.lab.lab import HOSTS
from harness.lab.rate import bits_per_second, format_rate
from tests.labs import (
    EVERY_WAY,
    HARNESS,
    HERE,
    IS_ROOT,
    ROOT,
    USER,
    Way,
    harness,
    in_ways,
    processes_with,
    require_lab,
    traces,
    unable,
    words_of,
)
from tests.waiting import wait_for


@in_ways(*EVERY_WAY)
def test_down_leaves_the_machine_as_it_was(lab: Way, before: dict[str, object]) -> None:
    share = share_where_possible("h2=0.5") if lab is not USER else []
    lab.up("--hosts", "2", "--rate", "100mbit", *share)
    assert traces() != before
    lab.harness("lab", "down")
    assert traces() == before
    lab.harness("lab", "down")
    assert traces() == before


def share_where_possible(share: str) -> list[str]:
    groups = find_groups(Path("/proc/mounts").read_text())
    return ["--share", share] if groups and os.access(groups.mount, os.W_OK) else []


@in_ways(HERE, USER)
def test_down_ends_whatever_runs_in_the_hosts(
    lab: Way, before: dict[str, object], place: Path
) -> None:
    lab.up("--hosts", "2")
    ready = place / "ready"
    detached = f"setsid nohup sh -c 'touch {ready}; sleep 600; touch {ready}' > /dev/null 2>&1 &"
    lab.run("ssh", "h2", detached)
    wait_for(ready.exists)
    waiting = subprocess.Popen([*lab.words, "lab", "run", "--", "sleep", "600"], cwd=ROOT)
    wait_for(lambda: processes_with("leash.py sleep 600"))
    lab.harness("lab", "down")
    assert waiting.wait(20) in (255, 128 + signal.SIGKILL)
    assert processes_with(str(ready)) == []
    assert traces() == before


@in_ways(HERE, USER)
def test_down_leaves_nothing_of_links_with_latency(lab: Way, before: dict[str, object]) -> None:
    lab.up("--hosts", "2", "--latency", "1ms", "--loss", "1%")
    assert len(processes_with("harness.lab.relay")) == 1
    lab.harness("lab", "down")
    assert processes_with("harness.lab.relay") == []
    assert traces() == before


@in_ways(HERE, USER)
def test_a_relay_that_was_killed_is_told_and_started_anew(
    lab: Way, before: dict[str, object]
) -> None:
    lab.up("--hosts", "2", "--latency", "1ms")
    kill_relay()
    for command in (["status"], ["run", "--", "true"]):
        done = lab.harness("lab", *command, check=False)
        assert done.returncode != 0
        assert "they cannot reach each other; restart it with: harness lab rate" in (
            done.stdout + done.stderr
        )
    lab.harness("lab", "rate", "none")
    lab.harness("lab", "status")
    assert lab.run("ssh", "h2", "hostname") == "h2\n"
    kill_relay()
    assert "relay between the lab's hosts has ended" in lab.harness("lab", "down").stderr
    assert traces() == before


def kill_relay() -> None:
    (relay,) = processes_of("harness.lab.relay")
    relay.kill()
    wait_for(lambda: not processes_with("harness.lab.relay"))


def processes_of(word: str) -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if word in words_of(each)]


@in_ways(HERE, USER)
def test_up_takes_down_the_lab_before_it(lab: Way, before: dict[str, object]) -> None:
    lab.up("--hosts", "3")
    lab.up("--hosts", "2", "--slots", "1")
    assert lab.harness("lab", "status", "--hosts").stdout == "h1:1,h2:1\n"
    assert len(list(lab.seen(NAMESPACES).glob("harnesslab-h*"))) == 2
    lab.harness("lab", "down")
    assert traces() == before


@in_ways(USER)
def test_a_mistake_leaves_the_lab_of_before_as_it_is(lab: Way, before: dict[str, object]) -> None:
    lab.up("--hosts", "1")
    assert lab.harness("lab", "up", "--rate", "fast", check=False).returncode == 2
    assert lab.harness("lab", "status", "--hosts").stdout == "h1:4\n"


@in_ways(HERE, USER)
def test_a_host_that_was_killed_ends_alone_and_is_removed_with_the_others(
    lab: Way, before: dict[str, object]
) -> None:
    lab.up("--hosts", "2")
    first = "h2/sshd_config" if lab is HERE and obstacle_to_ssh() is None else "doors/h2"
    (victim,) = processes_of(first)
    victim.kill()
    wait_for(lambda: lab.harness("lab", "status").stdout.endswith(" 0 processes\n"))
    assert lab.run("ssh", "h1", "hostname") == "h1\n"
    assert lab.harness("lab", "run", "--", "ssh", "h2", "hostname", check=False).returncode == 255
    lab.harness("lab", "down")
    assert traces() == before


@in_ways(USER)
def test_with_the_first_process_of_a_cell_all_of_it_ends(
    lab: Way, before: dict[str, object]
) -> None:
    lab.up("--hosts", "2", "--latency", "1ms")
    waiting = subprocess.Popen([*lab.words, "lab", "run", "--", "sleep", "600"], cwd=ROOT)
    wait_for(lambda: processes_with("leash.py sleep 600"))
    (first,) = lab.cells()
    first.kill()
    assert waiting.wait(20) != 0
    wait_for(lambda: traces() == before, 20)
    assert processes_with("sleep 600") == []
    assert "no lab is up" in lab.harness("lab", "status", check=False).stderr


MOMENTS = [
    STATE / "missing.json",
    NAMESPACES / "harnesslab-h3",
    STATE / "relay.log",
    STATE / "h1" / "sshd.log",
]


@in_ways(HERE)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
def test_a_start_that_was_killed_is_mended(
    moment: Path, lab: Way, before: dict[str, object]
) -> None:
    stop_start_at(lab, moment, signal.SIGKILL)
    lab.harness("lab", "down")
    assert traces() == before
    stop_start_at(lab, moment, signal.SIGKILL)
    lab.up("--hosts", "2")
    assert lab.run("ssh", "h2", "hostname") == "h2\n"
    lab.harness("lab", "down")
    assert traces() == before


@in_ways(HERE, USER)
def test_a_start_that_the_user_stops_leaves_nothing(lab: Way, before: dict[str, object]) -> None:
    stop_start_at(lab, NAMESPACES / "harnesslab-h3", signal.SIGINT)
    assert traces() == before


@in_ways(USER)
def test_a_start_that_was_killed_leaves_no_cell(lab: Way, before: dict[str, object]) -> None:
    stop_start_at(lab, NAMESPACES / "harnesslab-h3", signal.SIGKILL)
    wait_for(lambda: traces() == before, 20)


def stop_start_at(lab: Way, moment: Path, number: signal.Signals) -> None:
    start = subprocess.Popen(
        [*lab.words, "lab", "up", "--hosts", "20", "--rate", "100mbit", "--latency", "5ms"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not lab.seen(moment).exists():
        assert start.poll() is None, "it ended before"
    start.send_signal(number)
    assert start.wait(30) != 0
    assert not lab.seen(HOSTS).exists(), "it was stopped too late: the test shows nothing"


@in_ways(HERE)
def test_a_full_disk_leaves_nothing_of_a_start(lab: Way, before: dict[str, object]) -> None:
    """Where /run has room for a few files; what is mounted there goes with the last process."""
    if lab.in_cell:
        pytest.skip("needs root, to mount a small /run")
    small = "mount -t tmpfs -o nr_inodes=30 small /run && mkdir /run/sshd && "
    script = f'{small} "$@"; code=$?; ls /run; exit $code'
    up = [*HARNESS, "lab", "up", "--hosts", "9"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *up],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
    assert done.stdout == "sshd\n"
    assert traces() == before


def test_where_users_may_make_no_namespaces_it_is_told_in_a_line() -> None:
    command = unable(*HARNESS, "lab", "up")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    if "Traceback" in done.stderr:
        pytest.skip(f"no user namespace can be made here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 2
    assert done.stderr.startswith("harness: harness lab without root needs a user namespace: user.")
    assert "user.max_user_namespaces=0 forbids it; `sysctl user.max_user_namespaces" in done.stderr
    assert done.stderr.count("\n") == 1
    assert processes_with("harness.lab.keeper") == []


def test_real_ssh_without_root_is_refused() -> None:
    command = [*(USER if IS_ROOT else HERE).words, "lab", "up", "--ssh", "real"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("harness: --ssh real needs root")
    assert done.stderr.count("\n") == 1


def test_what_real_ssh_misses_is_named(tmp_path: Path) -> None:
    if not IS_ROOT:
        pytest.skip("needs root")
    (tmp_path / "ssh").touch(mode=0o755)
    told = obstacle_to_ssh(str(tmp_path))
    assert told is not None
    assert told.startswith("needs sshd, ssh-keygen; ")
    assert "install e.g. openssh-server" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--hosts", "0"], "give a whole number from 1 to 99"),
        (["--slots", "0"], "give a whole number from 1 to"),
        (["--rate", "200"], "'200' is not a rate; write e.g. 200mbit"),
        (["--rate", "0mbit"], "is not a rate"),
        (["--rate", "0.4kbit"], "a rate of 0.4kbit is less than 1kbit; write 1kbit or more"),
        (["--latency", "abc"], "'abc' is not a latency; write e.g. 20ms"),
        (["--latency", "1m"], "'1m' is not a latency"),
        (["--jitter", "5ms"], "a jitter of 5 ms is more than the latency of 0 ms"),
        (["--loss", "150%"], "a loss of 150 % drops every packet"),
        (["--share", "h3=0.5"], "--share names h3, but the hosts are h1 to h2"),
        (["--share", "h1"], "is not a share of a core"),
    ],
)
def test_a_start_that_makes_no_sense_is_told_before_anything_is_made(
    options: list[str], told: str
) -> None:
    done = harness("lab", "up", *options, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_lab_the_way_to_one_is_told() -> None:
    require_lab()
    done = harness("lab", "run", "--", sys.executable, check=False)
    assert done.returncode == 2
    assert "no lab is up; start one with: harness lab up" in done.stderr


def test_cores_are_limited_by_either_version_of_control_groups(tmp_path: Path) -> None:
    first = find_groups(f"cgroup {tmp_path} cgroup rw,relatime,cpu,cpuacct 0 0\n")
    assert first is not None
    assert not first.unified
    second, host = tmp_path / "second", tmp_path / "second" / "harnesslab" / "h1"
    host.mkdir(parents=True)
    (second / "cgroup.controllers").write_text("cpuset cpu io\n")
    unified = find_groups(f"cgroup2 {second} cgroup2 rw,nosuid 0 0\n")
    assert unified is not None
    for cores, text in [(0.3, "30000 100000"), (None, "max 100000")]:
        unified.limit("h1", cores)
        assert (host / "cpu.max").read_text() == text
        assert unified.limit_of("h1") == cores
    (second / "cgroup.controllers").write_text("cpuset\n")
    assert find_groups(f"cgroup2 {second} cgroup2 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n") is None


def test_the_cpu_controller_is_taken_back_unless_another_group_has_a_limit(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    own = find_groups(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert own is not None
    enabled = tmp_path / "cgroup.subtree_control"
    for limit, weight, expected in [
        ("max 100000", "100", "-cpu"),
        ("50000 100000", "100", "cpu"),
        ("max 100000", "200", "cpu"),
    ]:
        enabled.write_text("cpu")
        (other / "cpu.max").write_text(limit)
        (other / "cpu.weight").write_text(weight)
        own.take_back_controller()
        assert enabled.read_text() == expected


def test_an_sshd_that_has_ended_is_not_open() -> None:
    host = LabHost(1, 1, (0,), direct=False)
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert not RealSsh().is_open(host, ended.pid)


def test_accounts_may_be_written_in_any_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = tmp_path / "passwd"
    accounts.write_bytes(b"root:x:0:0:root:/root:/bin/bash\nj:x:9:9:J\xe9r\xf4me:/home/j:/bin/sh\n")
    read, home = Path.read_text, Path.home()

    def reads(path: Path, *given: Any, **named: Any) -> str:
        return read(accounts if path == Path("/etc/passwd") else path, *given, **named)

    monkeypatch.setattr(Path, "read_text", reads)
    monkeypatch.setattr("harness.lab.host.STATE", tmp_path)
    host = LabHost(1, 1, (0,), direct=False)
    write_files(host, [host])
    written = (host.files / "passwd").read_bytes()
    assert b"J\xe9r\xf4me" in written
    assert f"root:x:0:0:root:{home}:/bin/sh".encode() in written


def test_a_rate_is_read_with_its_unit_and_told_with_it() -> None:
    assert bits_per_second("1.5gbit") == 1.5e9
    assert bits_per_second("200Mbit") == 200e6
    assert bits_per_second("64kbit") == 64e3
    with pytest.raises(UserError, match="is not a rate"):
        bits_per_second("200mbps")
    with pytest.raises(UserError, match="a rate of 100gbit is more than 34gbit; write none"):
        bits_per_second("100gbit")
    assert [format_rate(each) for each in (1.5e9, 200e6, 64e3)] == ["1.5Gbit", "200Mbit", "64Kbit"]
