"""Bytes of a collective equal a ring that is played out; a run's equal numbers worked by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.traffic import (
    Bytes,
    Sizes,
    Traffic,
    all_gather_bytes,
    all_reduce_bytes,
    all_to_all_bytes,
    bucket_bytes,
    formula,
    slice_bytes,
)

GRIDS = [(nodes, per_node) for nodes in (1, 2, 3, 4) for per_node in (1, 2, 3)]
NUMBERS = st.integers(0, 10**9).map(float)
SOME_BYTES = st.builds(Bytes, NUMBERS, NUMBERS)


class Links:
    """Counts what goes from rank to rank, in units."""

    def __init__(self, per_node: int) -> None:
        self._per_node = per_node
        self._in_node: dict[int, float] = {}
        self._cross_node: dict[int, float] = {}

    def send(self, sender: int, receiver: int, units: float) -> None:
        sender_node, receiver_node = sender // self._per_node, receiver // self._per_node
        counts = self._in_node if sender_node == receiver_node else self._cross_node
        counts[sender_node] = counts.get(sender_node, 0.0) + units

    def of_a_rank(self) -> Bytes:
        """Mean over a node's ranks; all nodes must have sent the same."""
        (in_node,) = set(self._in_node.values()) or {0.0}
        (cross_node,) = set(self._cross_node.values()) or {0.0}
        return Bytes(in_node / self._per_node, cross_node / self._per_node)


def ring_gather(ranks: list[int], held: dict[int, set[int]], links: Links) -> None:
    """Each passes on to the next what came last, until all hold what any of them held."""
    moving = {rank: set(held[rank]) for rank in ranks}
    for _ in range(len(ranks) - 1):
        arriving = {}
        for place, rank in enumerate(ranks):
            receiver = ranks[(place + 1) % len(ranks)]
            links.send(rank, receiver, len(moving[rank]))
            arriving[receiver] = moving[rank]
        for rank in ranks:
            held[rank] |= arriving[rank]
        moving = arriving


@pytest.mark.parametrize(("nodes", "per_node"), GRIDS)
def test_an_all_gather_takes_each_block_into_a_node_once(nodes: int, per_node: int) -> None:
    """Rings of one rank per node first, then a ring in each node with what they brought."""
    ranks, links = nodes * per_node, Links(per_node)
    held = {rank: {rank} for rank in range(ranks)}
    for local in range(per_node):
        ring_gather(list(range(local, ranks, per_node)), held, links)
    for node in range(nodes):
        ring_gather(list(range(node * per_node, (node + 1) * per_node)), held, links)
    assert all(blocks == set(range(ranks)) for blocks in held.values())
    assert all_gather_bytes(1.0, ranks, nodes) == approx(links.of_a_rank())


@pytest.mark.parametrize(("nodes", "per_node"), GRIDS)
def test_an_all_reduce_is_one_ring_over_all_ranks(nodes: int, per_node: int) -> None:
    """Chunk c starts at rank c: added up on the way round, then passed round once more."""
    ranks, links = nodes * per_node, Links(per_node)
    contents = {rank: [{rank} for _ in range(ranks)] for rank in range(ranks)}
    for lap in range(2 * (ranks - 1)):
        for rank in range(ranks):
            chunk, receiver = (rank - lap) % ranks, (rank + 1) % ranks
            links.send(rank, receiver, 1 / ranks)
            contents[receiver][chunk] = contents[receiver][chunk] | contents[rank][chunk]
    assert all(chunk == set(range(ranks)) for own in contents.values() for chunk in own)
    assert all_reduce_bytes(1.0, ranks, nodes) == approx(links.of_a_rank())


@pytest.mark.parametrize(("nodes", "per_node"), GRIDS)
def test_an_all_to_all_sends_every_block_on_its_own(nodes: int, per_node: int) -> None:
    ranks, links = nodes * per_node, Links(per_node)
    for sender in range(ranks):
        for receiver in range(ranks):
            if sender != receiver:
                links.send(sender, receiver, 1.0)
    assert all_to_all_bytes(1.0, ranks, nodes) == approx(links.of_a_rank())


def approx(sent: Bytes) -> object:
    return Bytes(*(pytest.approx(value) for value in (sent.in_node, sent.cross_node)))


@given(SOME_BYTES, SOME_BYTES, st.integers(0, 5))
def test_bytes_add_up(one: Bytes, other: Bytes, times: int) -> None:
    assert one + other - other == one
    assert one + other == other + one
    assert one * times == sum([one] * times, Bytes())


