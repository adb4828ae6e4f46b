"""What the launcher says of a rank, and who tells the user that it does not fit."""

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import SaidByAnotherRank, UserError
from harness.measure.machine import environment
from harness.parallel.ranks import launched_topology
from harness.parallel.topology import Topology
from harness.parallel.world import one_precision, rank_device

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
    with patch.dict(os.environ, variables):
        try:
            return launched_topology()
        except UserError as error:
            return error
        except SaidByAnotherRank:
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


def test_a_host_named_twice_is_told() -> None:
    """Then ranks are not numbered host by host: here rank 1 is the first of the second host."""
    variables = {"RANK": 1, "SIZE": 4, "LOCAL_RANK": 0, "LOCAL_SIZE": 2}
    variables |= {"CROSS_RANK": 1, "CROSS_SIZE": 2}
    found = one_rank({f"HOROVOD_{name}": str(value) for name, value in variables.items()})
    assert "ranks must be numbered host by host" in str(found)
    assert "name every host once in -H" in str(found)


def test_without_a_launcher_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HOROVOD_")]:
        monkeypatch.delenv(name)
    assert launched_topology() == Topology(0, 1, 1)


def test_a_rank_takes_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [rank_device("auto", rank) for rank in (0, 1)] == [
        torch.device("cuda", 0),
        torch.device("cuda", 1),
    ]
    assert rank_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(UserError, match="local rank 2 found 2; start fewer ranks per host"):
        rank_device("auto", 2)


def test_without_cards_it_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert rank_device("auto", 3) == torch.device("cpu")
    with pytest.raises(UserError, match=r"train.device=cuda .* or set train.device=cpu"):
        rank_device("cuda", 0)


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
