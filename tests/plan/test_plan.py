"""`harness plan`: its table, what it recommends and says, and where ways part."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.compare.levers import Lever, levers_of
from harness.config import load
from harness.errors import UserError
from harness.exchange.preference import FAST_ENOUGH
from harness.plan.break_even import classes_for_world, rates_for_late
from harness.plan.choice import (
    SHOWN,
    recommended,
    short_list,
    strongest_baseline,
)
from harness.plan.command import _require_writable
from harness.plan.cost_model import predict
from harness.plan.from_doctor import cluster_of_doctor
from harness.plan.ladder import ladder_lines, planned_ladder
from harness.plan.machines import Late, Line, Link, read_cluster
from harness.plan.text import advice, cluster_lines, differences, experiments_table
from harness.plan.ways import (
    Way,
    all_ways,
    crossing,
    on_each_route,
    quickest_way,
    way_of,
    with_exchange,
)
from harness.tracking.prediction import read_predictions
from tests.plan.clusters import cluster, exchanging, experiment
from tests.rights import without_rights

EXPERIMENT = "experiments/lab/data_parallel.yaml"
SLOW = cluster(link=Link(bytes_per_second=5e7, step_seconds=0.0), product_flop_per_second=5e10)


def plan(*words: str) -> int:
    return main(["plan", *words])


def test_the_whole_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SLOW.write(tmp_path / "c.yaml")
    output = tmp_path / "predictions.json"
    code = plan(
        EXPERIMENT,
        "experiments/lab/hybrid_async.yaml",
        "--cluster",
        str(tmp_path / "c.yaml"),
        "--output",
        str(output),
        "--simulate",
        "8",
        "data.num_classes=2000",
    )
    page = capsys.readouterr().out
    assert code == 0
    whole = (6 + 2 * 2) * 4 * 4  # what averages also in two pieces
    shown = len(rows_of(page))
    assert 8 * SHOWN < shown < 8 * SHOWN + 5
    for words in (
        "cluster: 2 nodes x 2 ranks, 50.0 GFLOP/s per rank, links 400 Mbit/s",
        "late exchanges go through the host's memory: as fast as the link",
        f"{whole - shown} of {whole} ways are left out",
        "its settings: classifier.layout=",
        "strongest synchronous data parallelism with any K",
        "throughput is not time to accuracy",
        "the predicted ladder",
        "break-even points of exchange.backward_passes_per_step=1 exchange.compression=none",
        "exchange.kind=synchronous: classifier.layout=world is faster than node from data.num_cla",
        "classifier.layout=node exchange.kind=delayed exchange.delay=1 is at least 1.1x as fast "
        "as classifier.layout=replicated exchange.kind=synchronous on links from ",
        "data_parallel, simulated over 8 windows",
    ):
        assert words in page
    stored = read_predictions(output)
    assert [each.variant for each in stored] == ["data_parallel", "hybrid_async"]
    config = load(EXPERIMENT, ["data.num_classes=2000"])
    assert stored[0] == predict(read_cluster(tmp_path / "c.yaml"), config)
    assert sum(stored[0].phases_ms.values()) == pytest.approx(stored[0].step_ms)


def rows_of(page: str) -> list[str]:
    """The rows of the table of ways."""
    first = (["replicated"], ["node"], ["world"])
    return [line for line in page.splitlines() if line.split()[:1] in first]


def test_every_way_is_shown_if_asked_for_and_one_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SLOW.write(tmp_path / "c.yaml")
    assert plan(EXPERIMENT, "--cluster", str(tmp_path / "c.yaml")) == 0
    short = capsys.readouterr().out
    assert plan(EXPERIMENT, "--cluster", str(tmp_path / "c.yaml"), "--all") == 0
    page = capsys.readouterr().out
    assert len(rows_of(page)) == 160
    assert "left out" not in page
    assert set(rows_of(short)) < set(rows_of(page))
    for each in (short, page):
        (marked,) = (row for row in rows_of(each) if row.endswith("  <- recommended"))
        layout, kind, _, passes, *_ = marked.split()
        assert f"\nrecommended: {layout} {kind}, K = {passes}, " in each


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([EXPERIMENT], "give exactly one of --cluster"),
        ([EXPERIMENT, "--cluster", "none.yaml"], "cannot read the cluster"),
        ([EXPERIMENT, "--cluster", "a.yaml", "--doctor", "b.json"], "give exactly one of"),
        ([EXPERIMENT, "--doctor", "none.json"], "cannot read the doctor's figures none.json"),
        ([EXPERIMENT, "--cluster", "a.yaml", "--calibrate", "b.yaml"], "--calibrate saves"),
        (["train.steps=3", "--cluster", "a.yaml"], "name a YAML file"),
        ([EXPERIMENT, "--cluster", "GOOD", "--nodes", "0"], "argument --nodes: 0 does not fit"),
        ([EXPERIMENT, "--cluster", "GOOD", "exchange.kind=no"], "exchange.kind"),
        ([EXPERIMENT, "--cluster", "GOOD", "--simulate", "1"], "give 2 or more"),
        (
            [EXPERIMENT, "--cluster", "GOOD", "classifier.layout=world", "data.num_classes=3"],
            "4 classes",
        ),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SLOW.write(tmp_path / "good.yaml")
    assert plan(*[str(tmp_path / "good.yaml") if word == "GOOD" else word for word in words]) == 2
    out, said = capsys.readouterr()
    assert expected in said
    assert said.count("\n") == 1
    assert out == ""


def test_what_does_not_fit_into_memory_is_marked_and_not_recommended() -> None:
    config = experiment(data={"num_classes": 400_000, "dataset": "synthetic"})
    # Weights, gradients and momentum alone: 617 MB of a node's slices, 308 MB of the world's.
    ways = all_ways(config, cluster(memory_bytes=6e8))
    held = {way.config.classifier.layout for way in ways if way.feasible}
    assert held == {"world"}
    assert all("needs" in way.infeasible_because for way in ways if not way.feasible)
    chosen = recommended(ways)
    assert chosen is not None
    assert chosen.config.classifier.layout == "world"
    assert recommended(all_ways(config, cluster(memory_bytes=1e6))) is None


def test_fewer_classes_than_ranks_of_a_node_have_a_ceiling_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SLOW.write(tmp_path / "c.yaml")
    words = ["--cluster", str(tmp_path / "c.yaml"), "--ranks-per-node", "8", "data.num_classes=3"]
    assert plan(EXPERIMENT, *words) == 0
    assert "replicated classes without any exchange between nodes" in capsys.readouterr().out


EXPERIMENTS = sorted(Path("experiments").glob("*/*.yaml"))
EXPERIMENTS = [path for path in EXPERIMENTS if path.parent.name != "clusters"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_printed_can_be_trained_whatever_the_experiment_says(path: Path) -> None:
    given = load(path)
    for layout, kind in (("node", "synchronous"), ("replicated", "delayed"), ("node", "averaging")):
        pieces = 2 if kind == "averaging" else 1
        for config in on_each_route(with_exchange(given, layout, kind, 2, "int4", pieces)):
            if not config.why_no_class_rests():  # then it is printed as infeasible
                assert load(path, Way(config, None).overrides.split()) == config


def test_the_experiments_above_are_there() -> None:
    assert Path("experiments/lab/hybrid_averaging.yaml") in EXPERIMENTS


def test_what_waits_goes_by_the_better_of_its_routes() -> None:
    """Through nodes on a slow link; over all ranks where a node's own line is slow."""
    config = experiment()
    apart = SLOW.model_copy(update={"node": Line(latency_seconds=0.0, bytes_per_second=1e6)})
    for there, route in ((apart, "flat"), (SLOW, "hierarchical")):
        (found,) = (
            way
            for way in all_ways(config, there)
            if way.overrides.startswith("classifier.layout=node exchange.kind=synchronous")
            and "backward_passes_per_step=1" in way.overrides
            and "compression=none" in way.overrides
        )
        assert found.config.exchange.route == route
        assert f"exchange.route={route}" in found.overrides
        rates = [
            predict(there, each).images_per_second
            for each in on_each_route(with_exchange(config, "node", "synchronous", 1))
        ]
        assert found.rate == max(rates)


