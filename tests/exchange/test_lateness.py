"""What exchanges say of their own lateness, by hand-made gradients and movements."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.config import ExchangeConfig
from harness.exchange.averaging import Averaging, MovingPiece, Rotation
from harness.exchange.delayed import Delayed
from harness.exchange.exchange import cuts_of
from harness.exchange.flat import Flat
from harness.exchange.lateness import Lateness, LatenessMeter, cosine
from harness.exchange.parts import Chunk, Cut, Part
from harness.measure.phase import Phase
from harness.parallel.group import Group
from tests.alone import group_of_one, meters, world_of_one
from tests.ranks import run_on_ranks


def late(gradients: Tensor, delay: int, waiting: int = 0, every: int = 1) -> list[Lateness]:
    """After each window of [windows, elements]."""
    parameter = nn.Parameter(torch.zeros(1, gradients.shape[1], dtype=torch.float64))
    shared, sliced = Flat([parameter], 1, parameter), Flat([], 1, parameter)
    world = world_of_one()
    config = ExchangeConfig(kind="delayed", delay=delay, synchronous_windows=waiting)
    part = Part(shared, sliced, False, world.peers)
    meter = LatenessMeter(every)
    exchange = Delayed(Chunk(shared, world.node), part, config, meter=meter)
    found = []
    for gradient in gradients:
        shared.grads.copy_(gradient)
        exchange.gradients_ready(last=True)
        found.append(exchange.lateness())
    exchange.drain(lambda: None)
    return [*found, exchange.lateness()]


def ages(found: list[Lateness]) -> list[tuple[float, int]]:
    return [(each.windows, each.landings) for each in found]


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_gradient_is_as_old_as_the_delay(delay: int) -> None:
    found = ages(late(torch.ones(5, 3), delay))
    assert found[:-1] == [(0.0, 0)] * delay + [(float(delay), 1)] * (5 - delay)


def test_what_waits_at_first_is_on_time() -> None:
    found = ages(late(torch.ones(5, 3), delay=1, waiting=2))
    assert found[:-1] == [(0.0, 1), (0.0, 1), (0.0, 0), (1.0, 1), (1.0, 1)]


def test_the_cosine_is_between_what_was_used_and_what_was_made_then() -> None:
    """Window 1 steps with (3, 4) where (0, 2) is its own, which lands in window 2."""
    gradients = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0], [5.0, 0.0]])
    found = [each.products for each in late(gradients, delay=1)]
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert found[2].tolist() == [8.0, 25.0, 4.0]
    assert cosine(found[2]) == pytest.approx(0.8)
    assert found[3] is not None
    assert cosine(found[3]) == 0.0
    assert found[4] is not None, "what is drained is compared too"
    assert cosine(found[4]) == pytest.approx(-1.0)


def test_only_sampled_windows_are_compared_and_none_where_nothing_is_late() -> None:
    gradients = torch.ones(9, 2)
    sampled = [each.products is not None for each in late(gradients, delay=2, every=4)]
    assert sampled == [False] * 6 + [True, False, False, True]
    for delay, every in ((0, 1), (1, 0)):
        assert all(each.products is None for each in late(gradients, delay, every=every))


def test_parallel_and_opposed() -> None:
    assert cosine(torch.tensor([2.0, 4.0, 1.0])) == 1.0
    assert cosine(torch.tensor([0.0, 0.0, 1.0])) == 0.0


CASES = ((0, 1), (1, 1), (2, 1), (1, 2), (2, 2))


def moving() -> dict[tuple[int, int], list[Lateness]]:
    """By (delay, pieces), after each of six windows of a node that pulls its own way.

    Rank 0 moves by 2, rank 1 by 0: together they go by 1 a window.
    """
    return {case: moved(*case) for case in CASES}


def moved(delay: int, pieces: int) -> list[Lateness]:
    rank = dist.get_rank()
    peers = Group((0, 1), rank, 2, dist.group.WORLD, meters(), Phase.EXCHANGE_WAIT)
    parameter = nn.Parameter(torch.zeros(1, 4, dtype=torch.float64))
    shared, sliced = Flat([parameter], 1, parameter, owner=0), Flat([], 1, parameter)
    config = ExchangeConfig(kind="averaging", delay=delay, pieces=pieces)
    meter = LatenessMeter(every=1)
    moving = [
        MovingPiece(Part(shared, sliced, False, peers, Cut(n, pieces)), config, f"p{n}", meter)
        for n in range(pieces)
    ]
    exchange = Averaging(Chunk(shared, group_of_one()), [Rotation(moving)], config, meter=meter)
    found = []
    for _ in range(6):
        shared.values += 1.0 + (-1.0) ** rank
        exchange.after_step()
        found.append(exchange.lateness())
    return found


def paced() -> tuple[list[Lateness], list[Lateness]]:
    """Of six elements whole and of two in two pieces: one window late, and in time."""
    return moved_apart(1), moved_apart(0)


def moved_apart(delay: int) -> list[Lateness]:
    """After each of six windows in which all elements move by 1 on both ranks."""
    rank = dist.get_rank()
    peers = Group((0, 1), rank, 2, dist.group.WORLD, meters(), Phase.EXCHANGE_WAIT)
    parameters = [nn.Parameter(torch.zeros(1, n, dtype=torch.float64)) for n in (6, 2)]
    shared, sliced = (
        Flat(parameters[:1], 1, parameters[0], owner=0),
        Flat(parameters[1:], 1, parameters[1]),
    )
    config = ExchangeConfig(kind="averaging", delay=delay, pieces=1, slice_pieces=2)
    meter = LatenessMeter(every=1)
    rotations = [
        Rotation(
            [
                MovingPiece(
                    Part(shared, sliced, True, peers, cut), config, f"{name}.{cut.number}", meter
                )
                for cut in cuts
            ]
        )
        for name, cuts in cuts_of(config).items()
    ]
    exchange = Averaging(Chunk(shared, group_of_one()), rotations, config, meter=meter)
    found = []
    for _ in range(6):
        shared.values += 1.0
        sliced.values += 1.0
        exchange.after_step()
        found.append(exchange.lateness())
    return found


def test_parts_at_their_own_pace_count_by_their_elements() -> None:
    """Of 8 elements 6 are as old as the delay, 2 half a window older."""
    for late, in_time in run_on_ranks(paced, 2):
        assert ages(late) == [(0.0, 0.0), (1.0, 1.0)] + [(1.125, 1.0)] * 4
        assert ages(in_time) == [(0.0, 1.0)] + [(0.125, 1.0)] * 5
        assert late[-1].products is not None
        assert cosine(late[-1].products) == pytest.approx(1.0)


def test_a_movement_is_as_old_as_its_steps_are_on_the_mean() -> None:
    """In pieces, half of what a piece moved is a window older than it was when sent."""
    one, other = run_on_ranks(moving, 2)
    steady = {case: ages(found)[-1] for case, found in one.items()}
    assert steady == {
        (0, 1): (0.0, 1),
        (1, 1): (1.0, 1),
        (2, 1): (2.0, 1),
        (1, 2): (1.5, 1),
        (2, 2): (2.5, 1),
    }
    assert {case: ages(found) for case, found in other.items()} == {
        case: ages(found) for case, found in one.items()
    }
    assert ages(one[1, 2]) == [(0.0, 0), (1.0, 1)] + [(1.5, 1)] * 4
    for case in CASES:
        products = [each[case][-1].products for each in (one, other)]
        if case == (0, 1):
            assert products == [None, None]
            continue
        # (1, 1) with (2, 0), as many elements each.
        assert cosine(torch.stack(products).sum(0)) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 10])
def test_every_piece_is_sampled_equally_often(pieces: int) -> None:
    """Also where their number divides the windows between samples."""
    meter = LatenessMeter(every=10)
    windows = range(12 * meter.between(pieces))
    times = [sum(meter.samples(n, pieces) for n in windows[p::pieces]) for p in range(pieces)]
    assert times == [12] * pieces
