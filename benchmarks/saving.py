"""How long a checkpoint holds up training: written by a thread, and waited for."""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import horovod.torch as hvd
import torch

from benchmarks.task import config, dataset
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import World, open_links
from harness.train.ledger import NullJournal
from harness.train.step import make_step
from harness.train.training import Training
from harness.train.trial import ENDLESS

VARIANTS = ("no checkpoint", "a thread writes", "training waits")


class Saver:
    """A training that saves when it is asked to."""

    def __init__(self, world: World, classes: int, folder: Path) -> None:
        settings = config(
            "node",
            classes,
            train={"steps": ENDLESS, "untimed_windows": ENDLESS, "checkpoint_every": ENDLESS},
            exchange={"kind": "averaging", "delay": 1},
        )
        self._step = make_step(settings, dataset(classes), world)
        self._training = Training(self._step, folder)
        self._batches, self._windows = self._step.batches(), itertools.count()
        self._journal = NullJournal()

    def save(self) -> None:
        """As training does at a window's end, once nothing is in flight."""
        meta = self._training._meta(1)
        self._training._saves.save(meta, self._step.exchange.carried(), self._journal)

    def save_and_wait(self) -> None:
        self.save()
        self.settle()

    def settle(self) -> None:
        self._training._saves.settle(self._journal)

    def windows(self, count: int) -> None:
        for window in itertools.islice(self._windows, count):
            self._step.window(window, self._batches, self._journal)


def measure(saver: Saver, rounds: int, windows: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds that training stood still, that it took with the windows after it, and until
    the checkpoint was on the disk."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"still": [], "whole": [], "written": []} for name in VARIANTS
    }
    begin: dict[str, Callable[[], None]] = {
        "no checkpoint": lambda: None,
        "a thread writes": saver.save,
        "training waits": saver.save_and_wait,
    }
    for number in range(1 + rounds):
        for name in VARIANTS:
            hvd.barrier()
            started = time.perf_counter()
            begin[name]()
            stood_still = time.perf_counter() - started
            saver.windows(windows)
            hvd.barrier()
            whole = time.perf_counter() - started
            saver.settle()
            written = time.perf_counter() - started
            if number:  # the first round warms up
                found[name]["still"].append(stood_still * 1e3)
                found[name]["whole"].append(whole * 1e3)
                found[name]["written"].append(written * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    meters = Meters(clock_for(device), Traffic())
    with (
        open_links(topology, device, meters) as links,
        tempfile.TemporaryDirectory(dir=chosen.folder) as name,
    ):
        folder = Path(links.world("node").broadcast(name, "folder"))
        saver = Saver(links.world("node"), chosen.classes, folder)
        found = measure(saver, chosen.rounds, chosen.windows)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if topology.rank == 0:
            print(json.dumps({"bytes": size, "ms": found}), flush=True)


if __name__ == "__main__":
    main()
