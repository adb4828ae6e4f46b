"""Test hosts, made in every way: their names, ssh, links, cores, and commands that run in them."""

import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from harness.lab.cpu_limit import Groups, find_groups
from harness.lab.entry import obstacle_to_ssh
from harness.lab.host import NAMESPACES
from tests.labs import (
    EVERY_WAY,
    HERE,
    ROOT,
    USER,
    Way,
    in_ways,
    lab_of,
    processes_with,
)
from tests.waiting import wait_for

TRANSFER = Path(__file__).with_name("transfer.py")
AFTER_PAUSES = Path(__file__).with_name("after_pauses.py")
HOSTS = ("h1", "h2", "h3")
SPIN = """
import time
start, end = time.process_time(), time.monotonic() + 1
while time.monotonic() < end:
    pass
print(time.process_time() - start)
"""
LISTENER = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(5)
"""

COUNTER = """
import pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
pathlib.Path(sys.argv[1]).touch()
count = 0
for _ in range(2):
    count += signal.sigtimedwait([signal.SIGINT], 30 if count == 0 else 1) is not None
print(count, flush=True)
"""


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Way]:
    with lab_of("--hosts", "3", "--slots", "2", "--rate", "50mbit", way=request.param) as way:
        yield way


def groups() -> Groups:
    found = find_groups(Path("/proc/mounts").read_text())
    if found is None or not found.entrance("h1").exists():
        pytest.skip("cores cannot be limited here: no writable cpu control groups")
    return found


@in_ways(*EVERY_WAY)
def test_every_host_has_a_name_an_address_and_ssh_to_every_other(lab: Way) -> None:
    ask = "hostname; getent ahostsv4 $(hostname) | head -n1 | cut -d' ' -f1"
    loop = f'for a in h1 h2 h3; do ssh $a "{ask}; for b in h1 h2 h3; do ssh \\$b hostname; done"'
    told = lab.run("sh", "-c", f"{loop.replace('$(hostname)', chr(92) + '$(hostname)')}; done")
    expected = [[f"h{n}", f"10.77.0.{n}", *HOSTS] for n in (1, 2, 3)]
    assert told.split() == [word for host in expected for word in host]


@in_ways(*EVERY_WAY)
def test_no_start_up_file_of_a_shell_is_read_for_a_command_of_ssh(lab: Way) -> None:
    """A host's end would cut the start-up files short, and the user would have to clean up."""
    assert lab.run("ssh", "h2", "echo $SHELL $0") == "/bin/sh sh\n"


@in_ways(HERE, USER)
def test_the_machine_itself_knows_nothing_of_the_hosts(lab: Way) -> None:
    with IPRoute() as machine:
        routes = [each.get("dst") for each in machine.get_routes()]
        links = [each.get("ifname") for each in machine.get_links()]
    assert not any(route and route.startswith("10.77") for route in routes)
    assert "h1" not in links
    assert "h1" not in Path("/etc/hosts").read_text()
    assert len(list(lab.seen(NAMESPACES).glob("harnesslab-h*"))) == 3


@in_ways(*EVERY_WAY)
def test_the_list_for_horovodrun_and_the_picture(lab: Way) -> None:
    assert lab.harness("lab", "status", "--hosts").stdout == "h1:2,h2:2,h3:2\n"
    status = lab.harness("lab", "status")
    lines = status.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(HOSTS)
    assert all("2 slots" in line and "link 50Mbit" in line for line in lines)
    made = "in a user namespace of uid" if lab.in_cell else "with root in the machine's namespaces"
    assert status.stderr.startswith(f"made {made}")
    assert status.stderr.endswith(f"hosts are entered {'by ssh' if by_ssh(lab) else 'directly'}\n")


def by_ssh(lab: Way) -> bool:
    return lab is HERE and obstacle_to_ssh() is None


@in_ways(HERE)
def test_every_host_has_its_own_cores_as_long_as_there_are_some(lab: Way) -> None:
    count = "import os; print(*sorted(os.sched_getaffinity(0)))"
    line = shlex.quote(shlex.join([sys.executable, "-c", count]))
    ask = f"for h in h1 h2 h3; do ssh $h {line}; done"
    found = [set(line.split()) for line in lab.run("sh", "-c", ask).splitlines()]
    here = {str(core) for core in os.sched_getaffinity(0)}
    assert len(found) == 3
    assert set().union(*found) == here
    if len(here) >= 3:
        assert sum(map(len, found)) == len(here)


