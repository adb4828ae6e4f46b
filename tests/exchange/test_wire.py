"""Wires on real Gloo ranks: what they send, what they keep, and what they say of it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from harness.exchange.codecs import BLOCK
from harness.exchange.compression import WireParts, crossing_bytes, make_wire
from harness.exchange.feedback import Feedback
from harness.exchange.wire import Carrier, Wire
from harness.measure.traffic import Bytes
from tests.alone import group_of_one, meters
from tests.grid import lossy_group
from tests.live_bytes import live_bytes
from tests.ranks import run_on_ranks
from tests.table import on_threads

REACH = {"int8": 127, "int4": 7}
"""The largest multiple of a scale, at any number of ranks."""
LOSSY = ("fp16", *REACH)
WIRES = ("none", *LOSSY)
RANKS = (2, 3, 5)
ELEMENTS = (0, 1, 77, 2 * BLOCK + 77, 7 * BLOCK + 77)
"""None, in one rank's piece, in less than a block, in fewer blocks than ranks, in several each."""
LIKE = torch.zeros(0, dtype=torch.float64)


def wire(carrier: Carrier, compression: str, elements: int, slots: int = 1) -> Wire:
    return make_wire(compression, WireParts(elements, LIKE, slots), carrier, "part")


def part(rank: int, number: int, elements: int) -> Tensor:
    """Values whose size differs by block and grows with `number`."""
    generator = torch.Generator().manual_seed(100 * number + rank)
    values = torch.randn(elements, generator=generator, dtype=torch.float64) * (1 + number)
    values[BLOCK : 2 * BLOCK] *= 1e-4
    return values


def blocks_of(values: Tensor) -> Iterator[Tensor]:
    return iter(values.split(BLOCK) if len(values) else ())


@dataclass(frozen=True)
class Message:
    own: Tensor
    mean: Tensor
    correction: Tensor
    """Of the same part, by another wire."""
    first: Bytes
    second: Bytes
    """Counted for two messages, one after the other."""


def message(compression: str, elements: int) -> Message:
    counted = meters()
    group = lossy_group(counted=counted)
    over, other = (wire(group, compression, elements) for _ in range(2))
    own, mean, correction = torch.zeros(3, elements, dtype=torch.float64)
    given = part(group.index, 0, elements)
    before = given.clone()
    sent = over.launch(given, 0)
    sent.add_own(own, 1.0)
    sent.mean(mean)
    assert torch.equal(given, before), "a part stays as it is"
    first = counted.traffic.total
    other.launch(given, 0).correction(correction)
    return Message(own, mean, correction, first, counted.traffic.total - first)


def messages() -> dict[tuple[str, int], Message]:
    return {(each, n): message(each, n) for each in WIRES for n in ELEMENTS}


@cache
def found(ranks: int) -> list[dict[tuple[str, int], Message]]:
    return run_on_ranks(messages, ranks)


def of_all_ranks(ranks: int, compression: str, elements: int) -> list[Message]:
    return [each[compression, elements] for each in found(ranks)]


EVERY = [
    pytest.param(ranks, compression, elements, id=f"{ranks} ranks, {compression}, {elements}")
    for ranks in RANKS
    for compression in WIRES
    for elements in ELEMENTS
]
AMONG_MORE = [each for each in EVERY if each.values[0] > 2]


@pytest.mark.parametrize(("ranks", "compression", "elements"), EVERY)
def test_all_read_the_same_mean_to_the_bit(ranks: int, compression: str, elements: int) -> None:
    first, *others = of_all_ranks(ranks, compression, elements)
    assert all(torch.equal(first.mean, other.mean) for other in others)


@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("compression", WIRES)
def test_between_two_the_mean_is_that_of_what_each_says_it_sent(
    compression: str, elements: int
) -> None:
    one, other = of_all_ranks(2, compression, elements)
    torch.testing.assert_close(one.mean, (one.own + other.own) / 2, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("ranks", "compression", "elements"), AMONG_MORE)
