"""`make predicted`: predicts the lab's throughput tables with the planner, from a calibration.

Writes NAME.predictions.json beside each table whose conditions are known; `5_scaling.ipynb` draws
them. The calibration is independent of the tables: it was measured on another day.
"""

import json
import sys
from pathlib import Path

from analysis.draw.scaling import CONDITIONS, PREDICTIONS, Condition
from benchmarks.predictions import lab_like
from harness.config import load
from harness.plan.cost_model import predict
from harness.plan.machines import Cluster, read_cluster
from harness.tracking.prediction import Prediction, write_predictions

CALIBRATED = Path("experiments/clusters/lab-2x2.yaml")
TABLES = Path("analysis/lab_first")
EXPERIMENTS = (Path("experiments/lab"), Path("experiments/rivals"))


def of_table(calibrated: Cluster, condition: Condition, variants: list[str]) -> list[Prediction]:
    """Predicts the variants of one table under the conditions that it was measured under."""
    assert calibrated.cores_per_node is not None
    # All hosts of the lab are one machine: its cores are divided among them.
    cores = calibrated.nodes * calibrated.cores_per_node / condition.hosts
    there = lab_like(
        calibrated,
        condition.hosts,
        condition.ranks // condition.hosts,
        condition.mbit_per_second,
        cores,
    )
    override = [f"data.num_classes={condition.classes}"]
    return [predict(there, load(experiment(variant), override)) for variant in variants]


def experiment(variant: str) -> Path:
    return next(path for each in EXPERIMENTS if (path := each / f"{variant}.yaml").exists())


def main() -> int:
    calibrated = read_cluster(CALIBRATED)
    for name, values in json.loads((TABLES / CONDITIONS).read_text(encoding="utf-8")).items():
        table = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
        condition = Condition.model_validate(values)
        found = of_table(calibrated, condition, [each["variant"] for each in table])
        write_predictions(found, TABLES / f"{name}{PREDICTIONS}")
        print(TABLES / f"{name}{PREDICTIONS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
