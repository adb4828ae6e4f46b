"""A lab leaves the machine as it was, however it ends; and says where it cannot be."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cluster import lab
from harness.cluster.cpu_limit import find_groups
from harness.cluster.testhost import NAMESPACES, STATE, SWITCH, processes
from harness.errors import UserError
from tests.lab import HARNESS, ROOT, harness, in_lab, processes_with, require_lab, traces, wait_for


@pytest.fixture
def before() -> Iterator[dict[str, object]]:
    """The machine without a lab; afterwards it is without one again."""
    require_lab()
    harness("lab", "down")
    try:
        yield traces()
    finally:
        harness("lab", "down")


def test_down_leaves_the_machine_as_it_was(before: dict[str, object]) -> None:
    harness("lab", "up", "--hosts", "2", "--rate", "100mbit", *share_where_possible("h2=0.5"))
    assert traces() != before
    harness("lab", "down")
    assert traces() == before
    harness("lab", "down")
    assert traces() == before


def share_where_possible(share: str) -> list[str]:
    groups = find_groups(Path("/proc/mounts").read_text())
    return ["--share", share] if groups and os.access(groups.mount, os.W_OK) else []


def test_down_ends_whatever_runs_in_the_hosts(before: dict[str, object], tmp_path: Path) -> None:
    harness("lab", "up", "--hosts", "2")
    ready = tmp_path / "ready"
    detached = f"setsid nohup sh -c 'touch {ready}; sleep 600; touch {ready}' > /dev/null 2>&1 &"
    in_lab("ssh", "h2", detached)
    wait_for(ready.exists)
    waiting = subprocess.Popen([*HARNESS, "lab", "run", "--", "sleep", "600"], cwd=ROOT)
    wait_for(lambda: processes_with("leash.py sleep 600"))
    harness("lab", "down")
    assert waiting.wait(20) in (255, 128 + signal.SIGKILL)
    assert processes_with(str(ready)) == []
    assert traces() == before


def test_down_leaves_nothing_of_links_with_latency(before: dict[str, object]) -> None:
    harness("lab", "up", "--hosts", "2", "--latency", "1ms", "--loss", "1%")
    assert len(processes_with("harness.cluster.relay")) == 1
    harness("lab", "down")
    assert processes_with("harness.cluster.relay") == []
    assert traces() == before


def test_a_relay_that_was_killed_is_told_and_started_anew(before: dict[str, object]) -> None:
    harness("lab", "up", "--hosts", "2", "--latency", "1ms")
    kill_relay()
    for command in (["status"], ["run", "--", "true"]):
        done = harness("lab", *command, check=False)
        assert done.returncode != 0
        assert "nothing passes between them; start it anew: harness lab rate" in (
            done.stdout + done.stderr
        )
    harness("lab", "rate", "none")
    harness("lab", "status")
    assert in_lab("ssh", "h2", "hostname") == "h2\n"
    kill_relay()
    assert "relay that joins the lab's hosts has ended" in harness("lab", "down").stderr
    assert traces() == before


def kill_relay() -> None:
    (relay,) = processes(SWITCH)
    os.kill(relay, signal.SIGKILL)
    wait_for(lambda: not processes(SWITCH))


def test_up_takes_down_the_lab_before_it(before: dict[str, object]) -> None:
    harness("lab", "up", "--hosts", "3")
    harness("lab", "up", "--hosts", "2", "--slots", "1")
    assert harness("lab", "status", "--hosts").stdout == "h1:1,h2:1\n"
    assert len(list(NAMESPACES.glob("harnesslab-h*"))) == 2
    harness("lab", "down")
    assert traces() == before


@pytest.mark.parametrize(
    "moment",
    [
        STATE / "key",
        NAMESPACES / "harnesslab-h3",
        STATE / "relay.log",
        STATE / "h1" / "sshd.log",
    ],
)
def test_a_start_that_was_killed_is_mended(moment: Path, before: dict[str, object]) -> None:
    stop_start_at(moment, signal.SIGKILL)
    harness("lab", "down")
    assert traces() == before
    stop_start_at(moment, signal.SIGKILL)
    harness("lab", "up", "--hosts", "2")
    assert in_lab("ssh", "h2", "hostname") == "h2\n"
    harness("lab", "down")
    assert traces() == before


def test_a_start_that_the_user_stops_leaves_nothing(before: dict[str, object]) -> None:
    stop_start_at(NAMESPACES / "harnesslab-h3", signal.SIGINT)
    assert traces() == before


def stop_start_at(moment: Path, number: signal.Signals) -> None:
    start = subprocess.Popen(
        [*HARNESS, "lab", "up", "--hosts", "20", "--rate", "100mbit", "--latency", "5ms"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not moment.exists():
        assert start.poll() is None, "it ended before"
    start.send_signal(number)
    assert start.wait(30) != 0
    assert not (STATE / "hosts.json").exists(), "it was stopped too late: the test shows nothing"


def test_whoever_is_not_root_is_told_so() -> None:
    command = [*HARNESS, "lab", "up"]
    if os.geteuid() == 0:
        command = ["unshare", "--user", *command]
        possible = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False)
        if possible.returncode:
            pytest.skip("no user namespace can be made here")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("harness: harness lab needs root")
    assert done.stderr.count("\n") == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "ssh").touch(mode=0o755)
    told = lab.obstacle(str(tmp_path))
    assert told is not None
    assert told.startswith("misses ip, tc, sshd, ssh-keygen, ")
    assert "install e.g. iproute2 openssh-server" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--hosts", "0"], "give a whole number from 1 to 99"),
        (["--slots", "0"], "give a whole number from 1 to"),
        (["--rate", "200"], "'200' is no rate; write e.g. 200mbit"),
        (["--rate", "0mbit"], "is no rate"),
        (["--latency", "abc"], "'abc' is no latency; write e.g. 20ms"),
        (["--latency", "1m"], "'1m' is no latency"),
        (["--jitter", "5ms"], "a jitter of 5 ms with a latency of 0 ms"),
        (["--loss", "150%"], "a loss of 150 % lets nothing pass"),
        (["--share", "h3=0.5"], "--share names h3, the hosts are h1 to h2"),
        (["--share", "h1"], "is no share of a core"),
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


def test_a_rate_is_read_with_its_unit() -> None:
    from harness.cluster.testhost import bits_per_second

    assert bits_per_second("1.5gbit") == 1.5e9
    assert bits_per_second("200Mbit") == 200e6
    assert bits_per_second("64kbit") == 64e3
    with pytest.raises(UserError, match="is no rate"):
        bits_per_second("200mbps")
