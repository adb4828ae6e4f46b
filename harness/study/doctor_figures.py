"""A cluster from what the doctor measured, and stated defaults for what it does not."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from harness.errors import UserError
from harness.study.cluster import Cluster, Late, Line, Link

DEFAULTS: dict[str, float] = {
    "backbone_efficiency": 0.4,
    "classifier_efficiency": 0.6,
    "memory_bytes": 16e9,
    "memory_bytes_per_second_cpu": 10e9,
    "memory_bytes_per_second_card": 500e9,
    "late.start_seconds": 2e-3,
    "node.bytes_per_second": 10e9,
}
"""Of convolutions and of wide products against a plain one; a rank's memory; a host core's and a
card's memory; Horovod's default cycle of 1 ms; a bus, where no second rank of a host was asked."""


def cluster_of_doctor(path: Path) -> Cluster:
    """From the line that `harness doctor --json` prints; raises UserError for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = json.loads(next(line[line.index("{") :] for line in lines if '"verdict"' in line))
        speeds, links = found["speeds"], [link for link in found["links"] if not link["error"]]
        return _cluster(path, speeds, links)
    except (OSError, StopIteration, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no figures of the doctor ({type(error).__name__}); write it with "
            f"harness doctor --json --hosts ... > {path}"
        ) from error


def _cluster(path: Path, speeds: list[Any], links: list[Any]) -> Cluster:
    ranks = len(speeds)
    per_node = _ranks_per_node(ranks, len(links))
    nodes = ranks // per_node
    between = [link for link in links if link["source"] // per_node != link["target"] // per_node]
    within = [link for link in links if link not in between]
    on_cores = speeds[0]["cpu_share"] is not None
    share = median(speed["cpu_share"] for speed in speeds) if on_cores else 1.0
    memory = DEFAULTS["memory_bytes_per_second_" + ("cpu" if on_cores else "card")]
    return Cluster(
        name=path.stem,
        nodes=nodes,
        ranks_per_node=per_node,
        cores_per_node=per_node * share if on_cores else None,
        product_flop_per_second=median(speed["flop_per_second"] for speed in speeds) / share,
        backbone_efficiency=DEFAULTS["backbone_efficiency"],
        classifier_efficiency=DEFAULTS["classifier_efficiency"],
        memory_bytes=DEFAULTS["memory_bytes"],
        memory_bytes_per_second=memory,
        node=Line(
            latency_seconds=_median(within, "latency_seconds", 2e-5),
            bytes_per_second=_rate(within, DEFAULTS["node.bytes_per_second"]),
        ),
        link=Link(
            bytes_per_second=_rate(between, 1e9),
            step_seconds=2 * _median(between, "latency_seconds", 5e-5),
        ),
        late=Late(start_seconds=DEFAULTS["late.start_seconds"]),
        measured={"doctor": str(path), "defaults": dict(DEFAULTS)},
    )


def _ranks_per_node(ranks: int, links: int) -> int:
    """The doctor asks each two hosts once, and two ranks of each host that has two."""
    for per_node in range(1, ranks + 1):
        nodes = ranks // per_node
        if ranks % per_node == 0 and links == nodes * (nodes - 1) // 2 + nodes * (per_node > 1):
            return per_node
    raise ValueError(f"{links} links between {ranks} ranks")


def _rate(links: list[Any], default: float) -> float:
    rates = [link[way] for link in links for way in ("there", "back") if link[way]]
    return median(rates) if rates else default


def _median(links: list[Any], key: str, default: float) -> float:
    return median(link[key] for link in links) if links else default
