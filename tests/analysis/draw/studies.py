"""Studies as if read from a store, with numbers that can be checked by hand."""

import json
from pathlib import Path

from harness.config import Config
from harness.measure.summary import RunSummary
from harness.tracking.recorded import RecordedRun
from harness.tracking.study import Study
from tests.recorded import summary

MOMENTUM = {"name": "sgd", "momentum": 0.9, "nesterov": False}


def recorded(
    folder: Path,
    name: str,
    seed: int = 0,
    found: RunSummary | None = None,
    lines: list[tuple[int, dict[str, float]]] | None = None,
    **sections: dict[str, object],
) -> RecordedRun:
    """A run with these metrics by window, a second apart."""
    place = folder / f"{name}-s{seed}"
    place.mkdir()
    text = [
        json.dumps({"step": window, "time": 100.0 + window, "metrics": metrics})
        for window, metrics in lines or []
    ]
    (place / "metrics.jsonl").write_text("\n".join(text))
    values = {"name": name, "seed": seed, "train": {"steps": 300}, **sections}
    status = "FAILED" if found is None else "FINISHED"
    failure = status if found is None else None
    config = Config.model_validate(values)
    return RecordedRun(f"{name}{seed}", config, status, found, place, failure)


def study(*runs: RecordedRun) -> Study:
    return Study("which", "sqlite:////nowhere/mlflow.db", "harness", runs)


def many(folder: Path, names: list[str], seeds: int = 2) -> Study:
    """With shares of utilisation of their own, and training losses."""
    runs = []
    for name in names:
        for seed in range(seeds):
            lines = [
                (
                    window,
                    {
                        "train/loss": 7 / window,
                        "staleness/curvature": 1.0,
                        "utilisation/node_0_counter_percent": 95.0,
                        "utilisation/node_0_computed_percent": 50.0,
                        "utilisation/node_1_counter_percent": 85.0,
                        "utilisation/node_1_computed_percent": 40.0,
                    },
                )
                for window in (10, 20, 30)
            ]
            found = summary(name, seed=seed, seconds=10.0 + seed)
            runs.append(recorded(folder, name, seed, found, lines))
    return study(*runs)
