"""Horovod's timeline on real ranks, with a process set, started while a sum is under way."""

import json
from pathlib import Path

from harness.tracing.chrome_trace import merged
from tests.horovodrun import horovodrun

PROGRAM = """
import sys
import time
from pathlib import Path
import torch
from harness.tracing.horovod_timeline import allow_timeline, start_timeline, stop_timeline
from harness.parallel.ranks import launched_topology
from harness.parallel.world import open_world
from tests.alone import CPU, meters

allow_timeline()
file = Path(sys.argv[1])
with open_world(launched_topology(), "node", CPU, meters()) as world:
    buffer = torch.ones(1_000_000)
    under_way = world.peers.launch_sum(buffer, "one")
    if world.is_first:
        start_timeline(file / "first.json")
    under_way.wait()
    world.peers.launch_sum(buffer, "two").wait()
    world.launch_gather(buffer[:3], "all").wait()
    if world.is_first:
        stop_timeline()
        whole = (file / "first.json").read_text()
        start_timeline(file / "second.json")
        stop_timeline()
        assert (file / "first.json").read_text() == whole
        (file / "closed").touch()
    # If another rank's next tensor were negotiated meanwhile, it would be in the second file.
    while not (file / "closed").exists():
        time.sleep(0.01)
    assert float(world.launch_gather(buffer[:1], "end").wait().sum()) == 16
"""


def test_the_file_is_whole_when_it_is_stopped(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    horovodrun([str(program), str(tmp_path)], environment={"HOROVOD_CYCLE_TIME": "5"})
    text = (tmp_path / "first.json").read_text()
    tensors = {
        event["args"]["name"]
        for event in json.loads(text)
        if event["ph"] == "M" and "name" in event["args"]
    }
    assert {"allreduce.two", "allgather.all"} <= tensors
    assert (tmp_path / "second.json").read_text() == "", "nothing was sent: nothing is written"
    assert merged([], text, {})
