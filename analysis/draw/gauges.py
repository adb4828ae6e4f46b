"""The utilisation that each node's devices reported over a run: MLflow's system metrics."""

import pandas as pd

from harness.tracking.connection import connect
from harness.tracking.recorded import RecordedRun

CPU = "cpu_utilization_percentage"
GPU = ("gpu_", "_utilization_percentage")


def counters(uri: str, run: RecordedRun) -> dict[int, "pd.Series[float]"]:
    """Utilisation by node in percent, over seconds since 1970.

    It is the mean over the cards of the node's host, or that of its processor if it has none.
    MLflow's monitor sees all cards, whatever CUDA_VISIBLE_DEVICES is: where a run uses some of them
    only, the others count too. Nodes without system metrics are left out.
    """
    client = connect(uri)
    names = sorted(client.get_run(run.run_id).data.metrics)
    found: dict[int, pd.Series[float]] = {}
    for node in sorted(
        {int(name.split("/")[1][5:]) for name in names if name.startswith("system/node_")}
    ):
        own = [name for name in names if name.startswith(f"system/node_{node}/")]
        cards = [n for n in own if n.split("/")[2].startswith(GPU[0]) and n.endswith(GPU[1])]
        chosen = cards or [name for name in own if name.endswith(f"/{CPU}")]
        points = [
            (metric.timestamp / 1000, metric.value)
            for name in chosen
            for metric in client.get_metric_history(run.run_id, name)
        ]
        if points:
            frame = pd.DataFrame(points, columns=["seconds", "percent"])
            found[node] = frame.groupby("seconds")["percent"].mean()
    return found
