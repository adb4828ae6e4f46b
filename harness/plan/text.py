"""The text that `harness plan` prints: tables, the recommendation, and break-even points."""

from collections.abc import Sequence

from harness.compare.waits import WAITS
from harness.config import Config
from harness.exchange.carriers import route_of
from harness.exchange.kinds import KINDS, KindName
from harness.exchange.preference import FAST_ENOUGH, MIN_LATE_SPEEDUP, qualified
from harness.measure.data_bound import bound_by_data
from harness.plan.break_even import (
    FASTEST,
    MOST_CLASSES,
    SLOWEST,
    applies,
    classes_for_world,
    rates_for_late,
)
from harness.plan.choice import (
    SHOWN,
    fastest,
    recommended,
    short_list,
    strongest_baseline,
)
from harness.plan.cost_model import predict
from harness.plan.machines import Cluster
from harness.plan.ways import Way, sent_as
from harness.tracking.prediction import Prediction

HEAD = f"{'step ms':>10} {'images/s':>10} {'wait %':>7} {'memory MB':>10} {'MB/window':>10}"
DECIDES_SPEED = (
    "backbone.name",
    "backbone.feature_dim",
    "backbone.norm",
    "backbone.frozen",
    "data.dataset",
    "data.image_size",
    "train.batch_size",
    "train.precision",
    "train.threads",
)
"""Settings that the measured speeds depend on in a way that is not predicted. What else a backbone
has are weights, which change no speed."""
ADVICE = (
    "throughput is not time to accuracy. Try remedies in this order: compress communication "
    "(fp16, int8 or int4, which send the remainder later), hide it (a delay of one window, with a "
    "lower learning rate), and only then communicate less often (in 2 pieces each parameter is "
    "averaged half as often; K micro-batches per step are K times fewer updates from the same "
    "images). Compare time to accuracy with harness compare."
)


def cluster_lines(cluster: Cluster) -> list[str]:
    """Lines that describe the cluster and, if its link is known, the wire of late exchanges."""
    speed = cluster.product_flop_per_second / cluster.slowdown
    shared = ""
    if cluster.cores_per_node is not None:
        many = "s" * (cluster.cores_per_node != 1)
        shared = f", {cluster.cores_per_node:g} core{many} per node"
        if cluster.threads > 1:
            shared += f", {cluster.threads} threads per rank whatever the number of ranks"
    first = (
        f"{cluster.name}: {cluster.nodes} node{'s' * (cluster.nodes > 1)} x "
        f"{cluster.ranks_per_node} rank{'s' * (cluster.ranks_per_node > 1)}{shared}, "
        f"{speed / 1e9:,.1f} GFLOP/s per rank"
    )
    if not cluster.link_known:
        return [f"{first}, no link measured"]
    return [
        f"{first}, links {format_rate(cluster.link.bytes_per_second)}",
        f"late exchanges go through the host's memory: {_late_rate(cluster)}",
    ]


def _late_rate(cluster: Cluster) -> str:
    late = cluster.late
    if late.bytes_per_second is None:
        text = "as fast as the link"
    else:
        of_node = format_rate(late.bytes_per_second * cluster.ranks_per_node)
        text = f"at most {format_rate(late.bytes_per_second)} per rank, {of_node} per node"
    if late.copy_bytes_per_second is None:
        return text
    return f"{text}, copied from and to the cards at {format_rate(late.copy_bytes_per_second)}"


def defaults_line(cluster: Cluster) -> list[str]:
    """A line with the figures that are defaults, if the cluster names any."""
    defaults = (cluster.measured or {}).get("defaults")
    if not defaults:
        return []
    return ["defaults, not measured: " + ", ".join(f"{k}={v:g}" for k, v in defaults.items())]


def differences(cluster: Cluster, configs: Sequence[Config]) -> list[str]:
    """A line for each experiment that differs from the one that the cluster was measured with."""
    measured = (cluster.measured or {}).get("config")
    if not isinstance(measured, dict):
        return []
    lines = []
    for config in configs:
        planned = config.flattened()
        changed = [
            f"{key}={measured[key]} -> {planned[key]}"
            for key in DECIDES_SPEED
            if measured.get(key, planned[key]) != planned[key]
        ]
        if changed:
            lines.append(
                f"{config.name} is not the experiment that these machines were measured with: "
                f"{', '.join(changed)}; its speed may be another, so calibrate with it"
            )
    return lines


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
    """The table of the given experiments, and a line for each that waits for its images."""
    width = max(10, *(len(each.variant) for each in predictions))
    lines = [f"{'experiment':{width}} {HEAD}"]
    lines += [f"{each.variant:{width}} {figures(each)}" for each in predictions]
    return lines + [
        f"{each.variant} is bound by data: {shares}; read a pack, or give each rank more cores"
        for each in predictions
        if (shares := bound_by_data(each.phases_ms))
    ]


def ways_table(ways: Sequence[Way], cluster: Cluster, whole: bool) -> list[str]:
    """The table of ways of training, with the recommended one marked.

    Unless it is `whole`, only the strongest are shown, and a last line says how many are left out.
    """
    shown, chosen = ways if whole else short_list(ways), recommended(ways)
    lines = [
        f"{'layout':10} {'exchange':11} {'route':12} {'K':>2} {'pieces':>6} {'sent as':7} {HEAD}"
    ]
    for way in shown:
        cells = figures(way.prediction) if way.prediction is not None else ""
        remark = "  <- recommended" if way is chosen else ""
        remark += "" if way.feasible else f"  infeasible: {way.infeasible_because}"
        lines.append(f"{_settings(way, cluster)} {cells}{remark}")
    if left := len(ways) - len(shown):
        lines.append(
            f"{left} of {len(ways)} ways are left out: of each layout and exchange the {SHOWN} "
            f"fastest are shown, and those that are named below; --all shows every way"
        )
    return lines


