"""Stands for one training: ends as its experiment's name says, on real ranks of horovodrun."""

import os
import sys
import time
from pathlib import Path

from harness.config import Config, load
from harness.tracking.run_folder import RunFolder
from tests.recorded import summary


def main(experiment: str, overrides: list[str], folder: Path) -> None:
    config = load(experiment, overrides)
    rank = int(os.environ["HOROVOD_RANK"])
    (folder.parent / f"started-{config.name}-{config.seed}-{rank}").touch()
    if config.name == "mistaken":
        print("harness: data.root is missing; give a folder", file=sys.stderr)
        sys.exit(2)
    if config.name in ("crashes", "hangs"):
        fail(config, rank, folder)
    if rank == 0:
        folder.mkdir()
        fast = (2.0 if config.name == "fast" else 1.0) + 0.01 * (config.seed - 5)
        speed, seconds = 1000.0 * fast, 10.0 / fast
        run = summary(config.name, seed=config.seed, images_per_second=speed, seconds=seconds)
        RunFolder(folder).write_summary(run)
        if config.tracking.experiment == "recorded":
            keep(config, folder)
        else:
            (folder / "config.yaml").write_text(config.to_yaml())
        print(f"trained {config.name} with seed {config.seed}")


def keep(config: Config, folder: Path) -> None:
    """Records the run as a training does."""
    from harness.tracking.tracker import Tracker

    environment = {"versions": {"torch": "2.13.0"}, "cpu": "a processor", "usable_cores": 2}
    tracker = Tracker.start(config, folder, environment)
    tracker.artifact(folder / "summary.json")
    tracker.finish("FINISHED")


def fail(config: Config, rank: int, folder: Path) -> None:
    """Ends, once MLflow knows of the run, without telling it."""
    if rank == 0:
        from harness.tracking.tracker import Tracker

        folder.mkdir()
        Tracker.start(config, folder, {})
    if config.name == "crashes" and rank == 1:
        while not (folder / "mlflow.json").exists():
            time.sleep(0.05)
        raise ValueError("the cause")
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:-2], Path(sys.argv[-1]))
