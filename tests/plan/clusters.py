"""Clusters and experiments with round figures."""

from typing import Any

from harness.config import Config, TrainConfig
from harness.plan.machines import Cluster, Encoding, Late, Line, Link


def cluster(**changes: Any) -> Cluster:
    """Two nodes of two ranks with cards; a link of 1 MB/s that starts at once."""
    values: dict[str, Any] = {
        "nodes": 2,
        "ranks_per_node": 2,
        "product_flop_per_second": 1e9,
        "backbone_efficiency": 0.5,
        "classifier_efficiency": 0.5,
        "memory_bytes": 1e9,
        "memory_bytes_per_second": 1e9,
        "encode_seconds": Encoding(fp16=1e-9, int8=2e-9, int4=3e-9),
        "node": Line(latency_seconds=0.0, bytes_per_second=1e9),
        "link": Link(bytes_per_second=1e6, step_seconds=0.0),
        "late": Late(start_seconds=0.0),
    }
    return Cluster(**(values | changes))


def experiment(**sections: Any) -> Config:
    """The small network, 100 classes, 8 images."""
    values: dict[str, Any] = {
        "data": {"num_classes": 100, "dataset": "synthetic"},
        "train": TrainConfig(steps=1, batch_size=8),
    }
    return Config.model_validate(values | sections)


def exchanging(kind: str, layout: str = "node", **exchange: Any) -> Config:
    return experiment(
        classifier={"layout": layout}, exchange={"kind": kind} | exchange, name=f"{layout}-{kind}"
    )
