"""What the launcher says of a rank, and who tells the user that it does not fit."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
from horovod.runner.gloo_run import create_slot_env_vars
from hypothesis import given
from hypothesis import strategies as st

from harness.config import ExchangeConfig
from harness.errors import ReportedByAnotherRank, UserError
from harness.exchange.carriers import carrier_of
from harness.measure.machine import environment
from harness.measure.phase import Phase
from harness.parallel.aside import DRIFT, TIMEOUT
from harness.parallel.group import Group
from harness.parallel.ranks import Gathered, Ranks, launched_topology
from harness.parallel.topology import Topology
from harness.parallel.world import one_precision
from tests.alone import meters, world_of_one
from tests.grid import world_of_ranks
from tests.ranks import run_on_ranks

RENDEZVOUS = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "::", "HOROVOD_GLOO_RENDEZVOUS_PORT": "1"}
SLOTS = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def launched(slots: list[int]) -> list[Topology | UserError | None]:
    """What each rank finds on hosts of so many ranks; None says nothing."""
    found: list[Topology | UserError | None] = []
    for host, local_size in enumerate(slots):
        for local_rank in range(local_size):
            with_this_rank = [number for number, size in enumerate(slots) if size > local_rank]
            variables = {
                "RANK": sum(slots[:host]) + local_rank,
                "SIZE": sum(slots),
                "LOCAL_RANK": local_rank,
                "LOCAL_SIZE": local_size,
                "CROSS_RANK": with_this_rank.index(host),
                "CROSS_SIZE": len(with_this_rank),
            }
            found.append(one_rank({f"HOROVOD_{name}": str(v) for name, v in variables.items()}))
    return found


def one_rank(variables: dict[str, str]) -> Topology | UserError | None:
    with patch.dict(os.environ, variables | RENDEZVOUS):
        try:
            return launched_topology()
        except UserError as error:
            return error
        except ReportedByAnotherRank:
            return None


@given(st.integers(1, 5), st.integers(1, 4))
def test_even_hosts_make_a_grid(nodes: int, ranks_per_node: int) -> None:
    expected = [Topology(r, nodes, ranks_per_node) for r in range(nodes * ranks_per_node)]
    assert launched([ranks_per_node] * nodes) == expected


@given(SLOTS.filter(lambda slots: len(set(slots)) > 1))
def test_of_uneven_hosts_somebody_says_so_and_one_rank_of_a_host_at_most(slots: list[int]) -> None:
    found = launched(slots)
    speaking = [rank for rank, each in enumerate(found) if isinstance(each, UserError)]
    assert speaking
    assert set(speaking) <= {sum(slots[:host]) for host in range(len(slots))}


@pytest.mark.parametrize("slots", [[2, 1], [1, 2], [3, 1], [2, 2, 1], [4, 2, 2], [2, 4, 2]])
def test_of_hosts_as_people_mistype_them_one_rank_says_so(slots: list[int]) -> None:
    said = [str(each) for each in launched(slots) if isinstance(each, UserError)]
    assert len(said) == 1
    assert said[0].startswith("all hosts need the same number of ranks, found ")


def as_horovodrun_would(hosts: list[tuple[str, int]]) -> list[dict[str, str]]:
    """The variables of every rank, as its own code numbers them: also of hosts named twice."""
    found = get_host_assignments([HostInfo(*host) for host in hosts], 1)
    return [create_slot_env_vars(slot) for slot in found]


@pytest.mark.parametrize(
    "hosts",
    [
        [("a", 1), ("a", 1)],
        [("a", 1), ("b", 1), ("a", 1), ("b", 1)],
        [("a", 2), ("a", 2)],
        [("a", 2), ("b", 1), ("b", 1)],
        [("a", 1), ("b", 1), ("b", 1)],
    ],
)
def test_of_a_host_named_twice_somebody_speaks_at_once_or_knows_what_to_say(
    hosts: list[tuple[str, int]],
) -> None:
    """The others wait to be ended by the launcher, and speak where nobody does that."""
    said = []
    for variables in as_horovodrun_would(hosts):
        try:
            with patch.dict(os.environ, variables | RENDEZVOUS):
                launched_topology()
        except UserError as error:
            said.append(str(error))
        except ReportedByAnotherRank as error:
            said.append(error.otherwise)
    assert said
    assert all("name every host once in -H" in line for line in said)


def test_without_a_launcher_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HOROVOD_")]:
        monkeypatch.delenv(name)
    assert launched_topology() == Topology(0, 1, 1)


@pytest.fixture
def _roundings() -> Iterator[None]:
    """As they were, afterwards."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    yield
    cuda.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_roundings")