@pytest.mark.parametrize(("late", "chosen"), [(108, "synchronous"), (112, "delayed")])
def test_a_late_way_has_to_pay_beside_what_waits(late: float, chosen: str) -> None:
    """Also where it sends more bits, or has another layout."""
    waiting = way("synchronous", 1, "int8", 100, "replicated")
    found = recommended([waiting, way("delayed", 1, "none", late)])
    assert found is not None
    assert found.config.exchange.kind == chosen


def test_a_short_list_has_the_fastest_of_each_kind_and_all_that_is_named() -> None:
    slow = way("synchronous", 1, "none", 60, "replicated")
    fast = [way("synchronous", passes, "int4", 70 + passes, "replicated") for passes in (2, 4, 8)]
    late = way("delayed", 1, "none", 75)
    ways = [slow, *fast, late]
    chosen = recommended(ways)
    assert chosen is late
    # The fastest that waits with K = 1 is compared with, so it is shown; K = 2 is nobody's rival.
    assert short_list(ways) == [slow, *fast[1:], late]


def said_of(*ways: Way) -> str:
    return advice(ways, cluster())[0]


def test_an_experiment_that_waits_for_its_images_is_named() -> None:
    fast = cluster(link=Link(bytes_per_second=1e9, step_seconds=0.0))
    predicted = [
        predict(fast.model_copy(update={"image_seconds": seconds}), experiment(name=name))
        for name, seconds in (("read", 0.05), ("ahead", 0.0))
    ]
    table = experiments_table(predicted)
    data = 100 * predicted[0].phases_ms["data"] / predicted[0].step_ms
    assert 10 < data < 100
    assert [line for line in table if "bound" in line] == table[3:]
    assert table[3].startswith(f"read is bound by data: images take {data:.0f} % of a step, and ")