def _settings(way: Way, cluster: Cluster) -> str:
    exchange = way.config.exchange
    return (
        f"{way.config.classifier.layout:10} {exchange.kind:11} "
        f"{route_of(exchange, cluster.nodes, cluster.ranks_per_node):12} "
        f"{way.passes:2d} {exchange.pieces:6d} {sent_as(exchange.compression):7}"
    )


def advice(ways: Sequence[Way], cluster: Cluster) -> list[str]:
    """The recommendation, the strongest forms of the baseline, and what is not predicted."""
    chosen = recommended(ways)
    if chosen is None:
        return ["no recommendation: every way is infeasible here, for the reasons given above"]
    feasible = [way for way in ways if way.feasible]
    quickest = max(qualified(feasible, lambda way: way.rate), key=lambda way: way.rate)
    lines = [
        f"recommended: {chosen.text}, with {chosen.rate:,.0f} images/s predicted. "
        f"{_lateness(chosen, ways)} Of all synchronous ways, and late ones that pay, with at "
        f"least {FAST_ENOUGH:g} of their highest images/s ({_with_rate(quickest)}), the "
        f"recommended one is expected to cost the least accuracy.",
        f"  its settings: {chosen.overrides}",
    ]
    for name, passes in ((f"K = {chosen.passes}", chosen.passes), ("any K", None)):
        rival = strongest_baseline(ways, passes)
        if rival is not None:
            lines.append(
                f"strongest synchronous data parallelism with {name}: {rival.rate:,.0f} images/s "
                f"(K = {rival.passes}, {sent_as(rival.config.exchange.compression)}); the "
                f"recommended way has {chosen.rate / rival.rate:.2f}x that"
            )
    return [*lines, _ceiling(chosen.config, cluster), ADVICE]


def _lateness(chosen: Way, ways: Sequence[Way]) -> str:
    """Why the recommended way is late, or why it waits."""
    waiting, late = (fastest(ways, chosen.passes, waits) for waits in (True, False))
    if waiting is None:
        return "Every way that waits for its exchange is infeasible here."
    if late is None:
        return "It waits for its exchange, because every late way is infeasible here."
    if not chosen.waits:
        return (
            f"Lateness pays here: that is {chosen.rate / waiting.rate:.2f}x the images/s of the "
            f"fastest way that waits with the same K ({_with_rate(waiting)})."
        )
    ratio = f"{late.rate / waiting.rate:.2f}x the images/s of the fastest way that waits"
    if late.rate < MIN_LATE_SPEEDUP * waiting.rate:
        return (
            f"Lateness does not pay here: the fastest late way with the same K "
            f"({_with_rate(late)}) has {ratio} ({_with_rate(waiting)}), and less than "
            f"{MIN_LATE_SPEEDUP:g}x is not worth its cost in accuracy."
        )
    return (
        f"Lateness would pay: the fastest late way with the same K ({_with_rate(late)}) has "
        f"{ratio} ({_with_rate(waiting)}); but the recommended way is "
        f"fast enough without."
    )


def _with_rate(way: Way) -> str:
    return f"{way.text}: {way.rate:,.0f} images/s"


def _ceiling(config: Config, cluster: Cluster) -> str:
    """The speed of ranks whose nodes exchange nothing."""
    alone, which = config.with_nodes_apart("node", passes=1), "slices over a node"
    # Fewer classes than a node has ranks cannot be sliced over it.
    if config.data.num_classes < cluster.ranks_per_node or alone.why_nothing_is_shared():
        alone, which = config.with_nodes_apart("replicated", passes=1), "replicated classes"
    return (
        f"for comparison, {which} without any exchange between nodes, K = 1: "
        f"{predict(cluster, alone).images_per_second:,.0f} images/s (a larger K or another layout "
        f"can be faster)"
    )


def break_even(cluster: Cluster, config: Config) -> list[str]:
    """The break-even points between ways of training, each named by its settings."""
    if not applies(cluster, config):
        return []
    kinds: tuple[KindName, ...] = ("synchronous", "delayed")
    passes = config.exchange.backward_passes_per_step
    return [
        f"break-even points of exchange.backward_passes_per_step={passes} "
        f"exchange.compression=none, on the faster route:",
        *(_classes(cluster, config, kind) for kind in kinds),
        *(_rates(cluster, config, layout) for layout in ("replicated", "node")),
    ]


def _classes(cluster: Cluster, config: Config, kind: KindName) -> str:
    classes = classes_for_world(cluster, config, kind)
    where = f"from data.num_classes={classes} on"
    if classes is None:
        where = f"at no data.num_classes up to {MOST_CLASSES}"
    return f"  {_exchange(kind)}: classifier.layout=world is faster than node {where}"


def _rates(cluster: Cluster, config: Config, layout: str) -> str:
    rates = rates_for_late(cluster, config, layout)
    compared = (
        f"  classifier.layout=node {_exchange('delayed')} is at least {MIN_LATE_SPEEDUP:g}x as "
        f"fast as classifier.layout={layout} {_exchange('synchronous')}"
    )
    if rates is None:
        return f"{compared} on no link"
    top = "any faster link" if rates.fastest >= FASTEST else format_rate(rates.fastest)
    bottom = "any slower link" if rates.slowest <= SLOWEST else format_rate(rates.slowest)
    return f"{compared} on links from {bottom} to {top}, and {rates.best:.2f}x at most"


def _exchange(kind: KindName) -> str:
    """The settings of an exchange of this kind; a late one is one window late."""
    delay = " exchange.delay=1" if KINDS[kind].late else ""
    return f"exchange.kind={kind}{delay}"