def test_traffic_only_grows() -> None:
    traffic = Traffic()
    traffic.add(Bytes(1, 2))
    before = traffic.total
    traffic.add(Bytes(10, 20))
    assert traffic.total - before == Bytes(10, 20)
    assert traffic.total == Bytes(11, 22)


SIZES = Sizes(
    nodes=2,
    ranks_per_node=2,
    images_per_rank=3,
    passes=1,
    shared=1000,
    slices=(30, 30),
    features=6,
    element_bytes=4,
    feature_bytes=4,
    crossing=lambda elements, ranks, nodes: all_reduce_bytes(4 * elements, ranks, nodes),
    buckets=(600, 400),
    slice_buckets=((20, 10), (30,)),
)
"""P = 1000, C D = 60, B = 3, D = 6, s = 4, M = G = 2, N = 4."""
ALL_SHARED = replace(SIZES, shared=1060, slices=(), buckets=(600, 460), slice_buckets=())


def in_bytes_and_a_word(elements: int, ranks: int, nodes: int) -> Bytes:
    """A byte an element and 4 more, rounded up to even: buckets are no longer as their sum."""
    return all_reduce_bytes(elements + elements % 2 + 4, ranks, nodes)


UNEVEN = replace(SIZES, buckets=(501, 499), crossing=in_bytes_and_a_word)

FEATURES = 2 * 3 * 6 * 4
"""Of another rank, there and back: 2 B D s."""
LABELS = 3 * 4
"""B labels of 4 bytes."""
NODE_STATISTICS, WORLD_STATISTICS = 3 * 6 * 4, 3 * 12 * 4
"""3 numbers for each of the 2 B or 4 B gathered images."""


@pytest.mark.parametrize(
    ("layout", "kind", "route", "sizes", "link", "in_node"),
    [
        # 2(N-1)/N (P + C D) s; half of the ring's hops are inside a node.
        ("replicated", "synchronous", "flat", ALL_SHARED, 6360, 6360 / 2),
        # 2(M-1)/M (P + C D) s; a chunk each to the other rank, and back.
        ("replicated", "synchronous", "hierarchical", ALL_SHARED, 4240, 2 * 2120),
        (
            "node",
            "delayed",
            "hierarchical",
            SIZES,
            4240,
            2 * 2000 + FEATURES + LABELS + NODE_STATISTICS,
        ),
        (
            "node",
            "delayed",
            "hierarchical",
            replace(SIZES, passes=4),
            4240,
            2 * 2000 + 4 * (FEATURES + LABELS + NODE_STATISTICS),
        ),
        # 2(N-1)/N P s, and 2(M-1)/M C D s between those who own the same.
        (
            "node",
            "synchronous",
            "flat",
            SIZES,
            6000 + 240,
            3000 + FEATURES + LABELS + NODE_STATISTICS,
        ),
        # 2(M-1)/M of a share of each bucket, which is a chunk of it, by each rank; the same twice
        # in the node.
        (
            "node",
            "synchronous",
            "hierarchical",
            replace(SIZES, passes=4),
            4000 + 240,
            2 * 2000 + 4 * (FEATURES + LABELS + NODE_STATISTICS),
        ),
        # Shares of 251 and of 250 elements, a byte each and 4 for their bucket, from both ranks;
        # slices of 20 + 10 and of 30 elements. In the node shares are whole numbers of 4 bytes.
        (
            "node",
            "synchronous",
            "hierarchical",
            UNEVEN,
            2 * (256 + 254) + (24 + 14 + 34),
            2 * (251 + 250) * 4 + FEATURES + LABELS + NODE_STATISTICS,
        ),
        # The same in a flat ring: 2(N-1)/N of 506 and of 504 bytes.
        (
            "node",
            "synchronous",
            "flat",
            UNEVEN,
            1.5 * (506 + 504) + (24 + 14 + 34),
            1.5 * (506 + 504) / 2 + FEATURES + LABELS + NODE_STATISTICS,
        ),
        # Features of all other nodes, twice; buckets as ever.
        (
            "world",
            "synchronous",
            "hierarchical",
            replace(SIZES, slices=(), slice_buckets=()),
            4000 + 2 * (FEATURES + LABELS + WORLD_STATISTICS),
            2 * 2000 + 2 * (FEATURES + LABELS + WORLD_STATISTICS),
        ),
        # Averaged in a node at every micro-batch, over all ranks once in a window.
        (
            "replicated",
            "ddp_post_local_sgd",
            "flat",
            replace(ALL_SHARED, passes=4),
            6360,
            6360 / 2 + 4 * 4240,
        ),
        ("replicated", "ddp_powersgd", "flat", ALL_SHARED, 6360, 6360 / 2),
        # Every micro-batch a chunk of gradients to the other rank, and one of values back.
        (
            "node",
            "averaging",
            "hierarchical",
            replace(SIZES, passes=4),
            4240,
            4 * (2 * 2000 + FEATURES + LABELS + NODE_STATISTICS),
        ),
        # 2(M-1)/M P s, and from each of the N-G others 2 B D s, their labels and statistics.
        # The same, one of 4 pieces, a quarter of the bytes an element and a word for each.
        (
            "node",
            "averaging",
            "hierarchical",
            replace(SIZES, passes=4, pieces=4, crossing=in_bytes_and_a_word),
            # Of a chunk of 500 125 each, of the slice of 30 7, 8, 7, 8.
            2 * sum(132 + 4 if own == 7 else 134 + 4 for own in (7, 8, 7, 8)) / 4,
            4 * (2 * 2000 + FEATURES + LABELS + NODE_STATISTICS),
        ),
        # Slices in messages of their own: one of 2 pieces of the chunk, and of 4 of the slice.
        (
            "node",
            "averaging",
            "hierarchical",
            replace(SIZES, passes=4, pieces=2, slice_pieces=4, crossing=in_bytes_and_a_word),
            # Of a chunk of 500 250 each, of the slice of 30 7, 8, 7, 8.
            2 * (250 + 4 + 8 + 4),
            4 * (2 * 2000 + FEATURES + LABELS + NODE_STATISTICS),
        ),
        # Nothing but what averaging does in the node at every micro-batch.
        (
            "node",
            "isolated",
            "hierarchical",
            replace(SIZES, passes=4),
            0,
            4 * (2 * 2000 + FEATURES + LABELS + NODE_STATISTICS),
        ),
        (
            "world",
            "delayed",
            "hierarchical",
            replace(SIZES, passes=4, slices=()),
            4000 + 4 * 2 * (FEATURES + LABELS + WORLD_STATISTICS),
            2 * 2000 + 4 * 2 * (FEATURES + LABELS + WORLD_STATISTICS),
        ),
    ],
)
def test_a_window_as_worked_by_hand(
    layout: str, kind: str, route: str, sizes: Sizes, link: float, in_node: float
) -> None:
    found = formula(layout, kind, route, sizes)
    assert found.cross_node * sizes.ranks_per_node == pytest.approx(link)
    assert found.in_node == pytest.approx(in_node)