def test_the_recommendation_gives_its_reason() -> None:
    waiting = way("synchronous", 1, "int8", 100, "replicated")
    pays = said_of(waiting, way("delayed", 1, "none", 120))
    assert pays.startswith("recommended: node delayed, K = 1, fp32, with 120 images/s predicted. ")
    rival = "replicated synchronous, K = 1, int8: 100 images/s"
    assert "Lateness pays here: that is 1.20x the images/s of the fastest way" in pays
    assert f"that waits with the same K ({rival})" in pays
    useless = said_of(waiting, way("delayed", 1, "none", 103))
    assert useless.startswith("recommended: replicated synchronous, K = 1, int8, with 100")
    assert "Lateness does not pay here: the fastest late way with the same K" in useless
    assert f"has 1.03x the images/s of the fastest way that waits ({rival})" in useless
    needless = said_of(way("synchronous", 1, "none", 100), way("delayed", 1, "none", 110.5))
    assert "Lateness would pay: " in needless
    assert "least accuracy" in pays


def test_the_wire_of_late_exchanges_is_shown() -> None:
    late = Late(bytes_per_second=1e8, copy_bytes_per_second=1e9)
    _, line = cluster_lines(cluster(late=late))
    assert line == (
        "late exchanges go through the host's memory: at most 800 Mbit/s per rank, 1.6 Gbit/s per "
        "node, copied from and to the cards at 8 Gbit/s"
    )


def test_a_link_that_nobody_measured_has_no_rate() -> None:
    (line,) = cluster_lines(cluster(nodes=1, link_known=False))
    assert line.endswith("GFLOP/s per rank, no link measured")


def test_a_late_way_does_not_have_to_beat_rarer_steps() -> None:
    ways = [way("synchronous", 4, "none", 100), way("delayed", 1, "none", 102)]
    found = recommended(ways)
    assert found is ways[1]