@pytest.mark.parametrize("tf32", [False, True])
def test_a_cards_convolutions_round_as_its_products_do(tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32, not tf32
    one_precision()
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is tf32
    assert environment()["tf32"] == {"products": tf32, "convolutions": tf32}


def sum_of_ranks_that_drifted_apart() -> list[float]:
    patience = timedelta(seconds=1)
    everyone = Group(
        (0, 1), dist.get_rank(), 1, dist.new_group(timeout=patience), meters(), Phase.EXCHANGE_WAIT
    )
    world = replace(world_of_one(), everyone=everyone)
    if dist.get_rank():
        time.sleep(4 * patience.total_seconds())
    found: list[float] = world.launch_sum(torch.tensor([1.0, 2.0])).wait().tolist()
    return found


def test_ranks_may_drift_apart_for_longer_than_a_collective_may_take() -> None:
    """Nodes that exchange nothing do, and each looks at every window whether all are finite."""
    assert run_on_ranks(sum_of_ranks_that_drifted_apart, 2) == [[2.0, 4.0]] * 2


class OverTorch(Ranks):
    """Horovod's part of it done by torch.distributed."""

    def launch_gather(self, vector: torch.Tensor, name: str) -> Gathered:
        rows = [torch.empty_like(vector.reshape(1, -1)) for _ in range(self.topology.world_size)]
        dist.all_gather(rows, vector.reshape(1, -1))
        return Gathered(None, torch.cat(rows))


def mistake_in_an_inner_block() -> str:
    ranks = OverTorch(Topology(dist.get_rank(), 1, dist.get_world_size()))
    try:
        with ranks.together(), ranks.together():
            if dist.get_rank() == 1:
                raise UserError("mine")
    except (UserError, ReportedByAnotherRank) as error:
        return repr(error)
    return "nobody left"


def test_a_mistake_in_an_inner_block_ends_all_ranks_of_the_outer_one() -> None:
    found = run_on_ranks(mistake_in_an_inner_block, 3)
    assert found == ["ReportedByAnotherRank('')", "UserError('mine')", "ReportedByAnotherRank('')"]


def drifting() -> list[timedelta]:
    """Timeouts of the groups that are made for a late lossy exchange, and for one that waits."""
    world, made = world_of_ranks(), list[timedelta]()
    new_group = dist.new_group

    def noted(ranks: list[int], timeout: timedelta) -> dist.ProcessGroup:
        made.append(timeout)
        found: dist.ProcessGroup = new_group(ranks, timeout=timeout)
        return found

    with patch.object(dist, "new_group", noted):
        for delay in (1, 0):
            values = {"kind": "averaging", "delay": delay, "carrier": "torch"}
            exchange = ExchangeConfig.model_validate(values | {"compression": "int8"})
            carrier_of(exchange, world)
    return made


def test_nodes_may_enter_a_late_collective_long_after_each_other() -> None:
    assert run_on_ranks(drifting, 2) == [[DRIFT, DRIFT, TIMEOUT]] * 2


def hushed() -> list[bool]:
    """Whether a sum and a reduction were over before and after, if one rank is late for them and
    slow in the reduction's second step."""
    world = world_of_ranks()
    group, rank = world.reducing(world.late(), "late", late=True), world.topology.rank
    if rank:
        time.sleep(0.5)

    def reduce(found: torch.Tensor) -> torch.Tensor:
        if rank:
            time.sleep(0.5)
        return found.sum(0)

    rows, one = torch.ones(2, 8), torch.ones(4)
    sums = group.launch_sum(one, "sum")
    reducing = group.launch_reduce(rows, reduce, "reduction")
    before = bool((one == 2).all())
    world.aside.quiet()
    after = bool((one == 2).all())
    second = reducing._followed.result()._work
    assert second is not None
    assert second.is_completed()
    sums.wait()
    reducing.wait()
    return [before, after]


def test_once_it_is_quiet_nothing_is_under_way() -> None:
    first, _ = run_on_ranks(hushed, 2)
    assert first == [False, True]
