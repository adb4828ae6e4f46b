"""How long a checkpoint holds up training: written by a thread, and waited for."""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import horovod.torch as hvd
import torch

from benchmarks.task import config, dataset
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.mounts import file_system
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import World, open_links
from harness.tracking.run_folder import RunFolder
from harness.train.evaluation import distance
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
        self._folder = RunFolder(folder)
        self._batches, self._ended = self._step.batches(), 0
        self._journal = NullJournal()
        self._written: Future[float] | None = None

    def save(self) -> None:
        """As training does at a window's end: what is in flight lands, ranks agree, and what
        training changes is copied."""
        step, ended = self._step, self._ended
        divergence = step.exchange.divergence_before_drain()
        step.exchange.drain(step.update)
        step.watch.settle(ended, self._journal)
        distance(divergence() if divergence else None, step.world)
        self._training._save_drained(ended, self._journal)
        # By the thread that has written then: this one may be in the middle of a window.
        self._written = self._training._saves._thread.submit(time.perf_counter)

    def save_and_wait(self) -> None:
        self.save()
        assert self._written is not None
        self._written.result()

    def settle(self) -> float | None:
        """Waits for the save under way, and leaves only its checkpoint in the folder; returns when
        it was on the disk, by `time.perf_counter`."""
        save, written = self._training._saves._under_way, self._written
        if save is None or written is None:
            return None
        save.written.result()  # raises what the journal would only be told
        self._training._saves.settle(self._journal)
        if self._step.world.is_first:
            for window in self._folder.checkpoints()[:-1]:
                shutil.rmtree(self._folder.checkpoint(window))
        return written.result()

    def windows(self, count: int) -> None:
        for window in range(self._ended, self._ended + count):
            self._step.window(window, self._batches, self._journal)
        self._ended += count


def measure(saver: Saver, rounds: int, windows: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds that training stood still, that it took with the windows after it, and until
    the checkpoint, if there was one, was on the disk."""
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
            written = saver.settle()
            if not number:  # the first round warms up
                continue
            found[name]["still"].append(stood_still * 1e3)
            found[name]["whole"].append(whole * 1e3)
            if written is not None:
                found[name]["written"].append((written - started) * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to write (default: a temporary folder, which may be in memory: the result says "
        "which file system it is)",
    )
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
        if topology.rank == 0:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            result = {"bytes": size, "file_system": file_system(folder), "ms": found}
            print(json.dumps(result), flush=True)
        hvd.barrier()  # the first rank removes the folder


if __name__ == "__main__":
    main()
