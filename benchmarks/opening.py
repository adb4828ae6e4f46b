"""Times opening the analysis of a large store: 50 runs of 1,000 logged windows.

`python -m benchmarks.opening` makes the store once (in `--folder`, which takes minutes) from rows
like those that runs write. Then it times a fresh process for each question, from its start to the
figure's PNG.
"""

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.compare.table import PHASES
from harness.config import Config
from harness.measure.summary import Evaluation, RunSummary, Spread
from harness.tracking.address import sqlite_file
from harness.tracking.run_folder import METRICS, RunFolder
from harness.tracking.tracker import Tracker

RUNS, WINDOWS, STUDY = 50, 1000, "large"
VARIANTS = ("data_parallel", "hybrid_averaging", "hybrid_async", "world_sync", "hybrid_sync")
ROUNDS = 3
OPEN = """
import sys
from importlib import import_module
from harness.tracking.study import read_study
uri, name = sys.argv[1:]
study = read_study(uri, "large")
figure = import_module(f"analysis.draw.{name}").draw(study)
assert len(figure.png()) > 10_000
"""


def make(folder: Path) -> None:
    """Writes runs as a tracker does, without training anything."""
    folder.mkdir(parents=True)
    for number in range(RUNS):
        variant, seed = VARIANTS[number % len(VARIANTS)], number // len(VARIANTS)
        place = folder / "runs" / f"{variant}-s{seed}"
        place.mkdir(parents=True)
        tracking = {"uri": f"sqlite:///{folder / 'mlflow.db'}", "study": STUDY}
        values = {"name": variant, "seed": seed, "train": {"steps": WINDOWS}, "tracking": tracking}
        _train(Config.model_validate(values), place)
        print(f"{number + 1}/{RUNS}", file=sys.stderr, flush=True)


def _train(config: Config, place: Path) -> None:
    noise = np.random.default_rng(config.seed)
    tracker = Tracker.start(config, place, {})
    lines: list[dict[str, Any]] = []
    evaluations = []
    for window in range(1, WINDOWS):
        metrics = _metrics(window, noise)
        if window % 50 == 0:
            top1 = {"val/top1": window / WINDOWS - noise.random() / 20}
            metrics |= top1
            evaluations.append(
                Evaluation(
                    window=window, images=128 * window, train_seconds=0.1 * window, metrics=top1
                )
            )
        lines.append({"step": window, "time": 1.8e9 + 0.1 * window, "metrics": metrics})
    # Written directly, because MLflow needs half a minute for the metrics of a run. The tracker has
    # the file open and writes nothing more after its last line.
    tracker.log(WINDOWS, _metrics(WINDOWS, noise))
    last = (place / METRICS).read_text(encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (place / METRICS).write_text(text + last, encoding="utf-8")
    RunFolder(place).write_summary(_summary(config, tuple(evaluations)))
    tracker.artifact(place / "summary.json")
    tracker.finish("FINISHED")
    assert tracker.run_id is not None
    file = sqlite_file(str(config.tracking.uri))
    assert file is not None
    rows = (
        (name, value, int(1000 * line["time"]), tracker.run_id, line["step"])
        for line in lines
        for name, value in line["metrics"].items()
    )
    with sqlite3.connect(file) as base:
        base.executemany(
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
            "VALUES (?, ?, ?, ?, ?, 0)",
            rows,
        )


def _metrics(window: int, noise: np.random.Generator) -> dict[str, float]:
    """Sixty metrics, with the names that runs use."""
    found = {"train/loss": 7 / window, "train/top1": window / WINDOWS, "optimizer/lr": 0.1}
    for of in ("time", "time_min", "time_max"):
        for phase in ("step", *PHASES):
            found[f"{of}/{phase}_ms"] = 100 * noise.random()
    for node in range(4):
        for name in ("counter_percent", "computed_percent"):
            found[f"utilisation/node_{node}_{name}"] = 100 * noise.random()
    for number in range(60 - len(found)):
        found[f"other/{number}"] = noise.random()
    return found


def _summary(config: Config, evaluations: tuple[Evaluation, ...]) -> RunSummary:
    one = Spread(minimum=9.0, mean=10.0, maximum=11.0)
    return RunSummary(
        name=config.name,
        seed=config.seed,
        ranks=8,
        nodes=4,
        windows=WINDOWS,
        images=128 * WINDOWS,
        parameters_backbone=1000,
        parameters_classifier=2000,
        images_per_second=1280.0,
        untimed_windows=10,
        timed_windows=WINDOWS - 10,
        step_ms=Spread(minimum=80.0, mean=80.0, maximum=80.0),
        phases_ms=dict.fromkeys(PHASES, one),
        cross_node_mb_per_step=12.5,
        cross_node_mb_per_step_formula=12.5,
        in_node_mb_per_step=3.0,
        in_node_mb_per_step_formula=3.0,
        train_seconds=0.1 * WINDOWS,
        evaluations=evaluations,
        mlflow_run_id=None,
        commit=None,
    )


def opened(folder: Path, question: str) -> tuple[float, float]:
    """Wall seconds and processor seconds of drawing one figure in a fresh process.

    Processor seconds are there because the machine may have been doing other work.
    """
    started, before = time.perf_counter(), os.times()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    subprocess.run([sys.executable, "-c", OPEN, uri, question], check=True)
    seconds, after = time.perf_counter() - started, os.times()
    used = after.children_user + after.children_system
    return seconds, used - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opening", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/opening"))
    folder = parser.parse_args().folder.absolute()
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        make(folder)
        complete.touch()
    for question in ("phases", "accuracy", "utilisation", "traffic", "staleness"):
        rounds = [opened(folder, question) for _ in range(ROUNDS)]
        seconds, used = (round(statistics.median(each), 2) for each in zip(*rounds, strict=True))
        found = {"question": question, "seconds": seconds, "cpu_seconds": used}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
