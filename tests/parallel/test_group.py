"""A group's collectives, on real ranks, equal what one process computes from all their tensors."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from harness.measure.clock import Clock, Times
from harness.measure.phase import Phase
from harness.measure.traffic import Bytes, Traffic, all_gather_bytes, all_to_all_bytes
from harness.parallel.group import Group, Meters
from tests.alone import meters
from tests.grid import lossy_group, world_of_ranks
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


@dataclass(frozen=True)
class Way:
    """Collectives of one group: over all ranks at once, or in two hops."""

    gathered: Tensor
    flat: Tensor
    """Of blocks of one number."""
    scattered: Tensor
    whole: Tensor
    """The same of whole numbers, of which no sum is rounded."""
    gathered_bytes: Bytes
    scattered_bytes: Bytes


def way(group: Group, counted: Meters) -> Way:
    rank, n = group.index, group.size
    before = counted.traffic.total
    gathered = group.all_gather(block_of(rank))
    between = counted.traffic.total
    scattered = group.launch_reduce_scatter(block_of(rank, n)).wait()
    behind = counted.traffic.total
    flat = group.all_gather(torch.tensor([rank], dtype=torch.uint8))
    whole = group.launch_reduce_scatter((block_of(rank, n) * 100).round()).wait()
    return Way(gathered, flat, scattered, whole, between - before, behind - between)


def both_ways(ranks_per_node: int) -> tuple[Way, Way]:
    counted = meters()
    world = world_of_ranks(ranks_per_node, "world", counted)
    assert world.slices._hops is not None
    assert world.everyone._hops is None
    return way(world.everyone, counted), way(world.slices, counted)


@pytest.fixture(scope="module", params=[2, 3], ids=["2x2", "2x3"])
def two_hops(request: pytest.FixtureRequest) -> tuple[int, list[tuple[Way, Way]]]:
    """Ranks per node, and what each of two nodes' ranks has both ways."""
    return request.param, run_on_ranks(both_ways, 2 * request.param, request.param)


def test_two_hops_gather_the_same_to_the_bit(
    two_hops: tuple[int, list[tuple[Way, Way]]],
) -> None:
    for plain, hops in two_hops[1]:
        assert torch.equal(hops.gathered, plain.gathered)
        assert torch.equal(hops.flat, plain.flat)
        assert hops.flat.tolist() == list(range(2 * two_hops[0]))


def test_two_hops_scatter_the_same_sums(two_hops: tuple[int, list[tuple[Way, Way]]]) -> None:
    ranks = len(two_hops[1])
    sizes = torch.stack([block_of(rank, ranks).abs() for rank in range(ranks)]).sum(0)
    for (plain, hops), size in zip(two_hops[1], sizes.chunk(ranks), strict=True):
        assert torch.equal(hops.whole, plain.whole)
        assert ((hops.scattered - plain.scattered).abs() <= 1e-15 * size).all()


def test_two_hops_take_a_block_over_a_nodes_link_once(
    two_hops: tuple[int, list[tuple[Way, Way]]],
) -> None:
    """Both collectives send what the formula of a gather says."""
    ranks_per_node, found = two_hops
    block = ROWS * COLUMNS * 8
    expected = all_gather_bytes(block, 2 * ranks_per_node, 2)
    assert expected.cross_node == block, "from each rank to one on the other node"
    for plain, hops in found:
        assert hops.gathered_bytes == hops.scattered_bytes == plain.gathered_bytes == expected
        assert plain.scattered_bytes == all_to_all_bytes(block, 2 * ranks_per_node, 2)


def groups_with_hops() -> list[bool]:
    """Of slices, by layout, as a world of these ranks makes them."""
    shapes = [(1, "world"), (dist.get_world_size(), "world"), (2, "node"), (2, "replicated")]
    return [world_of_ranks(*shape).slices._hops is not None for shape in shapes]  # type: ignore[arg-type]


def test_where_nodes_or_ranks_of_a_node_are_alone_there_is_one_hop() -> None:
    assert run_on_ranks(groups_with_hops, 4) == [[False] * 4] * 4


def reduced() -> tuple[list[Tensor], Bytes, list[int]]:
    """Three at once, each the sum of the rows; and the order in which they were reduced."""
    counted, order = meters(), list[int]()
    group = lossy_group(2, counted)

    def sum_up(number: int) -> Callable[[Tensor], Tensor]:
        def reduce(rows: Tensor) -> Tensor:
            order.append(number)
            return rows.sum(0, dtype=rows.dtype)

        return reduce

    given = [torch.arange(8, dtype=torch.uint8).view(4, 2) * 3 + number for number in range(3)]
    landing = [group.launch_reduce(rows + group.index, sum_up(n)) for n, rows in enumerate(given)]
    return [each.wait() for each in reversed(landing)], counted.traffic.total, order


def test_a_reduce_shows_all_what_each_makes_of_its_rows() -> None:
    """In order, beside training; over two nodes of two, each row goes out and each result back."""
    hops = all_to_all_bytes(2, 4, 2) + all_gather_bytes(2, 4, 2)
    for made, sent, order in run_on_ranks(reduced, 4):
        assert order == [0, 1, 2]
        assert sent == hops * 3
        for number, rows in zip(reversed(range(3)), made, strict=True):
            expected = (torch.arange(8).view(4, 2) * 3 + number) * 4 + 0 + 1 + 2 + 3
            assert torch.equal(rows.long(), expected)


def failing() -> str:
    def fail(rows: Tensor) -> Tensor:
        raise ValueError("in the middle")

    try:
        lossy_group().launch_reduce(torch.zeros(2, 4), fail).wait()
    except ValueError as error:
        return str(error)
    return "nobody was told"


def test_an_error_between_the_hops_comes_to_whoever_waits() -> None:
    assert run_on_ranks(failing, 2) == ["in the middle"] * 2


def phases_of_a_reduce() -> list[Times]:
    clock = Clock(Ticks())
    world = world_of_ranks(counted=Meters(clock, Traffic()))
    group = world.reducing(world.everyone, "test")
    with clock.window():
        under_way = group.launch_reduce(torch.zeros(2, 4), lambda rows: rows[0])
    with clock.window():
        under_way.wait()
    return clock.read()


def test_a_reduce_is_waited_for_once_whatever_its_hops_wait_for() -> None:
    for launch, wait in run_on_ranks(phases_of_a_reduce, 2):
        assert launch[Phase.EXCHANGE_WAIT] == 0
        assert wait[Phase.EXCHANGE_WAIT] == 1


def test_a_group_of_one_reduces_what_it_has() -> None:
    counted = meters()
    group = Group((4,), 4, 1, None, counted, Phase.SLICE_WAIT)
    made = group.launch_reduce(torch.ones(1, 3), lambda rows: rows.sum(0) * 2).wait()
    assert torch.equal(made, torch.full((1, 3), 2.0))
    assert counted.traffic.total == Bytes()
