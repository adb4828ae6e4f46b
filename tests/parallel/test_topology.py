"""Which ranks meet: every grid of nodes and ranks gives groups that cover the world exactly."""

from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.parallel.slices import slice_of
from harness.parallel.topology import Layout, Topology, check_classes, from_horovod

NODES, RANKS_PER_NODE = st.integers(1, 6), st.integers(1, 6)
LAYOUTS = get_args(Layout)
CLASSES = 101


def every_rank(nodes: int, ranks_per_node: int) -> list[Topology]:
    return [Topology(rank, nodes, ranks_per_node) for rank in range(nodes * ranks_per_node)]


@given(NODES, RANKS_PER_NODE)
def test_node_groups_and_peer_groups_partition_the_world(nodes: int, ranks_per_node: int) -> None:
    topology = Topology(0, nodes, ranks_per_node)
    for groups in (topology.node_groups, topology.peer_groups):
        assert sorted(rank for group in groups for rank in group) == list(topology.world)
        assert all(list(group) == sorted(group) for group in groups)
    assert {len(group) for group in topology.node_groups} == {ranks_per_node}
    assert {len(group) for group in topology.peer_groups} == {nodes}


@given(NODES, RANKS_PER_NODE)
def test_a_rank_is_where_node_and_peer_group_cross(nodes: int, ranks_per_node: int) -> None:
    for topology in every_rank(nodes, ranks_per_node):
        assert topology.node * ranks_per_node + topology.local_rank == topology.rank
        node = topology.node_groups[topology.node]
        peers = topology.peer_groups[topology.local_rank]
        assert set(node) & set(peers) == {topology.rank}
        assert node.index(topology.rank) == topology.local_rank
        assert peers.index(topology.rank) == topology.node


@pytest.mark.parametrize("layout", LAYOUTS)
@given(nodes=NODES, ranks_per_node=RANKS_PER_NODE)
def test_a_slice_group_owns_every_class_once(
    layout: Layout, nodes: int, ranks_per_node: int
) -> None:
    world = every_rank(nodes, ranks_per_node)
    for topology in world:
        group = topology.slice_group(layout)
        assert topology.rank in group
        owned = Counter[int]()
        for rank in group:
            assert world[rank].slice_group(layout) == group, "its members must agree on it"
            own = slice_of(CLASSES, len(group), group.index(rank))
            owned.update(range(own.start, own.stop))
        assert owned == Counter(range(CLASSES))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(nodes=NODES, ranks_per_node=RANKS_PER_NODE)
def test_a_replica_group_owns_the_same_slice_once_in_every_slice_group(
    layout: Layout, nodes: int, ranks_per_node: int
) -> None:
    world = every_rank(nodes, ranks_per_node)
    slice_groups = {topology.slice_group(layout) for topology in world}
    for topology in world:
        replicas = topology.replica_group(layout)
        assert topology.rank in replicas
        places = {
            world[rank].slice_group(layout).index(rank): world[rank].replica_group(layout)
            for rank in replicas
        }
        own_place = topology.slice_group(layout).index(topology.rank)
        assert places == {own_place: replicas}
        assert all(len(set(group) & set(replicas)) == 1 for group in slice_groups)


@pytest.mark.parametrize(
    ("layout", "slices", "replicas"),
    [
        ("replicated", (4,), (0, 1, 2, 3, 4, 5)),
        ("node", (3, 4, 5), (1, 4)),
        ("world", (0, 1, 2, 3, 4, 5), (4,)),
    ],
)
def test_groups_of_rank_4_on_two_nodes_of_three(
    layout: Layout, slices: tuple[int, ...], replicas: tuple[int, ...]
) -> None:
    topology = Topology(4, 2, 3)
    assert topology.slice_group(layout) == slices
    assert topology.replica_group(layout) == replicas


def test_nodes_of_a_group() -> None:
    topology = Topology(0, 3, 2)
    assert [topology.nodes_of(ranks) for ranks in ((2, 3), (0, 2, 4), (1, 2))] == [1, 3, 2]


@given(NODES, RANKS_PER_NODE, st.data())
def test_even_hosts_are_taken_from_horovod(
    nodes: int, ranks_per_node: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, nodes * ranks_per_node - 1))
    found = from_horovod(rank, nodes * ranks_per_node, ranks_per_node, nodes)
    assert found == Topology(rank, nodes, ranks_per_node)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5).filter(lambda it: len(set(it)) > 1))
def test_uneven_hosts_are_refused_on_some_rank_of_some_host(slots: list[int]) -> None:
    """No rank sees all hosts: each knows its own, and how many have a rank of its local rank."""
    refused = 0
    first = 0
    for local_size in slots:
        for local_rank in range(local_size):
            cross_size = sum(other > local_rank for other in slots)
            try:
                from_horovod(first + local_rank, sum(slots), local_size, cross_size)
            except UserError:
                refused += 1
        first += local_size
    assert refused


def test_uneven_hosts_are_refused_with_what_to_do() -> None:
    message = "found 2 here on 2 hosts, but 3 ranks in all; name every host once"
    with pytest.raises(UserError, match=message):
        from_horovod(0, 3, 2, 2)


@pytest.mark.parametrize(("layout", "owners"), [("replicated", 1), ("node", 3), ("world", 6)])
def test_each_rank_of_a_slice_group_needs_a_class(layout: Layout, owners: int) -> None:
    topology = Topology(5, 2, 3)
    check_classes(topology, layout, owners)
    with pytest.raises(UserError) as caught:
        check_classes(topology, layout, owners - 1)
    assert str(caught.value) == (
        f"classifier.layout={layout} needs at least {owners} classes for {owners} ranks, "
        f"but data.num_classes is {owners - 1}; use replicated"
    )


def test_a_rank_is_one_of_its_world() -> None:
    with pytest.raises(ValueError, match="rank 6 is not one of 2 x 3"):
        Topology(6, 2, 3)
