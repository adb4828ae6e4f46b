"""Late collectives of a card, whose tensors go through host memory, on two real ranks."""

from pathlib import Path

from tests.horovodrun import horovodrun

PROGRAM = """
import threading
from collections import defaultdict
import horovod.torch as hvd
import torch
from torch import Tensor
from harness.parallel import peers
from harness.parallel.ranks import launched_topology
from harness.parallel.world import open_world
from tests.alone import CPU, meters

AT_ONCE, PATIENCE = 3, 20.0


class OnCard(Tensor):
    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl


def on_card(*values):
    return torch.tensor(values).as_subclass(OnCard)


def down(tensor):
    return tensor.as_subclass(Tensor).clone()


def up(landed, device, into=None):
    return (landed.clone() if into is None else into.as_subclass(Tensor).copy_(landed))


launched, known, finish = defaultdict(list), threading.Condition(), peers.finish


def remembered(name):
    launch = getattr(hvd, name)

    def remembering(*given, **named):
        with known:
            handle = launch(*given, **named)
            launched[name].append(handle)
            known.notify_all()
        return handle

    setattr(hvd, name, remembering)


def finish_late(handle, *poll):
    '''Nothing arrives before several names are under way.'''
    with known:
        own = next(handles for handles in launched.values() if handle in handles)
        assert known.wait_for(lambda: len(own) >= AT_ONCE, PATIENCE), "one name at a time"
    return finish(handle, *poll)


for name in ("allreduce_async_", "alltoall_async", "allgather_async"):
    remembered(name)
peers.down, peers.up, peers.finish = down, up, finish_late

with open_world(launched_topology(), "node", CPU, meters()) as world:
    rank, group = world.topology.rank, world.peers
    buffers = [on_card(1.0 + rank, 10.0 * number) for number in range(AT_ONCE)]
    sums = [group.launch_sum(each, f"sum {number}") for number, each in enumerate(buffers)]
    for number, (each, buffer) in enumerate(zip(sums, buffers)):
        each.wait()
        assert buffer.tolist() == [3.0, 20.0 * number], buffer
    rows = [on_card([10.0 + number], [20.0 + number]) for number in range(AT_ONCE)]
    landing = [
        group.launch_reduce(each, lambda rows: rows.sum(0), f"reduced {number}")
        for number, each in enumerate(rows)
    ]
    for number, each in enumerate(landing):
        assert each.wait().tolist() == [[20.0 + 2 * number], [40.0 + 2 * number]]
    world.aside.quiet()
    gathers = [group.launch_gather(on_card([1.0 * rank]), f"row {n}") for n in range(AT_ONCE)]
    assert [each.wait().tolist() for each in gathers] == [[[0.0], [1.0]]] * AT_ONCE
    print("all arrived", flush=True)
"""


def test_several_names_are_under_way_at_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found = horovodrun([str(program)], 2, "localhost:1,127.0.0.1:1", timeout=150)
    assert [found.lines(rank) for rank in range(2)] == [["all arrived"]] * 2
