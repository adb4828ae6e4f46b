"""The cost of measuring: windows with clock and MLflow alternate with windows without."""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import horovod.torch as hvd
import torch

from benchmarks.alternating import alternate
from benchmarks.task import config, dataset
from harness.config import Config
from harness.measure.clock import Clock, HostTimeline, Times, clock_for
from harness.measure.phase import Phase
from harness.measure.tally import Tally
from harness.measure.traffic import Bytes, Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import Links, World, open_links
from harness.tracking.tracker import Tracker
from harness.train.ledger import Journal, Ledger, NullJournal
from harness.train.step import make_step
from harness.train.trial import ENDLESS

PHASES_A_WINDOW = (Phase.DATA, Phase.FORWARD, Phase.BACKWARD, *[Phase.EXCHANGE_WAIT] * 4)


class StoppedClock(Clock):
    """A clock that never reads the time."""

    def __init__(self) -> None:
        super().__init__(HostTimeline())

    @contextmanager
    def window(self) -> Iterator[None]:
        yield

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        yield

    def read(self) -> list[Times]:
        return []


class Tracked(NullJournal):
    """A journal as a run's, without the progress bar."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._tracker.log(step, metrics)


def stepper(world: World, settings: Config, journal: Journal) -> Callable[[], None]:
    """A function that runs the next window with the bookkeeping of a training."""
    step = make_step(settings, dataset(settings.data.num_classes), world)
    ledger = Ledger(settings, world, step.course)
    batches, windows = step.batches(), itertools.count()

    def window() -> None:
        number = next(windows)
        ledger.window_begins(number)
        for scores in step.window(number, batches, journal):
            ledger.add_scores(scores.loss, scores.top1)
        ledger.window_ended(number, journal)

    return window


def bookkeeping_ms(windows: int = 2000) -> float:
    """Milliseconds per window that clock, processor time and tally cost the main thread."""
    clock, tally = Clock(HostTimeline()), Tally()
    started = time.perf_counter()
    for _ in range(windows):
        busy_from = time.process_time()
        with clock.window():
            for phase in PHASES_A_WINDOW:
                with clock.phase(phase):
                    pass
        tally.add_cpu(time.process_time() - busy_from)
        tally.add_times(clock.read())
        tally.add_bytes(Bytes())
    return (time.perf_counter() - started) / windows * 1e3


def log_ms(tracker: Tracker, calls: int = 200) -> float:
    """Milliseconds that one line of metrics costs the main thread."""
    metrics = {f"time/{number}_ms": float(number) for number in range(35)}
    started = time.perf_counter()
    for step in range(calls):
        tracker.log(step, metrics)
    return (time.perf_counter() - started) / calls * 1e3


def measure(links: Links, folder: Path, rounds: int, steps: int) -> dict[str, object]:
    # An endless run without timed windows, because its summary is not needed.
    settings = config(
        train={"steps": ENDLESS, "untimed_windows": ENDLESS},
        tracking={"uri": f"sqlite:///{folder}/mlflow.db"},
    )
    first = links.topology.rank == 0
    tracker = Tracker.start(settings, folder, {}) if first else Tracker.silent()
    measured, bare = (
        links.world("replicated"),
        replace(links, meters=Meters(StoppedClock(), Traffic())).world("replicated"),
    )
    timing = alternate(
        {
            "clock and MLflow": stepper(measured, settings, Tracked(tracker)),
            "neither": stepper(bare, settings, NullJournal()),
        },
        rounds,
        steps,
        barrier=lambda: hvd.barrier(),
    )
    found = {"rounds": timing.rounds, "bookkeeping_ms": bookkeeping_ms(), "log_ms": log_ms(tracker)}
    tracker.finish("FINISHED")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    meters = Meters(clock_for(device), Traffic())
    with open_links(topology, device, meters) as links, tempfile.TemporaryDirectory() as folder:
        found = measure(links, Path(folder), chosen.rounds, chosen.steps)
        if topology.rank == 0:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
