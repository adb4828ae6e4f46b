"""What wires owe when ranks agree: together as much as before, each the same."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.exchange.carried import agree
from harness.exchange.compression import make_wire
from harness.exchange.flat import Flat
from harness.exchange.parts import Part
from harness.exchange.wire import Feedback
from harness.measure.phase import Phase
from harness.parallel.group import Group
from tests.alone import group_of_one, meters
from tests.ranks import run_on_ranks

ELEMENTS, WINDOWS = 1500, 3
WIRES = ("fp16", "int8", "int4")


def delivered() -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """By wire: what was given, what came, what is owed before and behind the agreement."""
    group = Group((0, 1), dist.get_rank(), 2, dist.group.WORLD, meters(), Phase.EXCHANGE_WAIT)
    return {compression: over(compression, group) for compression in WIRES}


def over(compression: str, group: Group) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(group.index)
    like = torch.zeros(ELEMENTS, dtype=torch.float64)
    wire = Feedback(make_wire(compression, ELEMENTS, 1, like, group, "w"), ELEMENTS, like)
    given, came, mean = torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like)
    assert wire.unsent is not None
    before = wire.unsent.clone()
    for window in range(2 * WINDOWS):
        part = torch.randn(ELEMENTS, generator=generator, dtype=torch.float64) * 10.0**window
        given += part
        wire.launch(part, 0).mean(into=mean)
        came += mean
        if window == WINDOWS - 1:
            before = wire.unsent.clone()
            agree([wire.unsent], group)
            wire.forget()
            behind = wire.unsent.clone()
    return given, came, before, torch.stack((behind, wire.unsent))


def test_nothing_that_is_owed_is_lost_or_made_up() -> None:
    one, other = run_on_ranks(delivered, 2)
    for compression in WIRES:
        (given, came, before, owed), (given_2, came_2, before_2, owed_2) = (
            one[compression],
            other[compression],
        )
        assert torch.equal(came, came_2)
        assert torch.equal(owed[0], owed_2[0])
        assert not torch.equal(before, before_2)
        assert torch.equal(owed[0], (before + before_2) / 2)
        # fp16's sum is rounded once more, which is not made good.
        whole = given + given_2
        error = (2 * came + owed[1] + owed_2[1] - whole).abs().max() / whole.abs().max()
        assert error < (1e-3 if compression == "fp16" else 1e-12)
        assert owed[1].abs().max() > 0


def test_strips_say_which_elements_are_a_piece_s() -> None:
    """Two pieces of a chunk (elements 6 .. 11 of 12) and of a slice."""
    shared = Flat([nn.Parameter(torch.zeros(3, 4))], 2, torch.zeros(1), owner=1)
    sliced = Flat([nn.Parameter(torch.zeros(5))], 1, torch.zeros(1))
    found = []
    for number in range(2):
        part = Part(shared, sliced, True, group_of_one(), number, pieces=2)
        found += part.strips("key", torch.arange(float(part.elements)))
    assert [(each.flat is shared, each.start, each.stop) for each in found] == [
        (True, 6, 9),
        (False, 0, 2),
        (True, 9, 12),
        (False, 2, 5),
    ]
    assert [each.tensor.tolist() for each in found] == [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4, 5]]
