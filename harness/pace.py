"""Picks into how many pieces an averaged model goes, from measured times of this very run."""

import statistics
import sys
import time
from pathlib import Path

import torch

from harness.checkpoint.meta import read_meta
from harness.config import Config, TraceConfig
from harness.data.images import Dataset
from harness.exchange.compression import make_wire
from harness.exchange.pieces import Pace
from harness.ledger import Unheard
from harness.parallel.world import World
from harness.trainer import Trainer

ENDLESS = 1_000_000
PROBE = {
    "steps": ENDLESS,
    "epochs": None,
    "resume": None,
    "log_every": ENDLESS,
    "untimed_windows": ENDLESS,
}
"""In place of the run's own `train`: nothing is logged, and no run's clock is started."""
WARM_WINDOWS, TIMED_WINDOWS, TRANSFERS = 4, 6, 3


def paced(config: Config, dataset: Dataset, world: World, folder: Path) -> Config:
    """The config with `exchange.pieces` picked, where `exchange.most_pieces` asks for that.

    A run that goes on with as many ranks keeps what was picked, or it would be another run. All
    ranks decide from the same numbers. Collective over the world.
    """
    exchange = config.exchange
    if not exchange.most_pieces:
        return config
    if kept := _kept_pieces(config, world.topology.world_size):
        return _in_pieces(config, kept)
    pace = measured(config, dataset, world, folder)
    pieces = pace.pieces(exchange.delay, exchange.most_pieces)
    if world.is_first:
        print(
            f"exchange.pieces={pieces}: a window takes {pace.compute_ms:.0f} ms, the "
            f"whole of a rank's part {pace.transfer_ms:.0f} ms to send",
            file=sys.stderr,
            flush=True,
        )
    return _in_pieces(config, pieces)


def _kept_pieces(config: Config, ranks: int) -> int:
    """Those of the checkpoint that the run goes on from; 0: they are to be picked."""
    if config.train.resume is None:
        return 0
    passed = read_meta(Path(config.train.resume), config.data.num_classes).passed
    fits = passed and passed.ranks == ranks and passed.pieces <= config.exchange.most_pieces
    return passed.pieces if passed and fits else 0


def _in_pieces(config: Config, pieces: int) -> Config:
    picked = config.exchange.model_copy(update={"pieces": pieces})
    return config.model_copy(update={"exchange": picked})


def measured(config: Config, dataset: Dataset, world: World, folder: Path) -> Pace:
    """Some windows of nodes that do not meet, and some transfers. Collective over the world."""
    alone = config.exchange.model_copy(update={"kind": "isolated", "pieces": 1, "most_pieces": 0})
    short = config.train.model_copy(update=PROBE)
    parts = {"exchange": alone, "train": short, "trace": TraceConfig()}
    probe = Trainer(config.model_copy(update=parts), dataset, world, folder)
    times = [_compute_ms(probe, world), _transfer_ms(config, probe, world)]
    rows = world.launch_gather(torch.tensor(times, dtype=torch.float64), "pace").wait()
    compute_ms, transfer_ms = rows.max(dim=0).values.tolist()
    return Pace(compute_ms, transfer_ms)


def _compute_ms(probe: Trainer, world: World) -> float:
    batches = probe.batches()
    for window in range(WARM_WINDOWS):
        probe.run_window(window, batches, Unheard())
    started = _now(world.device)
    for window in range(WARM_WINDOWS, WARM_WINDOWS + TIMED_WINDOWS):
        probe.run_window(window, batches, Unheard())
    batches.close()
    return (_now(world.device) - started) / TIMED_WINDOWS * 1e3


def _transfer_ms(config: Config, probe: Trainer, world: World) -> float:
    part = torch.zeros_like(
        torch.cat((probe.shared.grads[: probe.shared.owned.size], probe.sliced.grads))
    )
    wire = make_wire(config.exchange.compression, len(part), 1, part, world.peers, "pace transfer")
    times = []
    for _ in range(TRANSFERS):
        started = _now(world.device)
        wire.launch(part, 0).mean(into=part)
        times.append((_now(world.device) - started) * 1e3)
    return statistics.median(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
