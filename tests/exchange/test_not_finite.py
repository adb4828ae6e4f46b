"""One value that is not finite is one bad window: all nodes see it there, and nowhere after."""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.exchange.compression import make_wire
from harness.exchange.halves import Halves
from harness.exchange.lanes import BLOCK
from harness.exchange.synchronous import CompressedBucket
from harness.exchange.wire import Carrier, Feedback
from harness.measure.phase import Phase
from harness.parallel.group import Group
from tests.alone import meters
from tests.ranks import run_on_ranks

COMPRESSIONS = ("none", "fp16", "int8", "int4")
INTEGERS = ("int8", "int4")
BAD = (math.nan, math.inf, -math.inf)
SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1)
WINDOWS, WORST = 8, 3
"""Windows of a case, and the one in which a value is not finite."""


@dataclass
class Table:
    """Where nodes that are threads of this process put what they sum."""

    nodes: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    buffers: defaultdict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))

    def put(self, buffer: Tensor, name: str, node: int) -> None:
        with self.changed:
            found = self.buffers[name]
            found[node] = buffer
            if len(found) == self.nodes:
                # In order of nodes: whoever comes first, the sum is the same to the bit.
                in_order = [found[each] for each in range(self.nodes)]
                total = torch.stack(in_order).sum(dim=0, dtype=buffer.dtype)
                for each in in_order:
                    each.copy_(total)
                self.changed.notify_all()

    def wait(self, name: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.buffers[name]) == self.nodes, 20)


@dataclass
class Seat:
    """One node's carrier; a name may be used again, so each use is numbered."""

    table: Table
    index: int
    uses: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def size(self) -> int:
        return self.table.nodes

    def launch_sum(self, buffer: Tensor, name: str) -> "Launched":
        self.uses[name] += 1
        numbered = f"{name}#{self.uses[name]}"
        self.table.put(buffer, numbered, self.index)
        return Launched(self.table, numbered)


@dataclass
class Launched:
    table: Table
    name: str

    def wait(self) -> None:
        self.table.wait(self.name)


@dataclass(frozen=True)
class Case:
    """One run of one wire."""

    compression: str
    elements: int
    delay: int = 0
    bad: float = math.nan
    """What stands at `place` of node `node` in the worst window."""
    place: int = 0
    node: int = 0
    seed: int = 0

    def part(self, node: int, window: int) -> Tensor:
        """Values of 1 to 2 either way, a place's sign always the same: no scale has to change.

        The last node's are eight times as large: a block asks for its scale, whoever is silent.
        """
        signs = torch.Generator().manual_seed(self.seed)
        sizes = torch.Generator().manual_seed((self.seed * 100 + window) * 10 + node)
        values = 1 + torch.rand(self.elements, generator=sizes, dtype=torch.float64)
        values *= torch.randint(0, 2, (self.elements,), generator=signs) * 2 - 1
        return values * (8 if node == 2 else 1)

    @property
    def seen(self) -> slice:
        """Where all nodes must see it: in the whole block, where values share a scale."""
        block = self.place // BLOCK * BLOCK
        shares = self.compression in INTEGERS
        return slice(block, block + BLOCK) if shares else slice(self.place, self.place + 1)


@dataclass(frozen=True)
class Run:
    means: list[Tensor]
    """By window, as this node reads them."""
    owed: list[Tensor]
    """By window, what it still owes after sending."""


def run(carrier: Carrier, case: Case, spoilt: bool) -> Run:
    """Gradients over a wire with feedback. Not `spoilt`: the bad value is what sends nothing."""
    like = torch.zeros(0, dtype=torch.float64)
    slots = case.delay + 1
    wire = make_wire(case.compression, case.elements, slots, like, carrier, "part")
    over = Feedback(wire, case.elements, like)
    means, owed, under_way = [], [], []
    for window in range(WINDOWS):
        part = case.part(carrier.index, window)
        if window == WORST and carrier.index == case.node and case.elements:
            nothing = 0.0 if over.unsent is None else -over.unsent[case.place]
            part[case.place] = case.bad if spoilt else nothing
        under_way.append(over.launch(part, window % slots))
        owed.append(like if over.unsent is None else over.unsent.clone())
        if len(under_way) > case.delay:
            means.append(torch.empty(case.elements, dtype=torch.float64))
            under_way.pop(0).mean(means[-1])
    for sent in under_way:
        means.append(torch.empty(case.elements, dtype=torch.float64))
        sent.mean(means[-1])
    return Run(means, owed)


def check(case: Case, spoilt: Sequence[Run], well: Sequence[Run]) -> None:
    """Of all nodes: the bad window shows, and every other is that of the run without it."""
    for own, twin in zip(spoilt, well, strict=True):
        for window, (mean, expected) in enumerate(zip(own.means, twin.means, strict=True)):
            assert expected.isfinite().all()
            if window == WORST and case.elements:
                assert not mean[case.seen].isfinite().any(), "not seen on this node"
                mean[case.seen] = expected[case.seen]
            assert torch.equal(mean, expected), f"window {window} knows of it"
        for owed, expected in zip(own.owed, twin.owed, strict=True):
            assert torch.equal(owed, expected), "what is owed differs"


def on_threads(case: Case, spoilt: bool) -> list[Run]:
    table = Table(3)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(run, Seat(table, node), case, spoilt) for node in range(3)]
        return [job.result(timeout=30) for job in jobs]