def way(
    kind: str,
    passes: int,
    compression: str,
    rate: float,
    layout: str = "node",
    pieces: int = 1,
) -> Way:
    config = with_exchange(experiment(), layout, kind, passes, compression, pieces)
    found = predict(cluster(), config).model_copy(update={"images_per_second": rate})
    return Way(config, found)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        # enough without any remedy
        ((95, 99, 97, 100), ("synchronous", 1, "none")),
        # hide first
        ((50, 95, 97, 100), ("delayed", 1, "none")),
        # then shrink
        ((50, 80, 92, 100), ("delayed", 1, "int8")),
        # and only then make rare
        ((50, 80, 85, 100), ("delayed", 4, "int8")),
    ],
)
def test_remedies_come_in_their_order(rates: tuple[float, ...], chosen: tuple[Any, ...]) -> None:
    kinds = (
        ("synchronous", 1, "none"),
        ("delayed", 1, "none"),
        ("delayed", 1, "int8"),
        ("delayed", 4, "int8"),
    )
    ways = [way(*kind, rate) for kind, rate in zip(kinds, rates, strict=True)]
    found = recommended(ways)
    assert found is not None
    exchange = found.config.exchange
    assert (exchange.kind, exchange.backward_passes_per_step, exchange.compression) == chosen
    assert found.rate >= FAST_ENOUGH * max(rates)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        # whole parameters do as well
        ((95, 97, 96, 100), ("int8", 2, 1)),
        # fewer bits before rarer averages
        ((80, 92, 96, 100), ("int4", 2, 1)),
        # two pieces before fewer steps
        ((80, 85, 91, 100), ("none", 2, 2)),
        ((80, 85, 89, 100), ("none", 4, 1)),
    ],
)
def test_pieces_are_made_before_steps_are_made_rarer(
    rates: tuple[float, ...], chosen: tuple[Any, ...]
) -> None:
    kinds = (("int8", 2, 1), ("int4", 2, 1), ("none", 2, 2), ("none", 4, 1))
    ways = [
        way("averaging", passes, sent_as, rate, pieces=pieces)
        for (sent_as, passes, pieces), rate in zip(kinds, rates, strict=True)
    ]
    found = recommended(ways)
    assert found is ways[kinds.index(chosen)]
    assert f"exchange.pieces={chosen[2]} " in found.overrides


def test_two_pieces_are_taken_where_the_port_is_the_limit() -> None:
    """Of all ways: those of K = 1 alone, whatever is sent."""
    narrow = cluster(link=Link(bytes_per_second=1e5, step_seconds=0.0))
    ways = [
        each
        for each in all_ways(experiment(), narrow)
        if each.passes == 1 and each.config.exchange.kind == "averaging"
    ]
    assert {each.config.exchange.pieces for each in ways} == {1, 2}
    found = recommended([*ways, way("synchronous", 1, "int4", 1.0)])
    assert found is not None
    assert (found.config.exchange.pieces, found.config.exchange.compression) == (2, "int4")


def rung_names(page: list[str]) -> list[str]:
    return [line[:24].strip() for line in page[2:-1]]


def test_the_ladder_of_what_does_not_average_pulls_levers_by_default() -> None:
    rungs = planned_ladder(experiment(), SLOW)
    assert [each.lever for each in rungs] == [None, *Lever]
    for number, each in enumerate(rungs):
        levers = levers_of(each.way.config)
        assert levers is not None
        assert levers.pulled == set(tuple(Lever)[:number])
        assert each.way.rate == predict(SLOW, each.way.config).images_per_second
    top = rungs[-1].way.config.exchange
    assert (top.backward_passes_per_step, top.compression) == (2, "int8")
    assert (top.pieces, top.delay) == (2, 1)
    assert rung_names(ladder_lines(experiment(), SLOW)) == [
        *("baseline", "hierarchical", "fewer bytes (int8)", "rarer (K = 2)", "sliced"),
        *("local steps (2 pieces)", "late (delay 1)"),
    ]