def test_slicing_over_a_node_does_not_lower_what_crosses_between_nodes() -> None:
    node = formula("node", "delayed", "hierarchical", SIZES)
    assert (
        node.cross_node == formula("replicated", "delayed", "hierarchical", ALL_SHARED).cross_node
    )


def test_one_node_sends_nothing_across_and_one_rank_nothing() -> None:
    one_node = replace(SIZES, nodes=1)
    one_rank = replace(SIZES, nodes=1, ranks_per_node=1, slices=(60,), slice_buckets=((50, 10),))
    for layout in ("replicated", "node", "world"):
        for kind in ("synchronous", "delayed", "averaging"):
            for route in ("flat", "hierarchical"):
                assert formula(layout, kind, route, one_node).cross_node == 0
                assert formula(layout, kind, route, one_rank) == Bytes()


def test_statistics_of_large_groups_do_not_grow_with_their_square() -> None:
    """8 ranks gather three numbers of every image from everyone; 16 reduce them, twice 2(n-1)/n."""
    small, large = (
        slice_bytes("world", replace(SIZES, nodes=nodes, ranks_per_node=2)) for nodes in (4, 8)
    )
    images = SIZES.images_per_rank
    assert len(small) == 3
    assert small[1].in_node + small[1].cross_node == 7 * 3 * 8 * images * 4
    assert len(large) == 4
    sent = [each.in_node + each.cross_node for each in large[1:3]]
    assert sent == pytest.approx([2 * 15 / 16 * rows * 16 * images * 4 for rows in (1, 2)])


@pytest.mark.parametrize("elements", [1, 7, 1000])
def test_a_bucket_through_nodes_takes_equal_shares(elements: int) -> None:
    """Of 7 elements each of 2 ranks takes 4: both ways in the node, and over the link."""
    found = bucket_bytes("hierarchical", elements, SIZES)
    share = (elements + 1) // 2
    assert found == Bytes(in_node=2 * 4 * share, cross_node=4 * share)
    assert bucket_bytes("flat", elements, SIZES) == all_reduce_bytes(4 * elements, 4, 2)
