"""horovodrun on other hosts, over ssh: what runs there, and that nothing is left."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import HARNESS, HERE, ROOT, USER, Way, in_ways, lab_of, processes_with
from tests.waiting import wait_for

RANK = Path(__file__).with_name("rank.py")
SUM = """
import os, socket, sys
import torch
import horovod.torch as hvd
hvd.init()
total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum, name="total").item()
print(socket.gethostname(), total, os.getcwd(), flush=True)
"""


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Way]:
    with lab_of("--hosts", "2", "--slots", "2", way=request.param) as way:
        yield way


@in_ways(HERE, USER)
def test_ranks_on_two_hosts_add_up(lab: Way, place: Path) -> None:
    program = place / "sum.py"
    program.write_text(SUM)
    launch = ["launch", "--np", "2", "--hosts", "h1:1,h2:1", "--folder", str(place)]
    done = lab.harness(
        "lab", "run", "--", *HARNESS, *launch, "--", sys.executable, str(program), timeout=200
    )
    assert done.stdout == f"h1 3.0 {ROOT}\n"
    assert "horovodrun --gloo -np 2 -H h1:1,h2:1" in done.stderr
    assert "--network-interfaces eth0" in done.stderr
    (log,) = place.glob("launch-*.log")
    assert f"[1 stdout] h2 3.0 {ROOT}\n" in log.read_text()


@in_ways(HERE)
@pytest.mark.parametrize(
    ("mode", "number"),
    [
        ("tidy", signal.SIGINT),
        ("tidy", signal.SIGTERM),
        ("tidy", signal.SIGKILL),
        ("deaf", signal.SIGINT),
    ],
)
def test_no_rank_is_left_on_any_host(
    lab: Way, mode: str, number: signal.Signals, place: Path
) -> None:
    none_is_left(lab, mode, number, place)


@in_ways(USER)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_rank_is_left_on_hosts_of_a_user(lab: Way, number: signal.Signals, place: Path) -> None:
    none_is_left(lab, "tidy", number, place)


def none_is_left(lab: Way, mode: str, number: signal.Signals, place: Path) -> None:
    launch = ["launch", "--hosts", "h1:1,h2:2", "--folder", str(place), "--"]
    rank = [sys.executable, str(RANK), mode, str(place)]
    remembered = f'echo $$ > {place}/launcher; exec "$@"'
    command = subprocess.Popen(
        [*lab.words, "lab", "run", "--", "sh", "-c", remembered, "sh", *HARNESS, *launch, *rank],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(list(place.glob("ready-*"))) == 3)
    finally:
        lab.run("kill", f"-{number.name}", (place / "launcher").read_text().strip())
    code = command.wait(40)
    assert code == (128 + number if number == signal.SIGKILL else 1)
    if number != signal.SIGKILL:
        assert processes_with(str(RANK)) == [], "the launcher was back before its ranks were gone"
    wait_for(lambda: not processes_with(str(place)), 20)
    assert len(list(place.glob("tidied-*"))) == (3 if mode == "tidy" else 0)


@in_ways(HERE, USER)
def test_a_rank_elsewhere_that_fails_is_named(lab: Way, place: Path) -> None:
    launch = ["launch", "--hosts", "h1:1,h2:1", "--folder", str(place), "--"]
    rank = [sys.executable, str(RANK), "crash", str(place)]
    done = lab.harness("lab", "run", "--", *HARNESS, *launch, *rank, check=False)
    assert done.returncode == 1
    assert "rank 1 failed:\nTraceback" in done.stderr
    assert "ValueError: the cause" in done.stderr
    wait_for(lambda: not processes_with(str(place)), 20)
