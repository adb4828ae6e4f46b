"""`make scale`: simulates the sweep that `7_scale.ipynb` draws, into analysis/scale/sweep.csv."""

import sys
from pathlib import Path

from analysis.scale_grid import sweep
from harness.plan.machines import read_cluster

MACHINES = Path("experiments/clusters/h100-400g.yaml")
TABLE = Path("analysis/scale/sweep.csv")


def main() -> int:
    TABLE.parent.mkdir(exist_ok=True)
    sweep(read_cluster(MACHINES)).to_csv(TABLE, index=False, float_format="%.6g")
    print(TABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