def test_among_more_the_mean_is_that_of_what_each_says_it_sent_rounded_once(
    ranks: int, compression: str, elements: int
) -> None:
    given = of_all_ranks(ranks, compression, elements)
    mean = torch.stack([each.own for each in given]).mean(0)
    for received, exact in zip(blocks_of(given[0].mean), blocks_of(mean), strict=True):
        assert ((received - exact).abs() <= rounding(compression, exact)).all()
    assert torch.equal(torch.zeros(elements), given[0].mean * 0), "not all of it is finite"


def rounding(compression: str, block: Tensor) -> Tensor:
    """Half a step, of each value of a block; one float32 more."""
    largest = block.abs().max()
    if compression == "none":
        return largest * 1e-15
    if compression == "fp16":
        return block.abs() * (2.0**-11 + 2.0**-24) + largest * 2.0**-39
    return largest / REACH[compression] / 2 * (1 + 1e-5)


@pytest.mark.parametrize(("ranks", "compression", "elements"), EVERY)
def test_each_value_is_within_half_a_step_of_its_own_blocks_scale(
    ranks: int, compression: str, elements: int
) -> None:
    """Of this rank's block alone, whatever the others send."""
    for rank, each in enumerate(of_all_ranks(ranks, compression, elements)):
        given = part(rank, 0, elements)
        for own, exact in zip(blocks_of(each.own), blocks_of(given), strict=True):
            assert ((own - exact).abs() <= rounding(compression, exact)).all()


@pytest.mark.parametrize(("ranks", "compression", "elements"), AMONG_MORE)
def test_what_a_rank_sends_is_the_same_among_any_number_of_ranks(
    ranks: int, compression: str, elements: int
) -> None:
    few, many = of_all_ranks(2, compression, elements), of_all_ranks(ranks, compression, elements)
    for one, other in zip(few, many, strict=False):
        assert torch.equal(one.own, other.own)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("compression", "reach"), REACH.items())
def test_a_value_and_a_mean_have_as_many_levels_among_any_number_of_ranks(
    ranks: int, compression: str, reach: int
) -> None:
    """255 of 8 bits, 15 of 4: from the largest on either side, in equal steps. Between two a mean
    has more of them: it is not written."""
    for each in of_all_ranks(ranks, compression, ELEMENTS[-1]):
        for values in (each.own, each.mean)[: 1 if ranks == 2 else 2]:
            for block in values.split(BLOCK)[:-1]:
                levels = block / (block.abs().max() / reach)
                assert (levels - levels.round()).abs().max() < 1e-4
                assert levels.round().abs().max() == reach
                assert len(levels.round().unique()) > reach, "most levels stand empty"


@pytest.mark.parametrize(("ranks", "compression", "elements"), EVERY)
def test_a_correction_is_the_mean_less_what_was_sent(
    ranks: int, compression: str, elements: int
) -> None:
    for each in of_all_ranks(ranks, compression, elements):
        torch.testing.assert_close(each.correction, each.mean - each.own, rtol=0, atol=1e-12)
        if elements:
            assert each.correction.abs().max() > 1e-3


@pytest.mark.parametrize(("ranks", "compression", "elements"), EVERY)
def test_bytes_are_those_of_the_formula_and_of_the_hand(
    ranks: int, compression: str, elements: int
) -> None:
    """Twice a rank sends a piece to each of the others, or all of its part to the other one: whole
    blocks, each with a scale."""
    by_hand = 2 * (ranks - 1) / ranks * elements * 8
    if compression != "none":
        blocks = math.ceil(elements / BLOCK)
        bits = {"fp16": 16, "int8": 8, "int4": 4}[compression]
        sent = blocks if ranks == 2 else 2 * (ranks - 1) * math.ceil(blocks / ranks)
        by_hand = sent * (4 + BLOCK * bits / 8)
    for each in of_all_ranks(ranks, compression, elements):
        assert each.first == each.second == Bytes(cross_node=pytest.approx(by_hand))
        assert crossing_bytes(compression, elements, 8, ranks, ranks) == each.first