@settings(max_examples=60, deadline=None)
@given(
    compression=st.sampled_from(COMPRESSIONS),
    elements=st.sampled_from(SIZES),
    delay=st.integers(0, 2),
    bad=st.sampled_from(BAD),
    place=st.integers(0, BLOCK),
    node=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_one_bad_value_is_one_bad_window(
    compression: str, elements: int, delay: int, bad: float, place: int, node: int, seed: int
) -> None:
    """What lands in every other window, and what is owed, are those of the run without it."""
    place = min(place, max(0, elements - 1))
    case = Case(compression, elements, delay, bad, place, node, seed)
    check(case, on_threads(case, True), on_threads(case, False))


REAL = [
    Case(compression, elements, delay, bad, max(0, elements - 1))
    for compression in COMPRESSIONS
    for elements, delay, bad in (
        (0, 0, math.nan),
        (1, 1, math.nan),
        (BLOCK + 1, 0, math.inf),
        (2 * BLOCK, 2, -math.inf),
    )
]


def both_ways() -> list[tuple[Run, Run]]:
    group = all_ranks()
    return [(run(group, case, True), run(group, case, False)) for case in REAL]


def all_ranks() -> Group:
    size, rank = dist.get_world_size(), dist.get_rank()
    ranks = tuple(range(size))
    return Group(ranks, rank, size, dist.group.WORLD, meters(), Phase.EXCHANGE_WAIT)


def test_so_it_is_between_processes() -> None:
    found = run_on_ranks(both_ways, 3)
    for number, case in enumerate(REAL):
        check(case, [each[number][0] for each in found], [each[number][1] for each in found])


def movements(compression: str, bad: float) -> list[Tensor]:
    """What averaging adds to this node's values: with the bad value of node 1, after it, and
    without it."""
    group, found = all_ranks(), []
    like = torch.zeros(0, dtype=torch.float64)
    make = (compression, 2 * BLOCK, 1, like, group, "movement")
    wire = make_wire(*make)
    for spoilt, over in ((True, wire), (False, wire), (False, make_wire(*make))):
        movement = torch.full((2 * BLOCK,), float(group.index + 1), dtype=torch.float64)
        if spoilt and group.index == 1:
            movement[5] = bad
        found.append(torch.empty_like(movement))
        over.launch(movement, 0).correction(found[-1])
    return found


def all_movements() -> list[list[Tensor]]:
    return [movements(compression, bad) for compression in COMPRESSIONS for bad in BAD]


def test_nodes_that_average_see_each_others() -> None:
    """On a node whose own values are well, too."""
    for found in run_on_ranks(all_movements, 3):
        for number, (bad, after, without) in enumerate(found):
            wide = COMPRESSIONS[number // len(BAD)] in INTEGERS
            assert int((~bad.isfinite()).sum()) == (BLOCK if wide else 1)
            assert not bad[5].isfinite()
            assert torch.equal(after, without)


def bucketed(bad: float) -> list[Tensor]:
    """The flat route's bucket, averaged in place: before, with the bad value, and after it."""
    group = all_ranks()
    bucket = torch.zeros(BLOCK, dtype=torch.float64)
    over = CompressedBucket(bucket, group, "fp16")
    found = []
    for window in range(3):
        bucket.fill_(float(group.index))
        if window == 1 and group.index == 2:
            bucket[7] = bad
        over.launch().wait()
        found.append(bucket.clone())
    return found


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bucket_of_the_flat_route_shows_it_once(bad: float) -> None:
    for before, with_it, after in run_on_ranks(bucketed, 3, bad):
        assert torch.equal(before, torch.ones(BLOCK, dtype=torch.float64))
        assert with_it.isfinite().tolist() == [place != 7 for place in range(BLOCK)]
        assert torch.equal(after, before)


def alone_on(nodes: int, body: Callable[[Carrier], object]) -> list[object]:
    table = Table(nodes)
    with ThreadPoolExecutor(nodes) as pool:
        jobs = [pool.submit(body, Seat(table, node)) for node in range(nodes)]
        return [job.result(timeout=30) for job in jobs]


def small_beside_large(carrier: Carrier) -> list[Tensor]:
    """A gradient of many classes: a few large values, and many that a half holds as 0."""
    like = torch.zeros(0, dtype=torch.float32)
    wire = make_wire("fp16", 1000, 1, like, carrier, "part")
    part = torch.full((1000,), 3e-9)
    part[0] = 1e-3
    found = []
    for _ in range(2):
        found.append(torch.empty(1000))
        wire.launch(part, 0).mean(found[-1])
    wire.forget()
    found.append(torch.empty(1000))
    wire.launch(part, 0).mean(found[-1])
    return found


@pytest.mark.parametrize("nodes", [2, 5])
def test_halves_hold_small_values_once_a_message_has_landed(nodes: int) -> None:
    for first, second, forgotten in alone_on(nodes, small_beside_large):
        assert (first[1:] == 0).all()
        assert (second[1:] / 3e-9 - 1).abs().max() < 1e-3
        assert torch.equal(forgotten, first), "the scale is not back at its start"


def scales(carrier: Carrier) -> list[float]:
    """After messages of very different sizes, one of zeros and one with NaN among them."""
    wire = Halves(4, 1, torch.zeros(0), carrier, "part")
    found = []
    for size in (1.0, 1e6, 1e6, 0.0, math.nan, 1.0, 1e-4, 1e-9):
        mean = torch.empty(4)
        wire.launch(torch.full((4,), size * (1 + carrier.index)), 0).mean(mean)
        found.append(float(wire._scale))
    return found


def test_ranks_agree_on_the_scale_and_it_rounds_nothing() -> None:
    found = alone_on(3, scales)
    assert found[0] == found[1] == found[2]
    assert all(math.frexp(scale)[0] == 0.5 for scale in found[0])
    assert found[0][2] < found[0][1] < found[0][0]
    assert found[0][3] == found[0][4] == found[0][2], "zeros and NaN ask for no scale"
    assert found[0][-1] > 2**30 > found[0][0], "it does not follow values down"
