"""Many random faults in a row on one training: does it end as if nothing had happened?

`python -m benchmarks.soak --faults 100 --apart 100 --folder runs/soak --output analysis/faults`:
faults of a rank or a checkpoint come `--apart` windows apart on average, and the run goes on after
each. Beside it, an undisturbed run of as many windows. A fault costs half a minute on two cores.
"""

import argparse
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from benchmarks.faults import EXPERIMENT, Bench, checksums, circumstances
from benchmarks.faulty_rank import EVERY, SOAK, SOAKED, STARTED, lines_of
from benchmarks.recording import keep
from benchmarks.stopped_store import LONGEST_SECONDS
from harness.tracking.run_folder import RunFolder

TOLD_SECONDS = 60.0
"""Time between two lines on how far a run is."""
TELLER = "teller"
"""Name of the thread that prints them."""


@dataclass(frozen=True)
class Pace:
    """How a run with faults went on; times are seconds."""

    restart: float
    """From a fault until the first window after it is trained, on average."""
    window: float
    """Of a window, what follows it until the next one included, between a start and a fault."""
    again: int
    """Windows that were trained again."""

    @classmethod
    def of(cls, started: Sequence[Any], happened: Sequence[Any]) -> "Pace":
        """Given the lines of starts and of faults."""
        before = [max(_apart(started, fault, -1), key=_at) for fault in happened]
        after = [min(_apart(started, fault, 1), key=_at) for fault in happened]
        both = list(zip(before, happened, strict=True))
        seconds = sum(fault["at"] - start["at"] for start, fault in both)
        windows = sum(fault["window"] - start["window"] for start, fault in both)
        followed = list(zip(happened, after, strict=True))
        return cls(
            restart=mean(start["at"] - fault["at"] for fault, start in followed),
            window=seconds / windows,
            # A start is noted after its first window.
            again=sum(fault["window"] - start["window"] + 1 for fault, start in followed),
        )


def _at(line: Any) -> float:
    return float(line["at"])


def _apart(started: Sequence[Any], fault: Any, sign: int) -> list[Any]:
    """The starts before a fault, or after it."""
    return [each for each in started if sign * (each["at"] - fault["at"]) > 0]


def predicted_share(between: float, interval: float, restart: float) -> float:
    """The share of the time that is useful, if faults strike while windows are trained, after
    `between` seconds of that on average, a checkpoint follows each `interval` seconds of training,
    and going on takes `restart` seconds, in which none strikes.

    An interval must pass without a fault; each fault costs what has been done of it, and a restart:
    on average one is done in (M + R) (e^(t/M) - 1). (In `harness.plan.failures` faults strike at
    any time.)
    """
    return interval / ((between + restart) * math.expm1(interval / between))


@dataclass(frozen=True)
class Soaked:
    """What became of a run with many faults; times are seconds."""

    apart: int
    """Windows between two faults, on average."""
    windows: int
    faults: dict[str, int]
    """How many faults of each kind came."""
    restarts: int
    equal: bool
    """Whether the final parameters are equal to the bit to the undisturbed run's."""
    wall_seconds: float
    """From the launch to the end of the launcher: all starts, pauses and evaluations are in it."""
    train_seconds: float
    """Time in which what is kept was trained."""
    lost_seconds: float
    """Windows that were trained twice, noticing, ending, and starting again, by the summary."""
    useful_share: float
    """Of the wall time, what is kept."""
    restart_seconds: float
    """From a fault until the first window after it is trained, on average."""
    between_seconds: float
    """Training between two faults, on average; windows that were trained twice count twice."""
    predicted_share: float
    """Useful by `predicted_share`, which leaves out the first start, the end, and that a damaged
    checkpoint costs one interval more."""


def run(bench: Bench, faults: int, apart: int) -> Soaked:
    windows = -(-faults * apart // EVERY) * EVERY
    settings = yaml.safe_load(EXPERIMENT)
    settings["train"] |= {"steps": windows, "stuck_seconds": 10, "log_every": EVERY}
    (bench.root / "experiment.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    whole, folder = bench.folder("whole"), bench.folder(SOAK)
    limit = faults * LONGEST_SECONDS
    _trained(bench, whole, windows, limit, "harness")
    program = "benchmarks.faulty_launch", SOAK, str(apart)
    wall = _trained(bench, folder, windows, limit, *program, more=("--restarts", str(2 * faults)))
    summary, happened = RunFolder(folder).read_summary(), lines_of(folder / SOAKED)
    pace = Pace.of(lines_of(folder / STARTED), happened)
    between = pace.window * (windows + pace.again) / len(happened)
    return Soaked(
        apart=apart,
        windows=windows,
        faults=dict(Counter(each["fault"] for each in happened)),
        restarts=summary.restarts,
        equal=checksums(folder, windows) == checksums(whole, windows),
        wall_seconds=round(wall, 1),
        train_seconds=round(summary.train_seconds, 1),
        lost_seconds=round(summary.lost_seconds, 1),
        useful_share=summary.train_seconds / wall,
        restart_seconds=round(pace.restart, 1),
        between_seconds=round(between, 1),
        predicted_share=predicted_share(between, EVERY * pace.window, pace.restart),
    )


def _trained(
    bench: Bench,
    folder: Path,
    windows: int,
    limit: float,
    *program: str,
    more: Sequence[str] = (),
) -> float:
    """Runs a training to its end; returns how many seconds that took."""
    began = time.monotonic()
    output = bench.launch(folder.name, bench.store(folder.name), program, *more)
    with told(lambda: progress(folder, windows)):
        code = output.end(limit)
    if code:
        raise SystemExit("\n".join(line for _, line in output.lines))
    return time.monotonic() - began


def progress(folder: Path, windows: int) -> str:
    """How far a run is, by its newest checkpoint."""
    file = folder / SOAKED
    faults = file.read_text(encoding="utf-8").count("\n") if file.exists() else 0
    ended = max(RunFolder(folder).checkpoints(), default=0)
    return f"{folder.name}: {faults:,} faults so far, {ended:,} of {windows:,} windows"


@contextmanager
def told(say: Callable[[], str]) -> Iterator[None]:
    """Inside the block what `say` says is printed on stderr now and then."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(TOLD_SECONDS):
            print(say(), file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name=TELLER, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--apart", type=int, default=100, help="windows between faults, on average")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for both runs")
    parser.add_argument("--output", type=Path, help="folder for the result")
    chosen = parser.parse_args()
    root: Path = chosen.folder.absolute()
    root.mkdir(parents=True)
    found = run(Bench(root), chosen.faults, chosen.apart)
    text = json.dumps(asdict(found) | circumstances(), indent=2)
    print(text)
    if chosen.output:
        came = sum(found.faults.values())
        keep(f"{text}\n", chosen.output / f"soak-{came}-{found.apart}.json")


if __name__ == "__main__":
    main()
