"""The text that `harness plan` prints: tables, the recommendation, and break-even points."""

from collections.abc import Sequence

from harness.compare.waits import WAITS
from harness.config import Config
from harness.exchange.exchange import route_of
from harness.exchange.kinds import KindName
from harness.plan.break_even import (
    FASTEST,
    MOST_CLASSES,
    SLOWEST,
    applies,
    classes_for_world,
    rates_for_late,
)
from harness.plan.cost_model import predict
from harness.plan.machines import Cluster
from harness.plan.ways import FAST_ENOUGH, MIN_LATE_SPEEDUP, Way, recommended, strongest_baseline
from harness.tracking.prediction import Prediction

HEAD = f"{'step ms':>10} {'images/s':>10} {'wait %':>7} {'memory MB':>10} {'MB/window':>10}"
ADVICE = (
    "throughput is not time to accuracy. Try remedies in this order: hide communication (a delay "
    "of one window costs little accuracy once the learning rate is lowered), compress it (fp16, "
    "int8 or int4, which send the remainder later), and only then communicate less often (in 2 "
    "pieces each parameter is averaged half as often; K micro-batches per step are K times fewer "
    "updates from the same images). Compare time to accuracy with harness compare."
)


def cluster_line(cluster: Cluster) -> str:
    """One line that describes the cluster."""
    speed = cluster.product_flop_per_second / cluster.slowdown
    shared = ""
    if cluster.cores_per_node is not None:
        shared = f", {cluster.cores_per_node:g} cores per node"
    return (
        f"{cluster.name}: {cluster.nodes} node{'s' * (cluster.nodes > 1)} x "
        f"{cluster.ranks_per_node} rank{'s' * (cluster.ranks_per_node > 1)}{shared}, "
        f"{speed / 1e9:,.1f} GFLOP/s per rank, links {format_rate(cluster.link.bytes_per_second)}"
    )


def defaults_line(cluster: Cluster) -> list[str]:
    """A line with the figures that are defaults, if the cluster names any."""
    defaults = (cluster.measured or {}).get("defaults")
    if not defaults:
        return []
    return ["defaults, not measured: " + ", ".join(f"{k}={v:g}" for k, v in defaults.items())]


def format_rate(bytes_per_second: float) -> str:
    """Formats a rate in bits per second, as network links are specified."""
    bits = bytes_per_second * 8
    for size, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits:.3g} bit/s"


def figures(found: Prediction) -> str:
    """The cells of one prediction, under HEAD."""
    wait = sum(found.phases_ms[phase] for phase in WAITS) / found.step_ms
    return (
        f"{found.step_ms:10.1f} {found.images_per_second:10,.0f} {wait:7.1%} "
        f"{found.memory_mb:10,.0f} {found.cross_node_mb_per_step:10.2f}"
    )


def experiments_table(predictions: Sequence[Prediction]) -> list[str]:
    """The table of the given experiments."""
    width = max(10, *(len(each.variant) for each in predictions))
    lines = [f"{'experiment':{width}} {HEAD}"]
    return lines + [f"{each.variant:{width}} {figures(each)}" for each in predictions]


def ways_table(ways: Sequence[Way], cluster: Cluster) -> list[str]:
    """The table of all ways of training."""
    lines = [
        f"{'layout':10} {'exchange':11} {'route':12} {'K':>2} {'pieces':>6} {'sent as':7} {HEAD}"
    ]
    for way in ways:
        exchange = way.config.exchange
        name = (
            f"{way.config.classifier.layout:10} {exchange.kind:11} "
            f"{route_of(exchange, cluster.nodes, cluster.ranks_per_node):12} "
            f"{exchange.backward_passes_per_step:2d} {exchange.pieces:6d} "
            f"{_sent_as(exchange.compression):7}"
        )
        cells = figures(way.prediction) if way.prediction is not None else ""
        lines.append(
            f"{name} {cells}{'' if way.feasible else f'  infeasible: {way.infeasible_because}'}"
        )
    return lines


def verdict(ways: Sequence[Way], cluster: Cluster) -> list[str]:
    """The recommendation, the strongest forms of the baseline, and what is not predicted."""
    chosen = recommended(ways)
    if chosen is None:
        return ["no recommendation: every way is infeasible here, for the reasons given above"]
    fastest = max(ways, key=lambda way: way.rate)
    lines = [
        f"recommended: {chosen.overrides}",
        f"  {chosen.rate:,.0f} images/s, {chosen.rate / fastest.rate:.2f} of the fastest way "
        f"(K = {fastest.config.exchange.backward_passes_per_step}, "
        f"{_sent_as(fastest.config.exchange.compression)}, "
        f"{fastest.config.classifier.layout} {fastest.config.exchange.kind}"
        f"{_in_pieces(fastest.config.exchange.pieces)})",
        f"  chosen: least expected accuracy cost among ways with at least {FAST_ENOUGH:g} of the "
        f"highest images/s; late ways qualify only with {MIN_LATE_SPEEDUP:g}x the images/s of "
        f"every synchronous way with the same K",
    ]
    passes = chosen.config.exchange.backward_passes_per_step
    for name, each in (
        (f"strongest synchronous data parallelism with K = {passes}", passes),
        ("strongest synchronous data parallelism with any K", None),
    ):
        rival = strongest_baseline(ways, each)
        if rival is not None:
            exchange = rival.config.exchange
            lines.append(
                f"{name}: {rival.rate:,.0f} images/s (K = {exchange.backward_passes_per_step}, "
                f"{_sent_as(exchange.compression)}); the recommended way has "
                f"{chosen.rate / rival.rate:.2f}x that"
            )
    # Fewer classes than a node has ranks cannot be sliced over it.
    few = chosen.config.data.num_classes < cluster.ranks_per_node
    alone = chosen.config.with_nodes_apart("replicated" if few else "node", passes=1)
    ceiling = predict(cluster, alone).images_per_second
    which = "replicated classes" if few else "slices over a node"
    lines.append(
        f"for comparison, {which} without any exchange between nodes, K = 1: {ceiling:,.0f} "
        f"images/s (a larger K or another layout can be faster)"
    )
    return [*lines, ADVICE]


def break_even(cluster: Cluster, config: Config) -> list[str]:
    """The break-even points between ways of training, for this cluster, batch and K."""
    if not applies(cluster, config):
        return []
    lines = []
    kinds: tuple[KindName, ...] = ("synchronous", "delayed")
    for kind in kinds:
        classes = classes_for_world(cluster, config, kind)
        where = f"at no number of classes up to {MOST_CLASSES:,}"
        if classes is not None:
            where = f"from {classes:,} classes on"
        lines.append(f"{kind}: slices over the world are faster than over a node {where}")
    for layout, name in (
        ("replicated", "synchronous data parallelism"),
        ("node", "synchronous slices"),
    ):
        rates = rates_for_late(cluster, config, layout)
        if rates is None:
            lines.append(f"a late exchange is {MIN_LATE_SPEEDUP:g}x as fast as {name} on no link")
            continue
        top = "any faster link" if rates.fastest >= FASTEST else format_rate(rates.fastest)
        bottom = "any slower link" if rates.slowest <= SLOWEST else format_rate(rates.slowest)
        lines.append(
            f"a late exchange is more than {MIN_LATE_SPEEDUP:g}x as fast as {name} from {bottom} "
            f"to {top}, at most {rates.best:.2f}x"
        )
    return lines


def _in_pieces(pieces: int) -> str:
    return f" in {pieces} pieces" if pieces > 1 else ""


def _sent_as(compression: str) -> str:
    return "fp32" if compression == "none" else compression
