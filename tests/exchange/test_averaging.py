"""Nodes that pull apart stay as near as what they did since the last average landed."""

from collections import deque
from functools import partial
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.config import ExchangeConfig
from harness.exchange.averaging import Averaging, MovingPiece, Rotation
from harness.exchange.exchange import cuts_of
from harness.exchange.flat import Flat
from harness.exchange.parts import Chunk, Cut, Part
from tests.alone import group_of_one
from tests.grid import lossy_group
from tests.ranks import run_on_ranks

NODES, ELEMENTS, WINDOWS = 2, 6, 40


def pulled_apart(config: ExchangeConfig, drained: bool) -> Tensor:
    """Values after each micro-batch, [micro-batches, ELEMENTS], of a node that pulls its own way.

    Rank r moves by 1 + (-1)^r: together they go by 1 a micro-batch.
    """
    rank, peers = dist.get_rank(), lossy_group()
    parameter = nn.Parameter(torch.zeros(1, ELEMENTS, dtype=torch.float64))
    shared, sliced = Flat([parameter], 1, parameter, owner=0), Flat([], 1, parameter)
    moving = [
        MovingPiece(
            Part(shared, sliced, False, peers, Cut(number, config.pieces)), config, f"p{number}"
        )
        for number in range(config.pieces)
    ]
    exchange = Averaging(Chunk(shared, group_of_one()), [Rotation(moving)], config)
    found = []
    for _ in range(WINDOWS * config.backward_passes_per_step):
        shared.values += 1.0 + (-1.0) ** rank
        exchange.after_step()
        found.append(shared.values.clone())
    if drained:
        exchange.drain(lambda: None)
        found.append(shared.values.clone())
    return torch.stack(found)


def nodes(drained: bool = False, **config: object) -> list[Tensor]:
    settings = ExchangeConfig(kind="averaging", **config)
    return run_on_ranks(partial(pulled_apart, settings, drained), NODES)