def test_the_ladder_of_what_averages_ends_at_the_experiment_itself() -> None:
    given = exchanging(
        "averaging", backward_passes_per_step=4, compression="fp16", pieces=3, delay=2
    )
    *_, top = planned_ladder(given, SLOW)
    assert top.way.config.exchange == given.exchange
    assert top.way.config.classifier == given.classifier


def test_levers_that_the_experiment_leaves_alone_have_no_rung() -> None:
    page = ladder_lines(exchanging("averaging", delay=1), SLOW)
    names = ["baseline", "hierarchical", "sliced", "local steps (1 piece)", "late (delay 1)"]
    assert rung_names(page) == names


def test_ratios_of_the_predicted_ladder_and_what_it_does_not_tell() -> None:
    rungs = planned_ladder(experiment(), SLOW)
    page = ladder_lines(experiment(), SLOW)
    rates = [each.way.rate for each in rungs]
    for line, rate, below in zip(page[3:], rates[1:], rates, strict=False):
        assert line[24:].split() == [
            f"{rate:,.0f}",
            f"{rate / below:.2f}x",
            f"{rate / rates[0]:.2f}x",
        ]
    assert page[-1].startswith("time to accuracy is not predicted")


def test_a_rung_that_cannot_be_says_why_and_the_next_is_compared_with_what_can() -> None:
    # Packing what crosses takes memory beside the weights; slices make room again.
    config = experiment(data={"num_classes": 400_000, "dataset": "synthetic"})
    roomy = SLOW.model_copy(update={"memory_bytes": 1e12})
    baseline, routed, _, _, sliced, *_ = planned_ladder(config, roomy)
    assert baseline.way.prediction is not None
    assert routed.way.prediction is not None
    least = routed.way.prediction.memory_mb * 1e6 - 1
    page = ladder_lines(config, SLOW.model_copy(update={"memory_bytes": least}))
    assert all("infeasible: needs" in line for line in page[3:6])
    name, _, below, whole, *note = page[6].split()
    assert (name, note) == ("sliced", ["rung", "below:", "baseline"])
    assert below == whole == f"{sliced.way.rate / baseline.way.rate:.2f}x"
    assert "rung below" not in page[7]

    smaller = SLOW.model_copy(update={"memory_bytes": baseline.way.prediction.memory_mb * 1e6 - 1})
    assert all("infeasible: needs" in line for line in ladder_lines(config, smaller)[2:6])


def test_one_node_has_no_ladder() -> None:
    assert ladder_lines(experiment(), SLOW.on(1, 2)) == []


def test_the_baseline_is_taken_at_its_strongest() -> None:
    ways = [
        way("synchronous", 1, "none", 50, "replicated"),
        way("synchronous", 1, "fp16", 70, "replicated"),
        way("synchronous", 8, "fp16", 90, "replicated"),
        way("delayed", 8, "fp16", 99, "replicated"),
    ]
    one, any_number = strongest_baseline(ways, 1), strongest_baseline(ways)
    assert one is ways[1]
    assert any_number is ways[2]


def test_a_crossing_is_found_by_halving() -> None:
    found = crossing(lambda x: x * x - 100, 1, 1e6)
    assert found == pytest.approx(10)
    assert crossing(lambda x: 1.0, 1, 1e6) is None


@pytest.mark.parametrize("kind", ["synchronous", "delayed"])
def test_the_world_is_faster_from_the_break_even_on(kind: str) -> None:
    config = exchanging(kind)
    roomy = SLOW.model_copy(update={"memory_bytes": 1e15})
    classes = classes_for_world(SLOW, config, kind)
    assert classes is not None
    assert classes > 10

    def gain(number: int) -> float:
        data = config.data.model_copy(update={"num_classes": number})
        given = config.model_copy(update={"data": data})
        steps = [
            quickest_way(with_exchange(given, layout, kind, 1), roomy).prediction
            for layout in ("node", "world")
        ]
        assert steps[0] is not None
        assert steps[1] is not None
        return steps[0].step_ms - steps[1].step_ms

    assert gain(round(classes * 1.1)) > 0 > gain(round(classes * 0.9))


