"""A cluster from what the doctor measured, with stated defaults for what it does not measure."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from harness.config.yaml_files import MOST_JSON_BYTES, read_text
from harness.errors import UserError
from harness.plan.machines import Cluster, Late, Line, Link

DEFAULTS: dict[str, float] = {
    "backbone_efficiency": 0.4,
    "classifier_efficiency": 0.6,
    "memory_bytes": 16e9,
    "late.start_seconds": 2e-3,
}
"""Defaults of figures that the doctor never measures: efficiencies relative to a plain matrix
product, a rank's memory in bytes, and a start that follows from Horovod's cycle of 1 ms."""
MEMORY_BYTES_PER_SECOND = {"cpu": 10e9, "card": 500e9}
"""Default memory bandwidth, by device."""
NODE_DEFAULTS: dict[str, float] = {"node.bytes_per_second": 10e9, "node.latency_seconds": 2e-5}
"""Defaults of a bus, if no two ranks of one host were measured."""
MALFORMED = (
    StopIteration,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""Errors that JSON other than the doctor's raises when its figures are read."""
CARD_DEFAULTS = {"late.bytes_per_second": 0.9e9, "late.copy_bytes_per_second": 12e9}
"""Late exchanges of cards go through one Horovod thread and host memory, which the doctor does not
time: as in experiments/clusters/8xV100-25g.yaml."""
UNKNOWN_LINK_BYTES_PER_SECOND = 1e9
"""Placeholder for the link of a single host, which is never used."""


def cluster_of_doctor(path: Path) -> Cluster:
    """Reads the line that `harness doctor --json` prints.

    Raises UserError for anything else, and if no link between the hosts could be measured.
    """
    lines = read_text(path, "doctor's figures", MOST_JSON_BYTES).splitlines()
    try:
        found = json.loads(next(line[line.index("{") :] for line in lines if '"verdict"' in line))
        hosts = [seat["host"] for seat in found["seats"]]
        if not hosts or len(hosts) != len(found["speeds"]):
            raise ValueError(f"{len(hosts)} seats, {len(found['speeds'])} speeds")
        links = [link for link in found["links"] if not link["error"] and link["there"]]
        return _cluster(path, hosts, found["speeds"], links)
    except MALFORMED as error:
        raise UserError(
            f"{path} holds no figures of the doctor ({type(error).__name__}); write it with "
            f"harness doctor --json --hosts ... > {path}"
        ) from error


def _cluster(path: Path, hosts: list[str], speeds: list[Any], links: list[Any]) -> Cluster:
    per_node, nodes = _even(path, hosts), len(set(hosts))
    between = [link for link in links if hosts[link["source"]] != hosts[link["target"]]]
    within = [link for link in links if hosts[link["source"]] == hosts[link["target"]]]
    if nodes > 1 and not between:
        raise UserError(
            f"{path} has no measured link between its {nodes} hosts; fix the links that "
            f"`harness doctor` reports and run it again"
        )
    on_cores = speeds[0]["cpu_share"] is not None
    share = median(speed["cpu_share"] for speed in speeds) if on_cores else 1.0
    defaults = DEFAULTS | ({} if within else NODE_DEFAULTS)
    if not on_cores:
        defaults |= CARD_DEFAULTS
    defaults["memory_bytes_per_second"] = MEMORY_BYTES_PER_SECOND["cpu" if on_cores else "card"]
    return Cluster(
        name=path.stem,
        nodes=nodes,
        ranks_per_node=per_node,
        cores_per_node=per_node * share if on_cores else None,
        product_flop_per_second=median(speed["flop_per_second"] for speed in speeds) / share,
        backbone_efficiency=defaults["backbone_efficiency"],
        classifier_efficiency=defaults["classifier_efficiency"],
        memory_bytes=defaults["memory_bytes"],
        memory_bytes_per_second=defaults["memory_bytes_per_second"],
        node=_line(within),
        link=_link(between),
        link_known=bool(between),
        late=Late(
            start_seconds=defaults["late.start_seconds"],
            bytes_per_second=defaults.get("late.bytes_per_second"),
            copy_bytes_per_second=defaults.get("late.copy_bytes_per_second"),
        ),
        measured={"doctor": str(path), "defaults": defaults},
    )


def _even(path: Path, hosts: list[str]) -> int:
    """Ranks per host. Raises UserError if hosts have different numbers of ranks."""
    counts = {host: hosts.count(host) for host in hosts}
    if len(set(counts.values())) != 1:
        ranks = ", ".join(f"{host}: {count}" for host, count in counts.items())
        raise UserError(
            f"{path} has hosts with different numbers of ranks ({ranks}); run the doctor with the "
            f"same number on each"
        )
    return counts[hosts[0]]


def _link(between: list[Any]) -> Link:
    if not between:
        return Link(bytes_per_second=UNKNOWN_LINK_BYTES_PER_SECOND)
    latency = median(link["latency_seconds"] for link in between)
    return Link(bytes_per_second=_rate(between), step_seconds=2 * latency)


def _line(within: list[Any]) -> Line:
    if not within:
        latency, rate = (
            NODE_DEFAULTS["node.latency_seconds"],
            NODE_DEFAULTS["node.bytes_per_second"],
        )
        return Line(latency_seconds=latency, bytes_per_second=rate)
    latency = median(link["latency_seconds"] for link in within)
    return Line(latency_seconds=latency, bytes_per_second=_rate(within))


def _rate(links: list[Any]) -> float:
    return median(link[way] for link in links for way in ("there", "back") if link[way])