@pytest.mark.parametrize(("passes", "pieces"), [(1, 1), (2, 1), (1, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("compression", ["none", "int8"])
@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_nodes_are_apart_by_what_has_not_landed(
    delay: int, compression: str, passes: int, pieces: int
) -> None:
    """Each moves away from the mean by 1 a micro-batch; a piece is sent every so many windows."""
    one, other = nodes(
        delay=delay, compression=compression, backward_passes_per_step=passes, pieces=pieces
    )
    from_mean = (one - other).abs() / 2
    assert from_mean.max() <= passes * (pieces + delay) + 0.1
    if delay:
        assert from_mean.max() >= passes * delay, "nothing was late"


@pytest.mark.parametrize("compression", ["none", "fp16", "int8", "int4"])
def test_drained_they_are_where_all_steps_lead(compression: str) -> None:
    for node in nodes(drained=True, delay=1, compression=compression):
        assert torch.allclose(node[-1], torch.full_like(node[-1], WINDOWS), atol=1e-9)


PACES = list(product((1, 2, 3, 9), (1, 2, 5, 8), (0, 1, 3)))
CHUNK, SLICE, TURNS = 7, 5, 11
"""Some pieces of so few elements have none."""


def steps_of(rank: int, window: int) -> Tensor:
    """What a node's elements move by in a window."""
    generator = torch.Generator().manual_seed(100 * rank + window)
    return torch.randn(CHUNK + SLICE, generator=generator, dtype=torch.float64)


def at_their_own_pace() -> list[Tensor]:
    """Of each of PACES the values after each window, and when drained: [TURNS + 1, elements]."""
    return [paced(*each) for each in PACES]


def paced(pieces: int, of_slice: int, delay: int) -> Tensor:
    rank, peers = dist.get_rank(), lossy_group()
    one, other = (nn.Parameter(torch.zeros(1, n, dtype=torch.float64)) for n in (CHUNK, SLICE))
    shared, sliced = Flat([one], 1, one, owner=0), Flat([other], 1, other)
    config = ExchangeConfig(kind="averaging", delay=delay, pieces=pieces, slice_pieces=of_slice)
    rotations = [
        Rotation(
            [
                MovingPiece(Part(shared, sliced, True, peers, cut), config, f"{name}.{cut.number}")
                for cut in cuts
            ]
        )
        for name, cuts in cuts_of(config).items()
    ]
    exchange = Averaging(Chunk(shared, group_of_one()), rotations, config)
    found = []
    for window in range(TURNS):
        moved = steps_of(rank, window)
        shared.values += moved[:CHUNK]
        sliced.values += moved[CHUNK:]
        exchange.after_step()
        found.append(torch.cat((shared.values, sliced.values)))
    exchange.drain(lambda: None)
    return torch.stack([*found, torch.cat((shared.values, sliced.values))])


def sent_in(window: int, pieces: int, of_slice: int) -> list[bool]:
    """Of each element whether it is sent in a window."""
    cut = [(number * pieces + pieces - 1) // CHUNK for number in range(CHUNK)]
    other = [(number * of_slice + of_slice - 1) // SLICE for number in range(SLICE)]
    return [window % pieces == each for each in cut] + [window % of_slice == each for each in other]


def expected(pieces: int, of_slice: int, delay: int) -> list[Tensor]:
    """The same of both nodes, element by element."""
    values = [torch.zeros(CHUNK + SLICE, dtype=torch.float64) for _ in range(NODES)]
    unsent, flight = [each.clone() for each in values], deque[tuple[int, list[Tensor]]]()
    found: list[list[Tensor]] = [[], []]

    def land(last: int) -> None:
        while flight and flight[0][0] <= last:
            sent = flight.popleft()[1]
            mean = (sent[0] + sent[1]) / 2
            for own, moved in zip(values, sent, strict=True):
                own += mean - moved

    for window in range(TURNS):
        for rank in range(NODES):
            values[rank] += steps_of(rank, window)
            unsent[rank] += steps_of(rank, window)
        land(window - max(1, delay))
        crossing = torch.tensor(sent_in(window, pieces, of_slice))
        flight.append((window, [each * crossing for each in unsent]))
        unsent = [each * ~crossing for each in unsent]
        land(window - delay)
        for rank in range(NODES):
            found[rank].append(values[rank].clone())
    mean = sum(steps_of(rank, window) for rank in range(NODES) for window in range(TURNS)) / NODES
    return [torch.stack([*each, mean]) for each in found]


def test_chunk_and_slice_each_at_its_own_pace_send_every_step_once() -> None:
    nodes_found = run_on_ranks(at_their_own_pace, NODES)
    for number, pace in enumerate(PACES):
        for one, wanted in zip(nodes_found, expected(*pace), strict=True):
            assert torch.allclose(one[number], wanted, atol=1e-12), pace


def test_momentum_outside_goes_on_where_the_mean_went() -> None:
    """Nesterov's steady state is 1 / (1 - momentum) times as fast."""
    values = nodes(outer_momentum=0.5, outer_lr=1.0)[0][:, 0]
    assert values[-1] - values[-2] == pytest.approx(2.0, rel=1e-6)


def test_an_outer_rate_of_one_without_momentum_changes_nothing() -> None:
    plain, outer = nodes(delay=1), nodes(delay=1, outer_lr=1.0 - 1e-12)
    for one, other in zip(plain, outer, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def distances() -> list[float]:
    """Squares from the mean: now; of before the drain, told after it; and after it."""
    rank, peers = dist.get_rank(), lossy_group()
    parameter = nn.Parameter(torch.full((1, ELEMENTS), 1.0 + rank, dtype=torch.float64))
    shared, sliced = Flat([parameter], 1, parameter, owner=0), Flat([], 1, parameter)
    config = ExchangeConfig(kind="averaging", delay=1)
    moving = MovingPiece(Part(shared, sliced, False, peers), config, "p")
    exchange = Averaging(Chunk(shared, group_of_one()), [Rotation([moving])], config)
    found = []
    for told in (exchange.at_mean, None, exchange.at_mean):
        if told is None:
            later = exchange.divergence_before_drain()
            exchange.drain(lambda: None)
            squares = later()
        else:
            with told() as squares:
                assert squares is not None
        found.append(float(squares[0]))
    return found


def test_how_far_nodes_are_apart_is_told_of_before_the_drain() -> None:
    for found in run_on_ranks(distances, NODES):
        assert found == [ELEMENTS * 0.25, ELEMENTS * 0.25, 0.0]