def of_two_nodes() -> list[Bytes]:
    """Counted for a message of each wire, over two nodes of two."""
    counted = meters()
    group, sent = lossy_group(2, counted), []
    for compression in WIRES:
        before = counted.traffic.total
        mean = torch.empty(ELEMENTS[-1], dtype=torch.float64)
        wire(group, compression, len(mean)).launch(torch.ones_like(mean), 0).mean(mean)
        assert (mean - 1).abs().max() < 1e-6
        sent.append(counted.traffic.total - before)
    return sent


def test_bytes_of_ranks_that_share_nodes() -> None:
    """Of both hops three pieces leave a rank: two cross the first time, one the second."""
    piece = 2 * (4 + BLOCK)
    for each in run_on_ranks(of_two_nodes, 4):
        assert each == [crossing_bytes(name, ELEMENTS[-1], 8, 4, 2) for name in WIRES]
        assert each[WIRES.index("int8")] == Bytes(in_node=3 * piece, cross_node=3 * piece)


def test_bytes_of_an_element() -> None:
    many = 1000 * BLOCK
    found = [crossing_bytes(each, many, 4, 2, 2).cross_node / many for each in WIRES]
    assert found == pytest.approx([4, 2, 1, 0.5], rel=1e-2)
    wide = [crossing_bytes(each, many, 4, 50, 50).cross_node / many for each in WIRES]
    assert wide == pytest.approx([1.96 * share for share in found])
    for compression in WIRES:
        alone = crossing_bytes(compression, many, 4, 1, 1)
        assert alone == Bytes(), "alone there is nobody to send to"


FED = 3 * BLOCK + 5
MESSAGES = 60
"""The later half of zeros."""


@dataclass(frozen=True)
class Fed:
    """What was given, what landed and what is unsent, added up to each message."""

    given: list[Tensor]
    unsent: list[Tensor]
    means: list[Tensor]


