"""`make recorded`: records real runs of this code in analysis/store, which the repository ships.

Trains four variants with three seeds, and late gradients on both sides of their stability limit,
on emulated nodes of this machine; this takes minutes on two cores. `analysis.shipping` then
prepares the store for the repository.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from analysis.shipping import ship

HERE = Path(__file__).resolve().parent
STORE = HERE / "store"
NODES = "localhost:2,127.0.0.1:2"
STUDY = "recorded"
STALENESS = "staleness"
VARIANTS = (
    "experiments/lab/data_parallel.yaml",
    "experiments/lab/hybrid_averaging.yaml",
    "experiments/lab/hybrid_async.yaml",
    "experiments/rivals/world_sync.yaml",
)
SHARED = (
    "train.log_every=8",  # windows: two dozen points a curve
    "tracking.system_metrics_seconds=1",  # a run takes some twenty
)
LATE = "experiments/lab/hybrid_async.yaml"
LATE_SHARED = (
    "train.epochs=2",
    "train.log_every=8",
    "train.evaluate_every=62",
    "optimizer.schedule=constant",
    "optimizer.warmup_windows=0",
    "exchange.compression=none",
    "exchange.synchronous_windows=0",
    "tracking.system_metrics_seconds=0",
    "staleness.curvature_every=31",
)
# Delay, momentum, Nesterov and lr: for each kind of step a rate below the limit and one above it.
SETTINGS = tuple(
    (delay, momentum, nesterov, lr)
    for delay, momentum, nesterov, rates in (
        (1, 0.0, False, (0.2, 1.6)),
        (1, 0.9, False, (0.02, 0.16)),
        (1, 0.9, True, (0.05, 0.4)),
        (4, 0.9, True, (0.02, 0.16)),
    )
    for lr in rates
)


def record(folder: Path) -> None:
    """Makes all runs and records them in a store in `folder`, which must not exist."""
    folder.mkdir(parents=True)
    own = (f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", f"tracking.folder={folder / 'runs'}")
    nodes = ("--np", "4", "--hosts", NODES, "--seeds", "3", "--study", STUDY)
    harness("plan", *VARIANTS, *own, "--np", "4", "--hosts", NODES, "--study", STUDY)
    harness("compare", *VARIANTS, *own, *SHARED, *nodes)
    for delay, momentum, nesterov, lr in SETTINGS:
        name = f"delay_{delay}_momentum_{momentum:g}{'_nesterov' if nesterov else ''}_lr_{lr:g}"
        point = (
            f"name={name}",
            f"exchange.delay={delay}",
            f"optimizer.momentum={momentum}",
            f"optimizer.nesterov={str(nesterov).lower()}",
            f"optimizer.lr={lr}",
            f"tracking.study={STALENESS}",
        )
        apart = ("--np", "2", "--hosts", "localhost:1,127.0.0.1:1")
        harness("launch", *apart, LATE, *own, *LATE_SHARED, *point)


def harness(*words: str) -> None:
    print("recorded: harness", *words[:2], file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "harness", *words], check=True, cwd=HERE.parent)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.record", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/recorded"))
    parser.add_argument(
        "--only-ship", action="store_true", help="ship the runs in --folder without training"
    )
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    if not chosen.only_ship:
        shutil.rmtree(folder, ignore_errors=True)
        record(folder)
    print(ship(folder / "mlflow.db", STORE))


if __name__ == "__main__":
    main()