def test_the_late_exchange_pays_between_two_rates() -> None:
    """Where the link is very slow nothing can be hidden, where it is fast there is nothing to."""
    rates = rates_for_late(SLOW, exchanging("synchronous"), "node")
    assert rates is not None
    assert 1.1 < rates.best < 2
    late, waiting = exchanging("delayed", delay=1), on_each_route(exchanging("synchronous"))
    for rate in (rates.slowest, rates.fastest):
        there = SLOW.with_rate(rate)
        quicker = min(predict(there, each).step_ms for each in waiting)
        ratio = quicker / predict(there, late).step_ms
        assert ratio == pytest.approx(1.1, abs=1e-4)


def test_a_slow_thread_bounds_the_late_exchange() -> None:
    config = exchanging("delayed", delay=1)
    sent = predict(SLOW, config).cross_node_mb_per_step / 2
    late = Late(start_seconds=0.0, bytes_per_second=1e6)
    slow = SLOW.model_copy(update={"late": late})
    assert predict(slow, config).step_ms == pytest.approx(sent * 1e3, rel=1e-3)


def doctor_s(tmp_path: Path, **changes: Any) -> Path:
    speed = {"device": "cpu", "flop_per_second": 4e10, "cpu_share": 0.5}
    link = {"latency_seconds": 1e-4, "there": 2.5e7, "back": 2.3e7, "clock_ahead_seconds": 0}
    inside = link | {"there": 1e9, "back": 1e9, "latency_seconds": 1e-5}
    links = [link | {"source": 0, "target": 2}]
    links += [inside | {"source": n, "target": n + 1} for n in (0, 2)]
    whole = {"verdict": "ok", "findings": [], "speeds": [speed] * 4}
    whole["seats"] = seats("h1", "h1", "h2", "h2")
    whole["links"] = [each | {"error": ""} for each in links]
    path = tmp_path / "doctor.json"
    path.write_text("[0]<stdout>:" + json.dumps(whole | changes) + "\n")
    return path


def seats(*hosts: str) -> list[dict[str, Any]]:
    return [{"rank": rank, "host": host} for rank, host in enumerate(hosts)]


def way_between(source: int, target: int, **changes: Any) -> dict[str, Any]:
    whole = {"latency_seconds": 1e-4, "there": 1e9, "back": 1e9, "error": ""}
    return whole | {"source": source, "target": target} | changes


def test_the_doctor_s_figures_make_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cluster_of_doctor(doctor_s(tmp_path))
    assert (found.nodes, found.ranks_per_node, found.cores_per_node) == (2, 2, 1.0)
    assert found.slowdown == 2.0
    assert found.product_flop_per_second == 8e10
    assert found.link.bytes_per_second == 2.4e7
    assert found.node.bytes_per_second == 1e9
    assert found.link_known
    assert plan(EXPERIMENT, "--doctor", str(tmp_path / "doctor.json")) == 0
    page = capsys.readouterr().out
    assert "defaults, not measured: backbone_efficiency=0.4" in page
    assert "node.bytes_per_second" not in page


def test_two_ranks_of_one_host_are_one_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = {"device": "cpu", "flop_per_second": 4e10, "cpu_share": 1.0}
    one = {"speeds": [speed] * 2, "seats": seats("h1", "h1"), "links": [way_between(0, 1)]}
    path = doctor_s(tmp_path, **one)
    found = cluster_of_doctor(path)
    assert (found.nodes, found.ranks_per_node) == (1, 2)
    assert found.node.bytes_per_second == 1e9
    assert plan(EXPERIMENT, "--doctor", str(path)) == 0
    assert plan(EXPERIMENT, "--doctor", str(path), "--nodes", "2") == 2
    assert "no link between machines was measured" in capsys.readouterr().err
    # Nor from its figures once they are kept.
    found.write(tmp_path / "kept.yaml")
    assert plan(EXPERIMENT, "--cluster", str(tmp_path / "kept.yaml"), "--nodes", "2") == 2