def fed(carrier: Carrier, compression: str, delay: int) -> Fed:
    over = Feedback(wire(carrier, compression, FED, delay + 1), FED, LIKE)
    assert over.unsent is not None
    found, under_way = Fed([], [], []), []

    def land() -> None:
        mean = torch.empty(FED, dtype=torch.float64)
        under_way.pop(0).mean(mean)
        found.means.append(mean)

    for number in range(MESSAGES):
        size = (number % 4 + 1) * 10.0 ** (number % 3)
        own = part(carrier.index, number, FED) * size * (number < MESSAGES // 2)
        found.given.append(own)
        under_way.append(over.launch(own, number % (delay + 1)))
        found.unsent.append(over.unsent.clone())
        if len(under_way) > delay:
            land()
    while under_way:
        land()
    return found


CARRIED = [(compression, delay) for compression in LOSSY for delay in (0, 1, 2)]


def all_fed() -> list[Fed]:
    group = lossy_group()
    return [fed(group, *each) for each in CARRIED]


@cache
def fed_on(ranks: int) -> list[list[Fed]]:
    return run_on_ranks(all_fed, ranks)


@pytest.mark.parametrize("case", CARRIED)
@pytest.mark.parametrize("ranks", [2, 3])
def test_with_feedback_nothing_is_lost(ranks: int, case: tuple[str, int]) -> None:
    """After any message: what lacks is unsent, or the rest of one rounding of the last mean.

    Also where values outgrow those of some messages ago a hundred times.
    """
    found = [each[CARRIED.index(case)] for each in fed_on(ranks)]
    means = found[0].means
    given, landed = torch.zeros(2, FED, dtype=torch.float64)
    for message in range(MESSAGES):
        given += torch.stack([each.given[message] for each in found]).mean(0)
        unsent = torch.stack([each.unsent[message] for each in found]).mean(0)
        landed += means[message]
        rest = given - landed - unsent
        for left, mean in zip(blocks_of(rest), blocks_of(means[message]), strict=True):
            assert (left.abs() <= rounding(case[0], mean) + 1e-9).all(), f"message {message}"
    assert landed.abs().max() > 1000
    assert (landed - given).abs().max() < 1e-9, "zeros bring all of it, both remainders too"


@pytest.mark.parametrize("case", CARRIED)
@pytest.mark.parametrize("ranks", [2, 3])
def test_what_lands_late_is_what_would_have_landed_at_once(
    ranks: int, case: tuple[str, int]
) -> None:
    compression, delay = case
    now = fed_on(ranks)[0][CARRIED.index((compression, 0))].means
    late = fed_on(ranks)[0][CARRIED.index((compression, delay))].means
    assert all(torch.equal(*each) for each in zip(now, late, strict=True))


def test_threads_send_what_processes_do() -> None:
    """The tests of many ranks are of threads."""
    found = on_threads(3, lambda carrier: [fed(carrier, *each).means for each in CARRIED])
    for processes, threads in zip(fed_on(3), found, strict=True):
        for one, other in zip(processes, threads, strict=True):
            assert all(torch.equal(*each) for each in zip(one.means, other, strict=True))


def means_of(compression: str, ranks: int, given: Callable[[int], Tensor]) -> list[Tensor]:
    """One message, of what each rank is given."""

    def body(carrier: Carrier) -> Tensor:
        own = given(carrier.index)
        mean = torch.empty_like(own)
        over = make_wire(compression, WireParts(len(own), own), carrier, "part")
        over.launch(own, 0).mean(mean)
        return mean

    return on_threads(ranks, body)


@pytest.mark.parametrize("ranks", [2, 5, 24])
@pytest.mark.parametrize("size", [3.0e38, 7e4, 1e-30])
@pytest.mark.parametrize("compression", LOSSY)
def test_nothing_overflows_or_vanishes_among_many(
    compression: str, size: float, ranks: int
) -> None:
    """Halves end at 65504, and at 6e-8. A sum of float32 has to hold the sum of all."""
    each = size / ranks if size > 1e38 else size
    given = torch.full((BLOCK + 1,), each)
    # Of integers all are the largest of their block, up to the last bits of a sum.
    tolerance = 2.0**-11 if compression == "fp16" else 1e-6
    for mean in means_of(compression, ranks, lambda rank: given):
        assert (mean / each - 1).abs().max() < tolerance


@pytest.mark.parametrize("ranks", [2, 5])
def test_halves_hold_small_values_beside_large_ones(ranks: int) -> None:
    """A gradient of many classes: a few large values, and many that are 2^20 times smaller."""
    given = torch.full((1000,), 1e-3 * 2.0**-20)
    given[0] = 1e-3
    for mean in means_of("fp16", ranks, lambda rank: given):
        assert (mean / given - 1).abs().max() <= 2.0**-10


@pytest.mark.parametrize("ranks", [2, 16, 40])
@pytest.mark.parametrize("compression", REACH)
def test_a_mean_is_as_near_among_many_ranks(compression: str, ranks: int) -> None:
    """Half a step of the values and half a step of the mean: nothing grows with the ranks."""
    given = [part(rank, 0, BLOCK) for rank in range(ranks)]
    exact = torch.stack(given).mean(0)
    largest = max(float(each.abs().max()) for each in given)
    for mean in means_of(compression, ranks, lambda rank: given[rank])[:2]:
        assert (mean - exact).abs().max() <= largest / REACH[compression] * (1 + 1e-5)


def test_an_exact_wire_for_means_alone_keeps_one_buffer() -> None:
    """Half of what it takes to correct what was sent; who asks for that gets an error."""
    own, mean = torch.ones(BLOCK), torch.zeros(BLOCK)
    given = "none", WireParts(BLOCK, own), group_of_one(), "part"
    with live_bytes() as both:
        corrects = make_wire(*given, keeps_own=True)
    with live_bytes() as one:
        means_alone = make_wire(*given, keeps_own=False)
    assert (one.kept, both.kept) == (own.nbytes, 2 * own.nbytes)
    corrects.launch(own, 0).correction(mean)
    assert torch.equal(mean, torch.zeros(BLOCK))
    sent = means_alone.launch(own, 0)
    with pytest.raises(ValueError, match="gives only means"):
        sent.add_own(mean, 1.0)
    sent.mean(mean)
    assert torch.equal(mean, own)
