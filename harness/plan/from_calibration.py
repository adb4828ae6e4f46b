"""Runs a calibration on real ranks and converts its timings into a cluster's figures."""

import io
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.calibrate.result import PRINTED, Calibration, Point
from harness.config import Config
from harness.errors import UserError
from harness.launch.hosts import slots_of
from harness.launch.launch import launch
from harness.plan.cost_model import phases
from harness.plan.link_figures import between, rate
from harness.plan.machines import Cluster, Encoding, Line, Link
from harness.plan.step_times import OPTIMIZER_PASSES, pieces_of
from harness.plan.workload import workload_of

LEFT = 0.1
"""Fraction of a pass that the classifier must leave to the backbone, to measure the backbone."""


class CalibrationFailed(Exception):
    """The calibration's ranks failed; the message says why."""


def calibrate(
    experiment: Path, overrides: Sequence[str], ranks: int, hosts: str | None, seconds: float
) -> Calibration:
    """Runs `harness calibrate` under horovodrun on `ranks` ranks; 0 means one for every slot.

    `seconds` is spent on each of about 20 timings. Raises UserError for a wrong config or hosts,
    and CalibrationFailed if ranks fail.
    """
    ranks = ranks or slots_of(hosts)
    command = [sys.executable, "-m", "harness", "calibrate", str(experiment), *overrides]
    command += ["--seconds", f"{seconds:g}"]
    with tempfile.TemporaryDirectory(prefix="harness-plan-") as folder:
        # The first rank may be on another host, whose files are not here; what it prints is.
        outcome = launch(command, ranks, hosts, Path(folder) / "log.txt", io.StringIO())
        printed = outcome.log.read_text(encoding="utf-8")
    if outcome.exit_code == 2:
        raise UserError(outcome.reason.removeprefix("harness: "))
    lines = [line for line in printed.split("\n") if f"] {PRINTED}" in line]
    if outcome.exit_code or not lines:
        reason = outcome.reason or "the first rank printed no result"
        raise CalibrationFailed(f"the calibration failed: {reason}\n{printed[-2000:]}")
    return Calibration.model_validate_json(lines[-1].partition(PRINTED)[2])


def cluster_from(found: Calibration, name: str = "calibrated") -> Cluster:
    """The cluster's figures, each for a rank that shares its cores with nobody."""
    config = Config.from_flattened(found.config, "calibration")
    shared = _without_figures(found, name)
    timed = _Timed(found, shared.slowdown)
    # The order matters: each function subtracts what the figures found so far explain.
    cluster = shared.model_copy(update=_own_figures(found, timed, config))
    cluster = cluster.model_copy(update=_in_node(found, timed, cluster, config))
    cluster = cluster.model_copy(update=between(found, cluster.node.latency_seconds))
    return cluster.model_copy(update={"micro_batch_seconds": _overhead(found, cluster, config)})


def _without_figures(found: Calibration, name: str) -> Cluster:
    """The cluster's shape and how its ranks slow each other down; speeds are placeholders."""
    return Cluster(
        name=name,
        nodes=found.nodes,
        ranks_per_node=found.ranks_per_node,
        cores_per_node=found.cores_per_node,
        threads=1 if found.on_cards else found.threads,
        sharing_penalty=_sharing_penalty(found),
        product_flop_per_second=1.0,
        backbone_efficiency=1.0,
        classifier_efficiency=1.0,
        memory_bytes=found.memory_bytes,
        memory_bytes_per_second=1.0,
        node=Line(bytes_per_second=1.0),
        link=Link(bytes_per_second=1.0),
    )


def _own_figures(found: Calibration, timed: "_Timed", config: Config) -> dict[str, object]:
    """The figures of a rank's own work: computing, memory and packing."""
    (optimizer,) = found.optimizer
    product = found.product.size / timed.alone(found.product)
    passes = OPTIMIZER_PASSES[config.optimizer.name]
    in_classifier = timed.classifier()
    backbone, forward_share = timed.backbone(config, in_classifier)
    return {
        "product_flop_per_second": product,
        "backbone_efficiency": backbone / product,
        "classifier_efficiency": in_classifier / product,
        "forward_share": forward_share,
        "image_seconds": timed.in_window("data") / config.train.batch_size,
        "memory_bytes_per_second": passes * optimizer.size / timed.alone(optimizer),
        "encode_seconds": Encoding(
            **{kind: timed.alone(point) / point.size for kind, (point,) in found.encode.items()}
        ),
        "jitter": min(1.0, found.backbone_variation),
        "measured": found.model_dump(
            mode="json", include={"hosts", "commit", "measured_at", "device", "config"}
        ),
    }