@in_ways(*EVERY_WAY)
def test_a_command_runs_where_its_caller_stands(lab: Way, place: Path) -> None:
    done = subprocess.run(
        [*lab.words, "lab", "run", "--", "sh", "-c", "pwd; env; cat; echo no >&2; exit 7"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "3", "A_TOKEN": "s3cret"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, "no\n")
    assert done.stdout.startswith(f"{place}\n")
    assert "OMP_NUM_THREADS=3\n" in done.stdout
    assert "s3cret" not in done.stdout


@in_ways(*EVERY_WAY)
def test_a_host_sees_its_own_processes_alone(lab: Way) -> None:
    told = lab.run("sh", "-c", "ps -eww -o args=; echo; ssh h2 ps -eww -o args=")
    here, there = told.split("\n\n")
    first = "{}/sshd_config" if by_ssh(lab) else "doors/{}"
    assert first.format("h1") in here
    assert first.format("h2") in there
    assert first.format("h1") not in there
    assert "pytest" not in told


@in_ways(*EVERY_WAY)
def test_ctrl_c_goes_to_the_command(lab: Way, place: Path) -> None:
    command = start_listener(lab, place / "ready")
    command.send_signal(signal.SIGINT)
    assert command.communicate(timeout=30)[0] == b"interrupted\n"
    assert command.returncode == 5


@in_ways(*EVERY_WAY)
def test_a_command_ends_when_its_caller_is_killed(lab: Way, place: Path) -> None:
    start_listener(lab, place / "ready").kill()
    wait_for(lambda: not processes_with(str(place)), 20)


def start_listener(lab: Way, ready: Path) -> "subprocess.Popen[bytes]":
    listener = [sys.executable, "-c", LISTENER, str(ready)]
    command = subprocess.Popen(
        [*lab.words, "lab", "run", "--", *listener], cwd=ROOT, stdout=subprocess.PIPE
    )
    wait_for(ready.exists)
    return command


@in_ways(*EVERY_WAY)
def test_at_a_terminal_the_command_has_one_and_ctrl_c_reaches_it(lab: Way, place: Path) -> None:
    ready = place / "ready"
    listener = [sys.executable, "-c", LISTENER, str(ready)]
    ours, theirs = pty.openpty()
    command = subprocess.Popen(
        [*lab.words, "lab", "run", "--", "sh", "-c", 'tty; exec "$@"', "sh", *listener],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(theirs)
    wait_for(ready.exists)
    os.write(ours, b"\x03")
    assert command.wait(30) == 5
    said = os.read(ours, 4096)
    os.close(ours)
    assert said.startswith(b"/dev/pts/")
    assert b"interrupted" in said


@in_ways(USER)
def test_ctrl_c_reaches_a_command_once_whose_output_leaves_the_terminal(
    lab: Way, place: Path
) -> None:
    """The terminal signals all processes in front; the one outside the cell must not forward it."""
    ready = place / "ready"
    ours, theirs = pty.openpty()
    command = subprocess.Popen(
        [*lab.words, "lab", "run", "--", sys.executable, "-c", COUNTER, str(ready)],
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    wait_for(ready.exists)
    os.write(ours, b"\x03")
    assert command.communicate(timeout=30)[0] == b"1\n"
    os.close(ours)


def bits_per_second(lab: Way, sender: str, receiver: str, size: int) -> float:
    address = f"10.77.0.{receiver[1:]}"
    command = [sys.executable, str(TRANSFER), sender, address, str(size)]
    return float(lab.run("ssh", receiver, *command))


@in_ways(HERE, USER)
def test_a_link_has_its_rate_in_both_directions(lab: Way) -> None:
    assert bits_per_second(lab, "h2", "h1", 4_000_000) == pytest.approx(50e6, rel=0.15)
    assert bits_per_second(lab, "h1", "h2", 4_000_000) == pytest.approx(50e6, rel=0.15)


@in_ways(HERE, USER)
def test_a_link_that_has_rested_gives_nothing_for_free(lab: Way) -> None:
    """100 kB take 16 ms at 50 Mbit/s, of which 2 ms may pass at once."""
    command = [sys.executable, str(AFTER_PAUSES), "h2", "10.77.0.2", "100000"]
    assert float(lab.run(*command)) > 12


@in_ways(HERE, USER)
def test_links_are_shaped_anew_all_or_one(lab: Way) -> None:
    try:
        lab.harness("lab", "rate", "none")
        assert bits_per_second(lab, "h2", "h1", 40_000_000) > 300e6
        lab.harness("lab", "rate", "20mbit", "h2")
        assert bits_per_second(lab, "h2", "h1", 2_000_000) == pytest.approx(20e6, rel=0.15)
        assert bits_per_second(lab, "h3", "h1", 40_000_000) > 300e6
    finally:
        lab.harness("lab", "rate", "50mbit")
    assert lab.harness("lab", "status").stdout.count("link 50Mbit") == 3


@in_ways(HERE)
def test_a_share_of_a_core_limits_all_that_a_host_runs(lab: Way) -> None:
    groups()
    try:
        lab.harness("lab", "share", "h2", "0.3")
        assert "0.3 of a core" in lab.harness("lab", "status").stdout.splitlines()[1]
        assert cpu_seconds_of_one(lab, "h2") < 0.4
        assert cpu_seconds_of_one(lab, "h3") > 0.4
    finally:
        lab.harness("lab", "share", "h2", "none")
    assert cpu_seconds_of_one(lab, "h2") > 0.4


def cpu_seconds_of_one(lab: Way, host: str) -> float:
    """Processor time that a process which never waits gets in one second."""
    spin = f"{sys.executable} -c '{SPIN}'"
    return float(lab.run("ssh", host, spin))


@in_ways(HERE)
def test_a_host_stutters_while_a_command_runs(lab: Way) -> None:
    of_cores = groups()
    seen = set()
    stutter = ["--stutter", "h2:0.4/0.8:0.25"]
    command = subprocess.Popen([*lab.words, "lab", "run", *stutter, "--", "sleep", "2"], cwd=ROOT)
    while command.poll() is None:
        seen.add(of_cores.limit_of("h2"))
        time.sleep(0.02)
    assert command.returncode == 0
    assert seen == {None, 0.25}
    assert of_cores.limit_of("h2") is None


@in_ways(HERE)
def test_a_host_that_stuttered_has_its_share_again(lab: Way) -> None:
    of_cores = groups()
    try:
        lab.harness("lab", "share", "h2", "0.5")
        for stutter in ("h2:0.2/0.4:0.25", "h2:0.2/0.4:0.75"):
            lab.harness("lab", "run", "--stutter", stutter, "--", "sleep", "1")
            assert of_cores.limit_of("h2") == 0.5
    finally:
        lab.harness("lab", "share", "h2", "none")


@in_ways(USER)
@pytest.mark.parametrize(
    "arguments", [["share", "h2", "0.3"], ["run", "--stutter", "h2:1/2", "--", "true"]]
)
def test_a_share_is_refused_in_one_line_where_users_may_limit_nothing(
    lab: Way, arguments: list[str]
) -> None:
    done = lab.harness("lab", *arguments, check=False)
    assert done.returncode == 2
    assert "the hosts' cores cannot be limited here" in done.stderr
    assert done.stderr.count("\n") == 1


@in_ways(HERE)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rate", "fast"], "'fast' is not a rate"),
        (["rate", "none", "h9"], "no host 'h9'; name one of h1, h2, h3"),
        (["share", "h9", "0.5"], "no host 'h9'"),
        (["share", "h1", "2"], "'2' is not a share of a core"),
        (["run", "--stutter", "h1:5/2", "--", "true"], "--stutter 'h1:5/2' is not valid"),
        (["run", "--stutter", "h9:1/2", "--", "true"], "no host 'h9'"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    lab: Way, arguments: list[str], told: str
) -> None:
    before = lab.harness("lab", "status").stdout
    done = lab.harness("lab", *arguments, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert lab.harness("lab", "status").stdout == before
