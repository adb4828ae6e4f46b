"""What the mended Horovod can do and the released one cannot, under a real horovodrun.

Each of these tests fails with a Horovod that has only the edits that make it compile.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.horovodrun import ROOT, horovodrun

STALL = """
import time
import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

hvd.init()
for _ in range(2):  # the second time the answer comes from the response cache, as in training
    hvd.allreduce(torch.ones(1), name="window")
start = time.monotonic()
if hvd.rank() == 1:
    time.sleep(12)
try:
    hvd.allreduce(torch.ones(1), name="window")
    print("went on")
except HorovodInternalError as error:
    print(f"ended after {time.monotonic() - start:.1f}")
"""


def test_the_stall_inspector_names_the_sleeping_rank_and_ends_all() -> None:
    times = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "1", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "3"}
    result = horovodrun(STALL, np=2, hosts="localhost:1,127.0.0.1:1", environment=times)
    assert "Missing ranks:" in result.output
    after_missing = result.output.split("Missing ranks:", 1)[1]
    assert "1: [" in after_missing.splitlines()[1]
    assert 'marked by "!"' in result.output
    for rank in range(2):
        (line,) = result.lines(rank)
        assert line.startswith("ended after ")
    # Before the sleeper wakes. A name from the response cache takes up to two more checks.
    assert 3 < float(result.lines(0)[0].split()[-1]) < 10


DEAD_PEER = """
import os, time
from pathlib import Path
import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

pair = hvd.ProcessSet([0, 1])
hvd.init(process_sets=[pair])
hvd.allreduce(torch.ones(1), name="all")
# Rank 2 may have its sum before the others have theirs, which its death would then take from them.
folder = Path(__file__).parent
(folder / f"passed-{hvd.rank()}").touch()
if hvd.rank() == 2:
    while len(list(folder.glob("passed-*"))) < 3:
        time.sleep(0.01)
    os._exit(0)  # dies silently; with a code other than 0 horovodrun would end the others itself
handles = {}
if hvd.rank() == 0:
    # Never completes, as rank 1 does not take part; but it must not wait forever.
    handles["pair"] = hvd.allreduce_async(torch.ones(1), name="unanswered", process_set=pair)
handles["all"] = hvd.allreduce_async(torch.ones(1), name="all")
for name, handle in handles.items():
    try:
        hvd.synchronize(handle)
        print(name, "went on")
    except HorovodInternalError as error:
        print(name, "raised")
hvd.shutdown()
print("alive")
"""


def test_survivors_of_a_dead_peer_raise_also_in_a_process_set_and_do_not_abort() -> None:
    result = horovodrun(DEAD_PEER, np=3, hosts="localhost:3", check=False)
    assert result.lines(0) == ["pair raised", "all raised", "alive"], result.output
    assert result.lines(1) == ["all raised", "alive"], result.output
    assert f"code {-signal.SIGABRT}" not in result.output
    assert result.returncode == 0


WAIT = """
import time
import horovod.torch as hvd
import torch

hvd.init()
hvd.allreduce(torch.ones(1), name="window")
if hvd.rank() == 1:
    time.sleep(3)
handle = hvd.allreduce_async(torch.ones(1), name="window")
wall, busy = time.monotonic(), time.thread_time()
hvd.synchronize(handle)
print(time.monotonic() - wall, time.thread_time() - busy)
"""


def test_a_waiting_rank_does_not_spin() -> None:
    result = horovodrun(WAIT, np=2, hosts="localhost:1,127.0.0.1:1")
    waited_seconds, busy_seconds = map(float, result.lines(0)[0].split())
    assert waited_seconds > 2.5
    assert busy_seconds < 0.4 * waited_seconds  # a rank that spins has at least 0.7


NO_TEXT = r"""
import sys
sys.stdout.buffer.write(b"a name in another encoding: \xff\n")
print("alive")
"""


def test_a_byte_that_is_no_text_does_not_end_what_a_rank_prints() -> None:
    result = horovodrun(NO_TEXT, np=1, hosts="localhost:1", timeout=60)
    assert result.lines(0)[-1] == "alive"


INTERFACE = """
import horovod.torch as hvd
import torch

each = [hvd.ProcessSet([rank]) for rank in range(2)]
hvd.init(process_sets=each)
own = each[hvd.rank()]
print(hvd.allreduce(torch.ones(1), name="own", process_set=own).item())
hvd.barrier()  # the first to end shuts Horovod down for the other
"""
NAMELESS = "no-such-host.invalid"


def own_hostname() -> list[str] | None:
    """A command prefix that lets a command change the host's name for itself only."""
    if shutil.which("unshare") is None or not sys.platform.startswith("linux"):
        return None
    for prefix in (["unshare", "--uts"], ["unshare", "--user", "--map-root-user", "--uts"]):
        trial = [*prefix, "hostname", NAMELESS]
        if subprocess.run(trial, capture_output=True).returncode == 0:
            return prefix
    return None


def test_a_process_set_uses_the_chosen_interface_not_the_hosts_name(tmp_path: Path) -> None:
    """If the host's name does not resolve, only the interface tells where to listen."""
    prefix = own_hostname()
    if prefix is None:
        pytest.skip("needs the right to make a UTS namespace (root, or user namespaces)")
    script = tmp_path / "interface.py"
    script.write_text(INTERFACE)
    call = (
        "from pathlib import Path; from tests.horovodrun import horovodrun; "
        f"result = horovodrun(Path({str(script)!r}), np=2, hosts='localhost:2', timeout=60, "
        "options=['--network-interfaces', 'lo']); print(result.lines(0), result.lines(1))"
    )
    shell = ["sh", "-c", f'hostname {NAMELESS} && exec "$@"', "sh", sys.executable, "-c", call]
    inside = subprocess.run([*prefix, *shell], cwd=ROOT, capture_output=True, text=True)
    assert inside.stdout == "['1.0'] ['1.0']\n", inside.stderr