class _Timed:
    """Converts timings taken while ranks shared cores into those of a rank by itself."""

    def __init__(self, found: Calibration, slowdown: float) -> None:
        self._found = found
        self._slowdown = slowdown

    def alone(self, point: Point) -> float:
        """Seconds of work that does not wait for other ranks."""
        return _worked(self._found, point) / self._slowdown

    def in_window(self, *phases: str) -> float:
        """Seconds that these phases take in a training window."""
        # Scaled by the fraction of the window that was the ranks' own work.
        found = self._found
        undisturbed = _worked(found, found.window) / found.window.seconds
        return sum(found.window_phases[each] for each in phases) * undisturbed / self._slowdown

    def classifier(self) -> float:
        """The classifier's speed in floating-point operations per second.

        On a card, launches take the same time for few classes as for many, so the speed comes from
        the difference between two numbers of classes.
        """
        points = self._found.classifier
        if self._found.cores_per_node is None:
            return rate(points)
        return points[-1].size / self.alone(points[-1])

    def backbone(self, config: Config, in_classifier: float) -> tuple[float, float]:
        """The backbone's operations per second, and the fraction of its time in the forward pass.

        Both are those of training. Raises UserError if the classifier takes nearly all of the time.
        """
        found = self._found
        forward, backward = self.in_window("forward"), self.in_window("backward")
        work = workload_of(_as_timed(config), found.nodes, found.ranks_per_node, found.on_cards)
        classifier = work.classifier_flops / in_classifier
        taken = forward + backward
        # One of the classifier's three matrix products is in the forward pass, two in backward.
        forward, backward = forward - classifier / 3, backward - classifier * 2 / 3
        whole = forward + backward
        if whole < LEFT * taken:
            raise UserError(
                f"the classifier of data.num_classes={config.data.num_classes} takes "
                f"{classifier * 1e3:.1f} of the {taken * 1e3:.1f} ms of a forward and backward "
                f"pass, which leaves too little to determine the backbone's speed; calibrate with "
                f"fewer classes, and predict more of them with --cluster"
            )
        return work.backbone_flops / whole, min(0.9, max(0.1, forward / whole))


def _worked(found: Calibration, point: Point) -> float:
    """Wall seconds of the ranks' own work, without that of other programs if it can be separated.

    Ranks that share a core each get 1 / shared of it, so own work takes cpu_seconds * shared.
    """
    shared = _threads_on_a_core(found)
    if shared <= 1 or found.threads > 1:
        return point.seconds
    return min(point.seconds, point.cpu_seconds * shared)


def _threads_on_a_core(found: Calibration) -> float:
    threads = found.ranks_per_node * found.threads
    return max(1.0, threads / (found.cores_per_node or math.inf))


def _sharing_penalty(found: Calibration) -> float:
    """The penalty for sharing a core, from one rank at a time and all ranks at once."""
    shared = _threads_on_a_core(found)
    if shared <= 1:
        return 0.0
    fair = found.backbone_alone_seconds * shared
    return max(0.0, _worked(found, found.backbone[0]) / fair - 1) / math.log2(shared)


def _in_node(
    found: Calibration, timed: _Timed, cluster: Cluster, config: Config
) -> dict[str, object]:
    """The figures of collectives inside a node."""
    group, slowdown = found.ranks_per_node, cluster.slowdown
    if group == 1:
        alone = Line(bytes_per_second=cluster.memory_bytes_per_second / ENDS)
        defaults = {f"node.{name}": value for name, value in alone.model_dump().items()}
        return {"node": alone, "measured": (cluster.measured or {}) | {"defaults": defaults}}
    sent = [_worked_through(found, point, group - 1) for point in found.gather]
    latency = sent[0].seconds / (group - 1) / slowdown
    work = workload_of(_as_timed(config), found.nodes, group)
    shared = 2 * (group - 1) / group * work.shared * work.element_bytes
    # `other` is included because gradients are handled between the phases as well.
    spent = timed.in_window("node_wait", "other")
    moving = max(0.1 * spent, spent - 2 * (group - 1) * latency)
    return {
        "node": Line(
            latency_seconds=latency,
            bytes_per_second=rate(sent) * slowdown,
        ),
        "shared": Line(latency_seconds=latency, bytes_per_second=shared / moving),
    }


def _worked_through(found: Calibration, point: Point, times: float) -> Point:
    """A transfer inside a node, with the bytes that a rank sends; on shared cores it is work."""
    return point.model_copy(update={"size": point.size * times, "seconds": _worked(found, point)})


ENDS = 4
"""Memory passes assumed for a copy between two processes: it is read and written twice."""


def _overhead(found: Calibration, cluster: Cluster, config: Config) -> float:
    """Seconds of a window of isolated nodes that its predicted pieces do not explain."""
    work = workload_of(_as_timed(config), found.nodes, found.ranks_per_node, found.on_cards)
    steady = cluster.model_copy(update={"jitter": 0.0})
    window = sum(phases(pieces_of(steady, work), work).values())
    return max(0.0, _worked(found, found.window) - window) / cluster.slowdown


def _as_timed(config: Config) -> Config:
    """The config that the calibration's windows ran: isolated nodes, K = 1."""
    return config.with_nodes_apart("node", passes=1)