def test_links_that_failed_leave_the_others(tmp_path: Path) -> None:
    speed = {"device": "cpu", "flop_per_second": 4e10, "cpu_share": 1.0}
    broken = {"there": 0.0, "back": 0.0, "error": "refused"}
    links = [way_between(0, 1), way_between(0, 2, **broken), way_between(1, 2, there=3e9, back=3e9)]
    given = {"speeds": [speed] * 3, "seats": seats("h1", "h2", "h3")}
    found = cluster_of_doctor(doctor_s(tmp_path, **given, links=links))
    assert (found.nodes, found.ranks_per_node) == (3, 1)
    assert found.link.bytes_per_second == 2e9
    with pytest.raises(UserError, match="no measured link between its 3 hosts"):
        cluster_of_doctor(doctor_s(tmp_path, **given, links=[links[1]]))


def test_what_the_doctor_did_not_say(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no figures"):
        cluster_of_doctor(doctor_s(tmp_path, seats=[]))
    uneven = seats("h1", "h1", "h1", "h2")
    with pytest.raises(UserError, match="h1: 3, h2: 1"):
        cluster_of_doctor(doctor_s(tmp_path, seats=uneven))


def test_a_way_in_which_classes_cannot_rest_is_infeasible() -> None:
    sampled = experiment(classifier={"sampling": 0.1})
    ways = {
        (layout, kind): way_of(with_exchange(sampled, layout, kind, 1, "int8"), cluster())
        for layout, kind in (
            ("node", "synchronous"),
            ("node", "delayed"),
            ("node", "averaging"),
            ("world", "synchronous"),
        )
    }
    assert [way.feasible for way in ways.values()] == [False, False, True, True]
    assert "when the class may rest" in ways["node", "delayed"].infeasible_because


def test_slices_of_classes_alone_are_infeasible_as_train_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left for ranks to share if all that is trained is sliced."""
    SLOW.write(tmp_path / "c.yaml")
    (tmp_path / "weights.pt").touch()
    words = ["--cluster", str(tmp_path / "c.yaml"), f"backbone.weights={tmp_path}/weights.pt"]
    words += ["backbone.frozen=body", "backbone.feature_dim=0"]
    assert plan(EXPERIMENT, *words, "--all") == 0
    page = capsys.readouterr().out
    for row in rows_of(page):
        assert ("leaves only classes to train" in row) == (not row.startswith("replicated"))
    assert "recommended: replicated" in page
    assert "for comparison, replicated classes without any exchange" in page
    assert "break-even" not in page


def test_a_calibration_of_another_experiment_says_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = load(EXPERIMENT).flattened()
    del measured["backbone.frozen"]  # an older calibration does not know it
    SLOW.model_copy(update={"measured": {"config": measured}}).write(tmp_path / "c.yaml")
    words = [EXPERIMENT, "--cluster", str(tmp_path / "c.yaml")]
    assert plan(*words, "data.num_classes=2000", "optimizer.lr=0.5") == 0
    assert "is not the experiment" not in capsys.readouterr().out
    batch, size = measured["train.batch_size"], measured["data.image_size"]
    assert plan(*words, f"train.batch_size={2 * batch}", f"data.image_size={2 * size}") == 0
    assert (
        "\ndata_parallel is not the experiment that these machines were measured with: "
        f"data.image_size={size} -> {2 * size}, train.batch_size={batch} -> {2 * batch}; its speed"
    ) in capsys.readouterr().out


def test_a_cluster_in_figures_is_nobody_s_experiment() -> None:
    assert differences(SLOW, [experiment()]) == []
    assert differences(cluster(measured={"config": "by hand"}), [experiment()]) == []


def test_nothing_is_measured_for_a_file_that_may_not_be_written(place: Path) -> None:
    kept, own = place / "kept.yaml", place / "own.yaml"
    for file, mode in ((kept, 0o444), (own, 0o666)):
        file.touch()
        file.chmod(mode)
    with without_rights():
        _require_writable(own)
        _require_writable(place / "new.yaml")
        with pytest.raises(UserError, match=f"cannot write {kept}"):
            _require_writable(kept)
