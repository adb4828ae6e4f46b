"""Chooses the number of pieces of an averaged model from times measured in this run."""

import statistics
import sys
from dataclasses import dataclass

from torch import Tensor

from harness.config import Config, ExchangeConfig
from harness.data.images import Dataset
from harness.exchange.carriers import carrier_of
from harness.exchange.compression import WireParts, make_wire
from harness.exchange.pieces import PieceTimes
from harness.measure.clock import now
from harness.parallel.world import World
from harness.train.checkpoint.meta import passed_alike
from harness.train.trial import Trial, slowest

WARM_WINDOWS, TIMED_WINDOWS, TRANSFERS = 4, 6, 3


def choose_pieces(config: Config, dataset: Dataset, world: World) -> Config:
    """The config with `exchange.pieces` chosen, if `exchange.max_pieces` asks for that.

    A resumed run on the same number of ranks keeps the earlier choice; another number of pieces
    would change its results. All ranks decide from the same numbers. Collective over the world.
    """
    exchange = config.exchange
    if not exchange.max_pieces:
        return config
    kept = passed_alike(config, world.topology.world_size)
    if kept and kept.pieces <= exchange.max_pieces:
        return config.exchanging(pieces=kept.pieces)
    times = measured(config, dataset, world)
    pieces = times.fewest_pieces(exchange.delay, exchange.max_pieces)
    if world.is_first:
        print(
            f"exchange.pieces={pieces}: computing a window takes {times.compute_ms:.0f} ms, "
            f"{_sending(times, exchange.slice_pieces)}",
            file=sys.stderr,
            flush=True,
        )
    return config.exchanging(pieces=pieces)


def measured(config: Config, dataset: Dataset, world: World) -> PieceTimes:
    """Times a few windows in which nodes do not communicate, and a few transfers.

    Collective over the world.
    """
    trial = Trial(config.with_nodes_apart(), dataset, world)
    trial.window_ms(WARM_WINDOWS)
    times = [trial.window_ms(TIMED_WINDOWS), *_transfers_ms(config.exchange, trial, world)]
    trial.close()
    return PieceTimes(*slowest(times, world))


def _transfers_ms(exchange: ExchangeConfig, trial: Trial, world: World) -> list[float]:
    """Of what is to be cut, and of what each window sends beside it."""
    shared, sliced = trial.step.model.flats
    chunk, of_slice = shared.owned.size, len(sliced.values)
    if (pace := exchange.slice_pieces) is None:
        return [timed_transfer(exchange, trial, world).ms, 0.0]
    sizes = chunk, -(-of_slice // pace)
    return [_timed(exchange, each, shared.values, world).ms for each in sizes]


def _sending(times: PieceTimes, slice_pieces: int | None) -> str:
    if slice_pieces is None:
        return f"sending a rank's whole part takes {times.transfer_ms:.0f} ms"
    return (
        f"sending a rank's chunk takes {times.transfer_ms:.0f} ms, and the piece of its slice that "
        f"each window sends beside it {times.beside_ms:.0f} ms"
    )


def timed_transfer(exchange: ExchangeConfig, trial: Trial, world: World) -> "Transfer":
    """The times of sending what crosses of this rank's part to its peers and waiting for the mean.
    Collective over the world."""
    own = trial.step.model.of_rank
    elements = own.shared.owned.size + (len(own.sliced.values) if own.slice_crosses else 0)
    return _timed(exchange, elements, own.shared.values, world)


@dataclass(frozen=True)
class Transfer:
    """Medians, milliseconds."""

    ms: float
    """From the launch until the mean is there."""
    encode_ms: float
    """The launch alone, in which the training thread writes what is sent."""


def _timed(exchange: ExchangeConfig, elements: int, like: Tensor, world: World) -> Transfer:
    part = like.new_zeros(elements)
    parts = WireParts(elements, part)
    name = f"pace transfer {exchange.compression} {elements}"
    wire = make_wire(exchange.compression, parts, carrier_of(exchange, world), name)
    times, launches = [], []
    for _ in range(TRANSFERS):
        started = now(world.device)
        sent = wire.launch(part, 0)
        launched = now(world.device)
        sent.mean(into=part)
        times.append((now(world.device) - started) * 1e3)
        launches.append((launched - started) * 1e3)
    return Transfer(statistics.median(times), statistics.median(launches))
