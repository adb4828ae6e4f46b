"""One value that is not finite is one bad window: all nodes see it there, and nowhere after."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.exchange.codecs import BLOCK
from harness.exchange.compression import WireParts, make_wire
from harness.exchange.feedback import Feedback
from harness.exchange.flat import Flat
from harness.exchange.synchronous import Synchronous
from harness.exchange.ways import direct
from harness.exchange.wire import Carrier
from tests.grid import lossy_group
from tests.ranks import run_on_ranks
from tests.table import on_threads

COMPRESSIONS = ("none", "fp16", "int8", "int4", "sign")
BAD = (math.nan, math.inf, -math.inf)
SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1)
WINDOWS, WORST = 8, 3
"""Windows of a case, and the one in which a value is not finite."""


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
        """Sizes change from window to window, and from node to node."""
        generator = torch.Generator().manual_seed((self.seed * 100 + window) * 10 + node)
        values = torch.randn(self.elements, generator=generator, dtype=torch.float64)
        return values * 10.0 ** ((window + 2 * node) % 5)

    @property
    def seen(self) -> slice:
        """Where all nodes must see it: in the whole block, where values share a scale."""
        block = self.place // BLOCK * BLOCK
        alone = self.compression == "none"
        return slice(self.place, self.place + 1) if alone else slice(block, block + BLOCK)


@dataclass(frozen=True)
class Run:
    means: list[Tensor]
    """By window, as this node reads them."""
    owed: list[Tensor]
    """By window, what it still owes after sending."""
    kept: Tensor
    """What its wire has still to add to means at the end."""


def run(carrier: Carrier, case: Case, spoilt: bool) -> Run:
    """Gradients over a wire with feedback. Not `spoilt`: the bad value is what sends nothing."""
    like = torch.zeros(0, dtype=torch.float64)
    parts = WireParts(case.elements, like, case.delay + 1)
    wire = make_wire(case.compression, parts, carrier, "part")
    over = Feedback(wire, case.elements, like)
    means, owed, under_way = [], [], []
    for window in range(WINDOWS):
        part = case.part(carrier.index, window)
        bad_one = window == WORST and carrier.index == case.node and case.elements
        if bad_one:
            nothing = 0.0 if over.unsent is None else -over.unsent[case.place]
            part[case.place] = case.bad if spoilt else nothing
        under_way.append(over.launch(part, window % parts.slots))
        if bad_one and not spoilt and over.unsent is not None:
            # No sign stands for nothing: the magnitude of the block is sent in its place, and must
            # not be owed, as nothing is owed for a value that is not finite.
            over.unsent[case.place] = 0.0
        owed.append(like if over.unsent is None else over.unsent.clone())
        if len(under_way) > case.delay:
            means.append(torch.empty(case.elements, dtype=torch.float64))
            under_way.pop(0).mean(means[-1])
    for sent in under_way:
        means.append(torch.empty(case.elements, dtype=torch.float64))
        sent.mean(means[-1])
    kept = torch.zeros(case.elements, dtype=torch.float64)
    wire.settle(kept)
    return Run(means, owed, kept)


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
        assert torch.equal(own.kept, twin.kept), "what is kept differs"


def between_threads(case: Case, spoilt: bool) -> list[Run]:
    return on_threads(3, lambda carrier: run(carrier, case, spoilt))


@settings(max_examples=60, deadline=None)
@given(
    compression=st.sampled_from(COMPRESSIONS),
    elements=st.sampled_from(SIZES),
    delay=st.integers(0, 2),
    bad=st.sampled_from(BAD),
    place=st.integers(0, BLOCK),
    node=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_one_bad_value_is_one_bad_window(
    compression: str, elements: int, delay: int, bad: float, place: int, node: int, seed: int
) -> None:
    """What lands in every other window, and what is owed, are those of the run without it."""
    place = min(place, max(0, elements - 1))
    case = Case(compression, elements, delay, bad, place, node, seed)
    check(case, between_threads(case, True), between_threads(case, False))


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
    group = lossy_group()
    return [(run(group, case, True), run(group, case, False)) for case in REAL]


def test_so_it_is_between_processes() -> None:
    found = run_on_ranks(both_ways, 3)
    for number, case in enumerate(REAL):
        check(case, [each[number][0] for each in found], [each[number][1] for each in found])


@dataclass(frozen=True)
class Pair:
    """What comes of two windows, the first with a bad value or with nothing in its place."""

    spoilt: list[Tensor]
    well: list[Tensor]


def movements(compression: str, bad: float) -> Pair:
    """What averaging adds to this node's values."""
    group, like = lossy_group(), torch.zeros(0, dtype=torch.float64)

    def with_one(value: float) -> list[Tensor]:
        wire, found = make_wire(compression, WireParts(2 * BLOCK, like), group, "movement"), []
        for window in range(2):
            movement = torch.full((2 * BLOCK,), float(2**group.index), dtype=torch.float64)
            if window == 0 and group.index == 1:
                movement[5] = value
            found.append(torch.empty_like(movement))
            wire.launch(movement, 0).correction(found[-1])
        return found

    return Pair(with_one(bad), with_one(in_its_place(compression)))


def in_its_place(compression: str) -> float:
    """What node 1 sends exactly as it sends a bad value: nothing, and as a sign the magnitude of
    its other values."""
    return 2.0 if compression == "sign" else 0.0


def buckets(compression: str, bad: float) -> Pair:
    """Gradients that all ranks average in a bucket, in place."""
    group = lossy_group()

    def with_one(value: float) -> list[Tensor]:
        weight, found = nn.Parameter(torch.zeros(2 * BLOCK, dtype=torch.float64)), []
        flat = Flat([weight], 1, weight)
        exchange = Synchronous([direct(flat, group, compression)], 1e6, passes=1)
        for window in range(2):
            flat.grads.zero_()
            gradient = torch.full((2 * BLOCK,), float(2**group.index), dtype=torch.float64)
            if window == 0 and group.index == 1:
                gradient[5] = value
            (weight * gradient).sum().backward()
            exchange.gradients_ready(last=True)
            found.append(flat.grads.clone())
        return found

    return Pair(with_one(bad), with_one(in_its_place(compression)))


SHOWN = [(compression, bad) for compression in COMPRESSIONS for bad in BAD]


def all_shown() -> list[tuple[Pair, Pair]]:
    return [(movements(*each), buckets(*each)) for each in SHOWN]


def test_movements_and_buckets_show_others_bad_values_once() -> None:
    """On a node whose own values are well, too."""
    for found in run_on_ranks(all_shown, 3):
        for (compression, _), pairs in zip(SHOWN, found, strict=True):
            for pair in pairs:
                (bad, after), (expected, expected_after) = pair.spoilt, pair.well
                seen = [5] if compression == "none" else range(BLOCK)
                assert (~bad.isfinite()).nonzero().flatten().tolist() == list(seen)
                bad[list(seen)] = expected[list(seen)]
                assert torch.equal(bad, expected)
                assert torch.equal(after, expected_after)
                assert expected.abs().max() > 0
