"""What wires owe when ranks agree: together as much as before, each the same."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from harness.exchange.codecs import BLOCK
from harness.exchange.compression import WireParts, make_wire
from harness.exchange.feedback import Feedback
from harness.exchange.flat import Flat
from harness.exchange.parts import Cut, Part
from tests.alone import group_of_one
from tests.grid import lossy_group
from tests.ranks import run_on_ranks

ELEMENTS, WINDOWS = BLOCK + 476, 3
WIRES = ("fp16", "int8", "int4")
RANKS = (2, 3)
"""Of three ranks one has nothing to add up."""


@dataclass(frozen=True)
class Delivered:
    """Over one wire, in windows before and behind an agreement."""

    given: Tensor
    came: Tensor
    before: Tensor
    """What this rank had not sent."""
    lacking: Tensor
    """What had been given by then, less what had come."""
    agreed: Tensor
    """What this rank owed behind it."""
    unsent: Tensor
    """At the end."""
    kept: Tensor
    """What its wire has at the end still to add to means, times the number of ranks."""
    kept_then: Tensor
    """Asked once more."""


def over(compression: str) -> Delivered:
    group = lossy_group()
    generator = torch.Generator().manual_seed(group.index)
    like = torch.zeros(ELEMENTS, dtype=torch.float64)
    wire = make_wire(compression, WireParts(ELEMENTS, like), group, "w")
    fed = Feedback(wire, ELEMENTS, like)
    assert fed.unsent is not None
    given, came, mean, kept, then = like.new_zeros(5, ELEMENTS)
    before = lacking = agreed = fed.unsent
    for window in range(2 * WINDOWS):
        part = torch.randn(ELEMENTS, generator=generator, dtype=torch.float64) * 10.0**window
        given += part
        fed.launch(part, 0).mean(into=mean)
        came += mean
        if window == WINDOWS - 1:
            before, lacking = fed.unsent.clone(), given - came
            fed.agree(group)
            agreed = fed.unsent.clone()
    wire.settle(kept)
    wire.settle(then)
    return Delivered(given, came, before, lacking, agreed, fed.unsent, kept, then)


def over_all() -> list[Delivered]:
    return [over(compression) for compression in WIRES]


@cache
def found(ranks: int) -> list[list[Delivered]]:
    return run_on_ranks(over_all, ranks)


@pytest.fixture(params=RANKS)
def ranks(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=WIRES)
def delivered(request: pytest.FixtureRequest, ranks: int) -> list[Delivered]:
    """By rank."""
    return [each[WIRES.index(request.param)] for each in found(ranks)]


def mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(0)


def test_all_owe_the_same_when_they_have_agreed(delivered: list[Delivered]) -> None:
    first = delivered[0]
    for each in delivered:
        assert torch.equal(each.agreed, first.agreed)
        assert torch.equal(each.came, first.came)
    assert not torch.equal(first.before, delivered[1].before)


def test_what_they_owe_is_what_all_did_and_what_wires_had_kept(delivered: list[Delivered]) -> None:
    """So it is all that was given and has not come."""
    lacking = mean([each.lacking for each in delivered])
    assert (delivered[0].agreed - lacking).abs().max() < 1e-12
    unsent = mean([each.before for each in delivered])
    kept = (unsent - lacking).abs().max()
    assert kept < 1e-12 if len(delivered) == 2 else kept > 1e-3, "two ranks round once"


def test_nothing_is_lost_or_made_up(delivered: list[Delivered]) -> None:
    """What came, what is unsent and what is kept make up what was given."""
    found = [each.came + each.unsent + each.kept for each in delivered]
    given = mean([each.given for each in delivered])
    error = (mean(found) - given).abs().max() / given.abs().max()
    assert error < 1e-12
    without = (mean([each.came + each.unsent for each in delivered]) - given).abs().max()
    needed = without > 1e-6 * given.abs().max()
    assert needed == (len(delivered) > 2), "what wires keep counts, where they keep something"


def test_what_was_settled_is_forgotten(delivered: list[Delivered]) -> None:
    assert not any(each.kept_then.any() for each in delivered)


def test_each_keeps_of_its_own_piece_alone(delivered: list[Delivered]) -> None:
    """So together they count every element once. Between two nothing is kept."""
    blocks = [list(each.kept.split(BLOCK)) for each in delivered]
    holders = [[rank for rank, own in enumerate(blocks) if own[b].any()] for b in range(2)]
    assert holders == ([[], []] if len(delivered) == 2 else [[0], [1]])


def test_strips_say_which_elements_are_a_piece_s() -> None:
    """Two pieces of a chunk (elements 6 .. 11 of 12) and of a slice."""
    shared = Flat([nn.Parameter(torch.zeros(3, 4))], 2, torch.zeros(1), owner=1)
    sliced = Flat([nn.Parameter(torch.zeros(5))], 1, torch.zeros(1))
    found = []
    for number in range(2):
        part = Part(shared, sliced, True, group_of_one(), Cut(number, 2))
        found += part.strips("key", torch.arange(float(part.elements)))
    assert [(each.flat is shared, each.start, each.stop) for each in found] == [
        (True, 6, 9),
        (False, 0, 2),
        (True, 9, 12),
        (False, 2, 5),
    ]
    assert [each.tensor.tolist() for each in found] == [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4, 5]]
