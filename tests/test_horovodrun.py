"""The helper that starts a real horovodrun: output by rank, failures, hangs, no process left."""

import psutil
import pytest

from tests.horovodrun import HorovodrunFailed, horovodrun

SAY_WHO = """
import horovod.torch as hvd
hvd.init()
print("rank", hvd.rank(), "of", hvd.size(), "local", hvd.local_rank(), "cross", hvd.cross_rank())
"""
ONE_HANGS = """
import os, time
def stands_here():
    time.sleep(1000)
if os.environ["HOROVOD_RANK"] == "1":
    print("pid", os.getpid())
    stands_here()
"""


def test_four_ranks_are_two_nodes_of_two() -> None:
    result = horovodrun(SAY_WHO, np=4)
    assert [result.lines(rank) for rank in range(4)] == [
        ["rank 0 of 4 local 0 cross 0"],
        ["rank 1 of 4 local 1 cross 0"],
        ["rank 2 of 4 local 0 cross 1"],
        ["rank 3 of 4 local 1 cross 1"],
    ]


def test_a_failing_rank_is_a_failure_with_its_traceback() -> None:
    with pytest.raises(HorovodrunFailed, match="wrong on purpose"):
        horovodrun("raise ValueError('wrong on purpose')", np=1, hosts="localhost:1")


def test_a_failing_rank_can_be_what_is_looked_at() -> None:
    result = horovodrun("raise SystemExit(2)", np=1, hosts="localhost:1", check=False)
    assert result.returncode != 0


def test_a_hanging_rank_shows_where_it_stands_and_is_gone_afterwards() -> None:
    with pytest.raises(HorovodrunFailed, match="in stands_here") as caught:
        horovodrun(ONE_HANGS, np=2, hosts="localhost:2", timeout=15)
    (line,) = [line for line in str(caught.value).splitlines() if "pid" in line]
    assert not psutil.pid_exists(int(line.split()[-1]))
