"""Wires on real Gloo ranks: what they send, what they keep, and what they say of it."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import UserError
from harness.exchange.compression import check_compression, make_wire, sent_bytes
from harness.exchange.lanes import BLOCK, largest
from harness.exchange.wire import Feedback, Wire
from harness.measure.phase import Phase
from harness.parallel.group import Group
from tests.alone import meters
from tests.ranks import run_on_ranks

LOSSY = ("fp16", "int8", "int4")
ELEMENTS = 2 * BLOCK + 77
"""Two whole blocks and a piece of one."""
RANKS = 3


def in_group(body: Callable[..., object], *args: object) -> object:
    """`body` with a group of all ranks, each of them a node."""
    ranks, rank = tuple(range(dist.get_world_size())), dist.get_rank()
    group = Group(ranks, rank, len(ranks), dist.group.WORLD, meters(), Phase.EXCHANGE_WAIT)
    return body(group, *args)


def on_ranks(body: Callable[..., object], *args: object) -> list[object]:
    return run_on_ranks(partial(in_group, body), RANKS, *args)


def wire(group: Group, compression: str, slots: int = 1) -> Wire:
    like = torch.zeros(0, dtype=torch.float64)
    return make_wire(compression, ELEMENTS, slots, like, group, "part")


def part(rank: int, number: int) -> Tensor:
    """Values whose size differs by block and grows with `number`."""
    generator = torch.Generator().manual_seed(100 * number + rank)
    values = torch.randn(ELEMENTS, generator=generator, dtype=torch.float64) * (1 + number)
    values[BLOCK : 2 * BLOCK] *= 1e-4
    return values


def own_and_mean(group: Group, compression: str, number: int) -> tuple[Tensor, Tensor]:
    over = wire(group, compression)
    sent = over.launch(part(group.index, number), 0)
    own, mean = torch.zeros(2, ELEMENTS, dtype=torch.float64)
    sent.add_own(own, 1.0)
    sent.mean(mean)
    return own, mean


@pytest.mark.parametrize("compression", ["none", *LOSSY])
def test_the_mean_is_that_of_what_each_says_it_sent(compression: str) -> None:
    found = on_ranks(own_and_mean, compression, 0)
    mean = sum(own for own, _ in found) / RANKS
    tolerance = 2e-3 if compression == "fp16" else 1e-12  # halves are added in halves
    for _, received in found:
        assert torch.equal(received, found[0][1])
        assert (received - mean).abs().max() < tolerance


@pytest.mark.parametrize(("compression", "bits"), [("int8", 8), ("int4", 4)])
def test_each_block_is_rounded_to_its_own_scale(compression: str, bits: int) -> None:
    """To the nearest of 2L + 1 steps; a scale is at most a quarter octave above the least."""
    for rank, (own, _) in enumerate(on_ranks(own_and_mean, compression, 0)):
        for block in range(2):
            place = slice(block * BLOCK, (block + 1) * BLOCK)
            most = max(float(part(other, 0)[place].abs().max()) for other in range(RANKS))
            step = most / largest(bits, RANKS) * 2**0.25
            assert (own[place] - part(rank, 0)[place]).abs().max() <= step / 2
            assert len(own[place].unique()) <= 2 * largest(bits, RANKS) + 1


def corrected(group: Group, compression: str) -> tuple[Tensor, Tensor]:
    over, other = wire(group, compression), wire(group, compression)
    own = torch.zeros(ELEMENTS, dtype=torch.float64)
    mean, correction = torch.empty(2, ELEMENTS, dtype=torch.float64)
    sent, again = (each.launch(part(group.index, 0), 0) for each in (over, other))
    sent.add_own(own, 1.0)
    sent.mean(mean)
    again.correction(correction)
    return mean - own, correction


@pytest.mark.parametrize("compression", ["none", *LOSSY])
def test_a_correction_is_the_mean_less_what_was_sent(compression: str) -> None:
    for expected, correction in on_ranks(corrected, compression):
        assert (expected - correction).abs().max() < 1e-12
        assert correction.abs().max() > 0.1


def fed_back(group: Group, compression: str, times: int, delay: int) -> tuple[Tensor, Tensor]:
    """Sums of what was given and of what landed, the last given being zeros."""
    over = Feedback(
        wire(group, compression, slots=delay + 1), ELEMENTS, torch.zeros(1, dtype=torch.float64)
    )
    given, landed, mean = torch.zeros(3, ELEMENTS, dtype=torch.float64)
    under_way = []
    for number in range(times):
        own = part(group.index, number % 4) * (number < times // 2)
        given += own
        under_way.append(over.launch(own, number % (delay + 1)))
        if len(under_way) > delay:
            under_way.pop(0).mean(mean)
            landed += mean
    while under_way:
        under_way.pop(0).mean(mean)
        landed += mean
    return given, landed


@pytest.mark.parametrize("delay", [0, 1, 2])
@pytest.mark.parametrize("compression", LOSSY)
def test_with_feedback_nothing_is_lost(compression: str, delay: int) -> None:
    """Also where values outgrow the scales of some messages ago. (Halves are added in halves.)"""
    found = on_ranks(fed_back, compression, 60, delay)
    mean = sum(given for given, _ in found) / RANKS
    for _, landed in found:
        assert mean.abs().max() > 10
        assert (landed - mean).abs().max() < (0.1 if compression == "fp16" else 0.02)


def out_of_range(group: Group) -> Tensor:
    over = Feedback(wire(group, "fp16"), ELEMENTS, torch.zeros(1, dtype=torch.float64))
    landed, mean = torch.zeros(2, ELEMENTS, dtype=torch.float64)
    for number in range(12):
        over.launch(torch.full((ELEMENTS,), 1e5 if number == 0 else 1e-9).double(), 0).mean(mean)
        assert mean.isfinite().all()
        landed += mean
    return landed


def test_half_precision_sends_what_it_cannot_hold_in_several_messages() -> None:
    for landed in on_ranks(out_of_range):
        assert (landed - 1e5).abs().max() < 64  # a sum of halves of this size is rounded by 16


def with_nan(group: Group) -> bool:
    over, mean = wire(group, "fp16"), torch.zeros(ELEMENTS, dtype=torch.float64)
    bad = torch.full((ELEMENTS,), math.nan if group.index == 0 else 1.0, dtype=torch.float64)
    over.launch(bad, 0).mean(mean)
    return bool(mean.isnan().all())


def test_half_precision_does_not_hide_nan() -> None:
    assert on_ranks(with_nan) == [True] * RANKS


def counted(group: Group, compression: str) -> tuple[float, float]:
    counted_by = meters()
    ranks = tuple(range(group.size))
    group = Group(ranks, group.index, len(ranks), dist.group.WORLD, counted_by, Phase.EXCHANGE_WAIT)
    over, mean = wire(group, compression), torch.empty(ELEMENTS, dtype=torch.float64)
    over.launch(part(group.index, 0), 0).mean(mean)
    first = counted_by.traffic.total.cross_node
    over.launch(part(group.index, 0), 0).mean(mean)
    return first, counted_by.traffic.total.cross_node - first


@pytest.mark.parametrize("compression", ["none", *LOSSY])
def test_bytes_are_those_of_the_formula(compression: str) -> None:
    expected = 2 * (RANKS - 1) / RANKS * sent_bytes(compression, ELEMENTS, 8, RANKS)
    for first, second in on_ranks(counted, compression):
        assert second == pytest.approx(expected)
        assert first >= second, "the first message of integers is preceded by its scales"


def test_bytes_of_an_element() -> None:
    many = 1000 * BLOCK
    found = [sent_bytes(compression, many, 4, 2) / many for compression in ("none", *LOSSY)]
    assert found == pytest.approx([4, 2, 1, 0.5], rel=5e-3)
    assert sent_bytes("int4", many, 4, 1) == 4 * many, "alone there is nobody to send less to"


@pytest.mark.parametrize(("compression", "most"), [("int8", 127), ("int4", 7)])
def test_too_many_nodes_for_the_bits_are_told(compression: str, most: int) -> None:
    check_compression(compression, most)
    with pytest.raises(UserError, match=f"at most {most} nodes, found {most + 1}"):
        check_compression(compression, most + 1)
