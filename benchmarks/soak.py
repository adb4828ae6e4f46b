"""Many random faults in a row on one training: does it end as if nothing had happened?

`python -m benchmarks.soak --faults 100 --apart 100 --folder runs/soak --output analysis/faults`:
faults of a rank or a checkpoint come `--apart` windows apart on average, and the run goes on after
each. Beside it, an undisturbed run of as many windows. A fault costs half a minute on two cores.
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import yaml

from benchmarks.faults import EXPERIMENT, Bench, checksums, circumstances
from benchmarks.faulty_rank import EVERY, SOAK, SOAKED
from benchmarks.recording import keep
from benchmarks.stopped_store import LONGEST_SECONDS
from harness.plan.failures import Failures
from harness.tracking.run_folder import RunFolder


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
    train_seconds: float
    """Time in which what is kept was trained."""
    lost_seconds: float
    """Windows that were trained twice, noticing, ending, and starting again."""
    useful_share: float
    restart_seconds: float
    """From a fault to the next trained window, on average."""
    predicted_share: float
    """Of the time, useful, by the formula of `harness plan --hours-between-failures`."""


def run(bench: Bench, faults: int, apart: int) -> Soaked:
    windows = -(-faults * apart // EVERY) * EVERY
    settings = yaml.safe_load(EXPERIMENT)
    settings["train"] |= {"steps": windows, "stuck_seconds": 10, "log_every": EVERY}
    (bench.root / "experiment.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    program = "benchmarks.faulty_launch", SOAK, str(apart)
    for name, launcher, more in (
        ("whole", ("harness",), ()),
        (SOAK, program, ("--restarts", str(2 * faults))),
    ):
        output = bench.launch(name, bench.store(name), launcher, *more)
        if output.end(faults * LONGEST_SECONDS):
            raise SystemExit("\n".join(line for _, line in output.lines))
    folder = bench.folder(SOAK)
    own, summary = RunFolder(folder), RunFolder(folder).read_summary()
    happened = [json.loads(line) for line in (folder / SOAKED).read_text().splitlines()]
    again = [each["at"] for each in own.restarts()]
    waited = [min(a for a in again if a > each["at"]) - each["at"] for each in happened]
    useful, lost = summary.train_seconds, summary.lost_seconds
    failures = Failures((useful + lost) / len(happened), 0.0, mean(waited))
    return Soaked(
        apart=apart,
        windows=windows,
        faults=dict(Counter(each["fault"] for each in happened)),
        restarts=summary.restarts,
        equal=checksums(folder, windows) == checksums(bench.folder("whole"), windows),
        train_seconds=round(useful, 1),
        lost_seconds=round(lost, 1),
        useful_share=useful / (useful + lost),
        restart_seconds=round(mean(waited), 1),
        predicted_share=failures.useful_share(EVERY * useful / windows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--apart", type=int, default=100, help="windows between faults, on average")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for both runs")
    parser.add_argument("--output", type=Path, help="folder for the result")
    chosen = parser.parse_args()
    root: Path = chosen.folder.absolute()
    root.mkdir(parents=True)
    found = asdict(run(Bench(root), chosen.faults, chosen.apart)) | circumstances()
    text = json.dumps(found, indent=2)
    print(text)
    if chosen.output:
        keep(f"{text}\n", chosen.output / f"soak-{chosen.faults}-{chosen.apart}.json")


if __name__ == "__main__":
    main()
