"""Simulates the cost model at numbers of ranks, classes and rates that cannot be measured here."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from harness.config import Config
from harness.plan.machines import Cluster
from harness.plan.simulate import simulate
from harness.plan.ways import quickest_way
from harness.plan.workload import workload_of

RANKS = (8, 32, 128, 512, 2048, 4096)
CLASSES = (10_000, 100_000, 1_000_000, 10_000_000)
GBIT = (1, 10, 25, 100, 400)
"""Rates of a node's port, Gbit/s."""
PAYLOAD = 0.95
"""Fraction of a port's rate that carries payload."""
WINDOWS = 12

NODE, WORLD = {"layout": "node"}, {"layout": "world"}
SAMPLED = {"sampling": 0.1}
INT8 = {"compression": "int8"}
PIECES = INT8 | {"kind": "averaging", "backward_passes_per_step": 2, "pieces": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "data_parallel": {},
    "data_parallel_int8": {"exchange": INT8},
    "data_parallel_k4_int8": {"exchange": INT8 | {"backward_passes_per_step": 4}},
    "hybrid_sync_int8": {"classifier": NODE, "exchange": INT8},
    "hybrid_averaging_on_time": {"classifier": NODE, "exchange": PIECES},
    "hybrid_averaging": {"classifier": NODE, "exchange": PIECES | {"delay": 1}},
    "hybrid_async": {"classifier": NODE, "exchange": INT8 | {"kind": "delayed", "delay": 1}},
    "world_sync_int8": {"classifier": WORLD, "exchange": INT8},
    "world_late_int8": {"classifier": WORLD, "exchange": INT8 | {"kind": "delayed", "delay": 1}},
    "hybrid_averaging_paced_on_time": {
        "classifier": NODE,
        "exchange": PIECES | {"slice_pieces": 10},
    },
    "hybrid_averaging_paced": {
        "classifier": NODE,
        "exchange": PIECES | {"slice_pieces": 10, "delay": 1},
    },
    "ceiling": {"classifier": NODE, "exchange": {"kind": "isolated"}},
    "hybrid_sync_sampled": {"classifier": NODE | SAMPLED},
    "hybrid_averaging_sampled_paced_on_time": {
        "classifier": NODE | SAMPLED,
        "exchange": PIECES | {"slice_pieces": 5},
    },
    "hybrid_averaging_sampled_paced": {
        "classifier": NODE | SAMPLED,
        "exchange": PIECES | {"slice_pieces": 5, "delay": 1},
    },
    "hybrid_averaging_drawn": {
        "classifier": NODE | SAMPLED,
        "exchange": PIECES | {"slice_rows": "drawn", "delay": 1, "compression": "none"},
    },
    "partial_fc_int8": {"classifier": WORLD | SAMPLED, "exchange": INT8},
    "partial_fc_late_int8": {
        "classifier": WORLD | SAMPLED,
        "exchange": INT8 | {"kind": "delayed", "delay": 1},
    },
    "ceiling_sampled": {"classifier": NODE | SAMPLED, "exchange": {"kind": "isolated"}},
}
"""Changes to the task for each variant. Synchronous variants have the same compression as late
ones, and the same pace of slices; only gradients of sampled slices allow none. With sampling, a
micro-batch has a tenth of the classes. The ceilings exchange nothing, so they are bounds and not
ways of training."""
TASK: dict[str, Any] = {
    "data": {"dataset": "synthetic", "image_size": 224},
    "backbone": {"name": "resnet50", "feature_dim": 512},
    "exchange": {"bucket_mb": 25},
    "train": {"steps": 1, "batch_size": 128, "precision": "bf16"},
}


@dataclass(frozen=True)
class Point:
    """One point of the sweep."""

    ranks: int
    classes: int
    gbit_per_second: float


def task(variant: str, classes: int) -> Config:
    """A variant of the sweep's task: ResNet-50 at 224 pixels, 512 features, 128 images per card,
    bf16."""
    own = VARIANTS[variant]
    values = TASK | {key: {**TASK.get(key, {}), **value} for key, value in own.items()}
    values |= {"name": variant, "data": TASK["data"] | {"num_classes": classes}}
    return Config.model_validate(values)


def whole_grid() -> Iterator[Point]:
    """All points of the sweep."""
    for ranks, classes, gbit in product(RANKS, CLASSES, GBIT):
        # A single machine uses no link, so one rate stands for all.
        if ranks > RANKS[0] or gbit == GBIT[0]:
            yield Point(ranks, classes, gbit)


def simulated(machines: Cluster, point: Point, variant: str) -> dict[str, float | int | str | bool]:
    """A row of the sweep, simulated on enough of these machines for the point's ranks.

    Of two routes, the one that is predicted to be faster is taken.
    """
    nodes = max(1, point.ranks // machines.ranks_per_node)
    cluster = machines.with_rate(PAYLOAD * point.gbit_per_second * 1e9 / 8)
    there = cluster.on(nodes, machines.ranks_per_node)
    config = quickest_way(task(variant, point.classes), there).config
    work = workload_of(config, nodes, machines.ranks_per_node, machines.on_cards)
    found = simulate(there, work, windows=WINDOWS)
    memory = work.need.where_it_trains(machines.on_cards)
    return {
        "ranks": point.ranks,
        "classes": point.classes,
        "gbit_per_second": point.gbit_per_second,
        "variant": variant,
        "sampling": config.classifier.sampling,
        "delay": config.exchange.delay,
        "images_per_second": work.images / found.step_seconds,
        "step_ms": found.step_seconds * 1e3,
        "wait_percent": 100 * found.wait_seconds / found.step_seconds,
        "memory_gb": memory / 1e9,
        "fits": memory <= machines.memory_bytes,
    }


def sweep(machines: Cluster) -> pd.DataFrame:
    """Simulates every point and variant, a row each; takes minutes."""
    rows = [simulated(machines, point, variant) for point in whole_grid() for variant in VARIANTS]
    return pd.DataFrame(rows)
