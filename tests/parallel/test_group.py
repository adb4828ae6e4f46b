"""A group's collectives, on real ranks, equal what one process computes from all their tensors."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from harness.measure.clock import Clock, Times
from harness.measure.phase import Phase
from harness.measure.traffic import Bytes, Traffic
from harness.parallel.group import Group, Meters
from tests.alone import meters
from tests.ranks import run_on_ranks
from tests.timelines import Ticks

ROWS, COLUMNS = 5, 3
"""Of a block."""


def block_of(rank: int, blocks: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(blocks * ROWS, COLUMNS, dtype=torch.float64, generator=generator)


def whole_group(meters: Meters, nodes: int = 1) -> Group:
    ranks = tuple(range(dist.get_world_size()))
    return Group(ranks, dist.get_rank(), nodes, dist.group.WORLD, meters, Phase.NODE_WAIT)


def collectives() -> dict[str, Tensor]:
    group = whole_group(meters())
    n, rank = group.size, group.index
    into = torch.full((n * ROWS, COLUMNS), -1.0, dtype=torch.float64)
    returned = group.launch_all_gather(block_of(rank), into).wait()
    averaged = block_of(rank)
    in_place = group.launch_average(averaged).wait()
    return {
        "all_gather": group.all_gather(block_of(rank)),
        "transposed": group.all_gather(block_of(rank).T),
        "into": into,
        "into is the result": torch.tensor(returned.data_ptr() == into.data_ptr()),
        "all_to_all": group.launch_all_to_all(block_of(rank, n)).wait(),
        "reduce_scatter": group.launch_reduce_scatter(block_of(rank, n)).wait(),
        "average": averaged,
        "average is in place": torch.tensor(in_place.data_ptr() == averaged.data_ptr()),
    }


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest) -> list[dict[str, Tensor]]:
    """What each rank computed."""
    return run_on_ranks(collectives, request.param)


def test_all_gather_stacks_the_blocks_in_rank_order(found: list[dict[str, Tensor]]) -> None:
    n = len(found)
    blocks = [block_of(rank) for rank in range(n)]
    for own in found:
        assert torch.equal(own["all_gather"], torch.cat(blocks))
        assert torch.equal(own["transposed"], torch.cat([block.T for block in blocks]))


def test_all_gather_fills_the_tensor_it_is_given(found: list[dict[str, Tensor]]) -> None:
    for own in found:
        assert own["into is the result"]
        assert torch.equal(own["into"], own["all_gather"])


def test_all_to_all_gives_each_rank_its_block_of_every_other(
    found: list[dict[str, Tensor]],
) -> None:
    n = len(found)
    sent = torch.stack([block_of(rank, n) for rank in range(n)]).view(n, n, ROWS, COLUMNS)
    for own, expected in zip(found, sent.transpose(0, 1), strict=True):
        assert torch.equal(own["all_to_all"], expected.flatten(0, 1))


def test_reduce_scatter_gives_each_rank_the_sum_of_its_own_block(
    found: list[dict[str, Tensor]],
) -> None:
    n = len(found)
    total = torch.stack([block_of(rank, n) for rank in range(n)]).sum(0)
    for own, expected in zip(found, total.chunk(n), strict=True):
        torch.testing.assert_close(own["reduce_scatter"], expected, rtol=0, atol=1e-15)


def test_average_is_the_mean_in_place_and_equal_to_the_bit(found: list[dict[str, Tensor]]) -> None:
    mean = torch.stack([block_of(rank) for rank in range(len(found))]).mean(0)
    for own in found:
        assert own["average is in place"]
        torch.testing.assert_close(own["average"], mean, rtol=0, atol=1e-15)
        assert torch.equal(own["average"], found[0]["average"])


def bytes_of_each_collective(nodes: int) -> list[Bytes]:
    counted = meters()
    group = whole_group(counted, nodes)
    own, of_all, sent = block_of(group.index), block_of(group.index, group.size), []
    for launch, tensor in (
        (group.launch_all_gather, own),
        (group.launch_reduce_scatter, of_all),
        (group.launch_all_to_all, of_all),
        (group.launch_average, own),
    ):
        before = counted.traffic.total
        launch(tensor).wait()
        sent.append(counted.traffic.total - before)
    return sent


def test_what_a_collective_sends_is_counted_where_it_is_sent() -> None:
    block = ROWS * COLUMNS * 8
    for gathered, scattered, given, averaged in run_on_ranks(bytes_of_each_collective, 3, 1):
        assert gathered == scattered == given == Bytes(in_node=2 * block)
        assert averaged == Bytes(in_node=4 / 3 * block)
    for gathered, scattered, given, averaged in run_on_ranks(bytes_of_each_collective, 2, 2):
        assert gathered == scattered == given == averaged == Bytes(cross_node=block)


def phases_of_a_wait() -> tuple[list[Times], float]:
    clock = Clock(Ticks())
    group = whole_group(Meters(clock, Traffic()))
    with clock.window():
        pending = group.launch_average(torch.tensor([1.0 + group.index]))
    with clock.window():
        pending.wait()
    with clock.window():
        again = pending.wait().item()
    return clock.read(), again


def test_only_the_wait_counts_as_standing_still_and_only_once() -> None:
    for (launch, wait, second_wait), again in run_on_ranks(phases_of_a_wait, 2):
        assert wait[Phase.NODE_WAIT] == 1
        assert launch[Phase.NODE_WAIT] == second_wait[Phase.NODE_WAIT] == 0
        assert again == 1.5


def test_a_group_of_one_answers_without_sending() -> None:
    counted = meters()
    group = Group((4,), 4, 1, None, counted, Phase.SLICE_WAIT)
    block, into = block_of(0), torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    assert (group.size, group.index) == (1, 0)
    assert torch.equal(group.all_gather(block), block)
    assert torch.equal(group.launch_reduce_scatter(block).wait(), block)
    assert torch.equal(group.launch_all_to_all(block).wait(), block)
    assert torch.equal(group.launch_average(block).wait(), block_of(0))
    assert group.launch_all_gather(block, into).wait() is into
    assert torch.equal(into, block)
    assert counted.traffic.total == Bytes()


def test_many_ranks_need_a_process_group() -> None:
    with pytest.raises(ValueError, match="a group of 2 ranks got process group None"):
        Group((0, 1), 0, 1, None, meters(), Phase.SLICE_WAIT)
