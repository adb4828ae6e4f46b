"""The figures of the six questions: numbers by hand, one style per variant, nothing unreadable."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.draw import accuracy, phases, scaling, staleness, traffic, utilisation
from harness.compare.colours import COLOURS, styles_of
from harness.compare.wording import without_result
from harness.errors import DIVERGED
from harness.tracking.prediction import Prediction, write_predictions
from harness.tracking.results import Target
from harness.tracking.study import Study
from tests.analysis.draw.studies import MOMENTUM, many, recorded, study
from tests.pictures import assert_readable, assert_units
from tests.recorded import PHASES_MS, summary, untimed, variant

LONG = [f"hybrid_averaging_{number}" for number in range(6)]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Three throughput tables: two rates, and twice the classes; one of them foreseen."""
    place = tmp_path / "tables"
    place.mkdir()
    condition = {"hosts": 2, "ranks": 4, "classes": 1000, "mbit_per_second": 100}
    conditions = {
        "slow": condition,
        "free": condition | {"mbit_per_second": None},
        "more": condition | {"classes": 2000},
    }
    (place / "conditions.json").write_text(json.dumps(conditions))
    for name, rate in (("slow", 100.0), ("free", 400.0), ("more", 50.0)):
        found = [
            {"variant": "hybrid_async", "images_per_second": 2 * rate},
            {"variant": "data_parallel", "images_per_second": rate},
        ]
        (place / f"{name}.json").write_text(json.dumps(found))
    write_predictions([prediction("data_parallel", 110.0)], place / "slow.predictions.json")
    return place


def prediction(name: str, images_per_second: float) -> Prediction:
    return Prediction(
        variant=name,
        nodes=2,
        ranks_per_node=2,
        step_ms=100.0,
        phases_ms={"forward": 100.0},
        images_per_second=images_per_second,
        cross_node_mb_per_step=1.0,
        in_node_mb_per_step=1.0,
        memory_mb=100.0,
    )


def foreseen(found: Study, images_per_second: float = 900.0) -> Study:
    """With a prediction of its first variant."""
    first = prediction(found.runs[0].name, images_per_second)
    return replace(found, predictions=(first,))


def all_figures(found: Study, tables: Path) -> dict[str, Figure]:
    return {
        "phases": phases.draw(found),
        "accuracy": accuracy.draw(found),
        "utilisation": utilisation.draw(found),
        "traffic": traffic.draw(found),
        "scaling": scaling.draw(tables, foreseen(found)),
        "staleness": staleness.draw(found),
    }


@pytest.mark.parametrize("names", [["data_parallel"], ["hybrid_async", "data_parallel"], LONG])
def test_every_figure_is_readable_and_has_units(
    names: list[str], tmp_path: Path, tables: Path
) -> None:
    for name, figure in all_figures(many(tmp_path, names), tables).items():
        assert_readable(figure)
        assert_units(figure)
        assert figure.axes, name


def test_a_variant_has_its_colour_in_every_figure(tmp_path: Path, tables: Path) -> None:
    """Though it is the second here, and its study has no baseline."""
    found = many(tmp_path, ["mine", "hybrid_async"])
    mine = styles_of(["mine", "hybrid_async"])["mine"].colour
    for name, figure in all_figures(found, tables).items():
        assert {COLOURS[2].lower(), mine.lower()} <= colours_of(figure), name
        assert COLOURS[1].lower() not in colours_of(figure), name


def colours_of(figure: Figure) -> set[str]:
    found = set()
    for axes in figure.axes:
        found |= {to_hex(line.get_color()) for line in axes.lines}
        patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        found |= {to_hex(patch.get_facecolor()) for patch in patches}
    return found


def test_a_variant_that_was_never_started_is_called_that() -> None:
    """Its study was stopped before."""
    late = variant("late")
    assert (late.fate, without_result(late)) == ("was not started", "no run was started")


@pytest.mark.parametrize("fate", ["failed", "diverged", "has not ended"])
def test_a_variant_without_a_result_has_its_fate_in_every_figure(
    fate: str, tmp_path: Path, tables: Path
) -> None:
    failure = {"failed": "FAILED", "diverged": f"{DIVERGED}: a loss of nan in window 7"}.get(fate)
    lost = replace(recorded(tmp_path, "hybrid_async"), failure=failure)
    found = study(recorded(tmp_path, "data_parallel", 0, summary()), lost)
    figures = all_figures(found, tables)
    assert fate in [text.get_text() for text in figures["phases"].axes[0].texts]
    for name in ("traffic", "utilisation", "scaling"):
        place = 0 if name == "traffic" else -1
        assert fate in [text.get_text() for text in figures[name].axes[place].texts], name
    wanted = f"* `hybrid_async`: {without_result(found.variants[1])}"
    assert wanted in phases.describe(found)
    assert wanted in accuracy.describe(found)
    assert wanted in utilisation.describe(found)


def test_phases_are_means_over_seeds_of_each_rank_spread() -> None:
    frame = phases.numbers([variant("data_parallel", summary(), summary(seed=1))])
    row = frame[frame["phase"] == "exchange_wait"].iloc[0]
    assert (row["minimum"], row["mean"], row["maximum"]) == (15.0, 30.0, 60.0)
    frame = phases.numbers([variant("a", summary()), variant("b", summary(passes=4))])
    means = frame[frame["phase"] == "forward"]["mean"]
    assert list(means) == pytest.approx([20 * 1000 / 128, 20 * 1000 / 512])


def test_a_line_goes_from_the_least_to_the_most_loaded_rank(tmp_path: Path) -> None:
    figure = phases.draw(study(recorded(tmp_path, "data_parallel", 0, summary())))
    ends = [each.get_segments()[0][:, 0] for each in figure.axes[1].collections]
    expected = [PHASES_MS[phase] for phase in phases.SPREAD]
    assert [list(each) for each in ends] == [[0.5 * each, 2 * each] for each in expected]


def test_the_time_to_a_target_needs_all_seeds() -> None:
    target = Target(0.85, "given")
    good, bad = summary(seconds=5.0), summary(seed=1, accuracies=(0.5, 0.6, 0.7))
    assert accuracy.target_seconds(variant("a", good), target) == [15.0]
    assert accuracy.target_seconds(variant("a", good, bad), target) is None


def test_bars_reach_the_target_times(tmp_path: Path) -> None:
    runs = [recorded(tmp_path, "data_parallel", s, summary(seed=s, seconds=10 + s)) for s in (0, 2)]
    sooner = accuracy.draw(study(*runs), target=0.75).axes[2]
    (bar,) = [patch for patch in sooner.patches if isinstance(patch, Rectangle)]
    assert bar.get_width() == pytest.approx((20 + 24) / 2)


def test_a_target_that_one_seed_missed_says_so(tmp_path: Path) -> None:
    ends = (0.9, 0.7)
    runs = [
        recorded(tmp_path, "data_parallel", seed, summary(seed=seed, accuracies=(0.5, end)))
        for seed, end in enumerate(ends)
    ]
    texts = [text.get_text() for text in accuracy.draw(study(*runs), 0.8).axes[2].texts]
    assert texts == ["reached in 1 of 2"]


def test_a_seed_that_diverged_has_missed_the_target(tmp_path: Path) -> None:
    """As the table and the verdict count it."""
    runs = [recorded(tmp_path, "data_parallel", seed, summary(seed=seed)) for seed in (0, 1)]
    lost = replace(recorded(tmp_path, "data_parallel", 2), failure=f"{DIVERGED}: a loss of nan")
    found = study(*runs, lost)
    assert accuracy.target_seconds(found.variants[0], Target(0.8, "given")) is None
    texts = [text.get_text() for text in accuracy.draw(found, 0.8).axes[2].texts]
    assert texts == ["reached in 2 of 3"]


def test_times_over_different_seeds_have_no_ratio(tmp_path: Path) -> None:
    """Nor have they in the table."""
    base = [recorded(tmp_path, "data_parallel", seed, summary(seed=seed)) for seed in range(3)]
    some = [recorded(tmp_path, "other", seed, summary("other", seed=seed)) for seed in (1, 2)]
    said = accuracy.describe(study(*base, *some), 0.8)
    assert "and reaches the target in 20.0" in said.splitlines()[-1]
    assert "x the time of" not in said
    last = recorded(tmp_path, "other", 0, summary("other"))
    said = accuracy.describe(study(*base, *some, last), 0.8)
    assert said.endswith("1.00x the time of `data_parallel`")


def test_curves_are_means_over_seeds_by_window() -> None:
    frame = accuracy.curve(
        variant("a", summary(), summary(seed=1, seconds=20.0, accuracies=(0.4, 0.7, 0.8)))
    )
    assert list(frame["seconds"]) == [15.0, 30.0, 45.0]
    assert list(frame["mean"]) == pytest.approx([45, 75, 85])
    assert list(frame["low"]) == pytest.approx([40, 70, 80])
    assert list(frame["images"]) == [12800, 25600, 38400]


def test_bytes_are_of_a_window_and_of_as_many_images() -> None:
    frame = traffic.numbers([variant("a", summary(passes=2))]).set_index("link")
    assert frame.loc["cross_node", "counted_window"] == 12.5
    assert frame.loc["cross_node", "counted_images"] == pytest.approx(12.5 * 1000 / 256)
    assert frame.loc["in_node", "formula_window"] == 3.0
    other = summary().model_copy(update={"images_per_window": 64})
    frame = traffic.numbers([variant("a", other)]).set_index("link")
    assert frame.loc["cross_node", "counted_images"] == pytest.approx(12.5 * 1000 / 64)


def test_bars_of_bytes_are_as_long_as_counted(tmp_path: Path) -> None:
    axes = traffic.draw(many(tmp_path, ["data_parallel"], seeds=1)).axes
    widths = [p.get_width() for each in axes for p in each.patches if isinstance(p, Rectangle)]
    assert widths == pytest.approx([12.5, 12.5 * 1000 / 128, 3.0, 3.0 * 1000 / 128])


def test_shares_that_a_run_recorded_come_before_mlflows(tmp_path: Path) -> None:
    found = many(tmp_path, ["data_parallel"], seeds=1)
    by_node = utilisation.nodes(found, found.runs[0])
    assert sorted(by_node) == [0, 1]
    assert list(by_node[1].computed) == [40.0] * 3
    assert list(by_node[1].computed.index) == [0.0, 10.0, 20.0]
    assert utilisation.means(by_node) == (90.0, 45.0)
    assert "the counter shows 90 %, 45 % of a step is computing" in utilisation.describe(found)


def test_a_panel_varies_one_thing(tables: Path, tmp_path: Path) -> None:
    frame = scaling.numbers(tables)
    over_rate = scaling.series(frame, "mbit_per_second")
    assert set(over_rate["table"]) == {"slow", "free"}
    assert set(scaling.series(frame, "classes")["table"]) == {"slow", "more"}
    assert scaling.series(frame, "ranks").empty
    found = many(tmp_path, ["data_parallel"], seeds=1)
    assert "of 1 point of the tables are off by 10% (median)" in scaling.describe(tables, found)
    guessed = foreseen(found, 960.0)
    said = scaling.describe(tables, guessed)
    assert "of the study which (possibly logged after it ran) are off by 25% (median)" in said
    said = scaling.describe(tables, replace(guessed, predicted_before=True))
    assert "of the study which (logged before it ran) are off by 25% (median)" in said
    figure = scaling.draw(tables, found)
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    drawn = [y for line in hollow for y in line.get_ydata() if not math.isnan(y)]
    assert drawn == [110.0]


def test_a_panel_shows_the_range_over_rounds(tables: Path, tmp_path: Path) -> None:
    """And none where a table has medians alone."""
    file = tables / "slow.json"
    rows = json.loads(file.read_text())
    rows[1]["rates"] = [90.0, 100.0, 130.0]
    file.write_text(json.dumps(rows))
    figure = scaling.draw(tables, many(tmp_path, ["data_parallel"], seeds=1))
    (panel, *_) = figure.axes
    ends = [part[:, 1].tolist() for each in panel.collections for part in each.get_segments()]
    assert ends == [[90.0, 130.0]]
    assert_readable(figure)


def test_a_condition_without_the_baseline_has_no_ratio(tables: Path, tmp_path: Path) -> None:
    rows = [{"variant": "hybrid_async", "images_per_second": 800.0}]
    (tables / "free.json").write_text(json.dumps(rows))
    said = scaling.describe(tables, many(tmp_path, ["data_parallel"], seeds=1))
    assert "* rate of a host's link (Mbit/s) no limit: -" in said.splitlines()
    assert "nan" not in said


def test_what_waits_in_its_backward_pass_is_not_shown_as_computing(tmp_path: Path) -> None:
    """Neither by what such a run logged itself once, nor by its phases."""
    backward = {"time/step_ms": 10.0, "time/backward_ms": 9.0}
    phases = backward | {"time/forward_ms": 0.5, "time/optimizer_ms": 0.5}
    old = {f"utilisation/node_{node}_computed_percent": 99.0 for node in (0, 1)}
    counters = {f"utilisation/node_{node}_counter_percent": 80.0 for node in (0, 1)}
    for number, metrics in enumerate((phases | counters, phases | counters | old)):
        run = recorded(
            tmp_path,
            f"rival_{number}",
            found=summary(f"rival_{number}"),
            lines=[(10, metrics), (20, metrics)],
            exchange={"kind": "ddp_powersgd"},
        )
        found = utilisation.nodes(study(run), run)
        assert sorted(found) == [0, 1]
        assert all(len(node.computed) == 0 and len(node.counter) == 2 for node in found.values())
        assert "so computing cannot be separated" in utilisation.describe(study(run))
        assert utilisation.draw(study(run)).axes


def test_a_rate_of_each_window_goes_before_the_largest_of_the_run(tmp_path: Path) -> None:
    """The curvature may be largest while the rate is still low."""
    late = {"kind": "delayed", "delay": 1}
    metrics = {"train/loss": 2.0, "staleness/curvature": 5.0, "staleness/lr_over_stable": 0.5}
    lines = [(10, metrics), (20, metrics | {"staleness/lr_over_stable": 0.75})]
    runs = study(recorded(tmp_path, "a", 0, summary("a"), lines, exchange=late, optimizer=MOMENTUM))
    (point,) = staleness.points(runs)
    assert point.of_limit == 0.75


def test_nodes_that_step_alone_are_not_on_the_map_of_late_gradients(tmp_path: Path) -> None:
    lines = [(10, {"train/loss": 2.0, "staleness/curvature": 0.5})]
    counts = []
    for number, kind in enumerate(("averaging", "delayed")):
        late = {"kind": kind, "delay": 1}
        place = tmp_path / kind
        place.mkdir()
        runs = study(recorded(place, "a", number, summary("a"), lines, exchange=late))
        map_, sides, _ = staleness.draw(runs).axes
        counts.append([sum(len(line.get_xdata()) == 1 for line in a.lines) for a in (map_, sides)])
    assert counts == [[0, 1], [1, 1]]


def test_a_run_lies_where_its_rate_and_curvature_put_it(tmp_path: Path) -> None:
    late = {"kind": "delayed", "delay": 1}
    lines = [
        (10, {"train/loss": 2.0, "staleness/curvature": 0.5}),
        (20, {"train/loss": 1.5, "staleness/curvature": 0.4}),
    ]
    runs = study(
        recorded(
            tmp_path, "a", 0, summary("a"), lines, exchange=late, optimizer=MOMENTUM | {"lr": 0.4}
        )
    )
    (point,) = staleness.points(runs)
    assert (point.dynamics.delay, point.lr, point.curvature, point.loss) == (1, 0.4, 0.5, 1.5)
    assert point.of_limit == pytest.approx(2.0, rel=1e-3)
    lines.append((30, {"train/loss_nonfinite": 1.0}))
    (lost,) = staleness.points(study(recorded(tmp_path, "b", 0, None, lines)))
    assert math.isinf(lost.loss)
    assert "its loss is not finite" in staleness.describe(
        study(recorded(tmp_path, "c", 0, None, lines))
    )


def test_a_wait_that_was_not_measured_is_not_said_to_be_none(tmp_path: Path) -> None:
    short = recorded(tmp_path, "short", 0, untimed(summary("short")))
    ddp = recorded(tmp_path, "ddp", 0, summary("ddp"), exchange={"kind": "ddp_powersgd"})
    found = study(short, ddp)
    said = phases.describe(found)
    assert "`short`: the time that it waits was not measured" in said
    assert "`ddp`: the time that it waits was not measured" in said
    labels = [text.get_text() for text in phases.draw(found).axes[0].texts]
    assert labels == ["no speed was measured", "100 ms, wait unknown"]


def test_means_leave_out_runs_of_which_no_window_was_timed(tmp_path: Path, tables: Path) -> None:
    """They are stored as 0."""
    runs = [summary(), untimed(summary(seed=1))]
    some = [recorded(tmp_path, "data_parallel", run.seed, run) for run in runs]
    none = recorded(tmp_path, "short", 0, untimed(summary("short")))
    found = study(*some, none)
    shares = phases.numbers(found.variants).set_index(["variant", "phase"])["mean"]
    assert shares["data_parallel", "forward"] == 20.0
    assert math.isnan(shares["short", "forward"])
    assert "`data_parallel` waits for 30% of its step" in phases.describe(found)
    sent = traffic.numbers(found.variants).set_index(["variant", "link"])["counted_window"]
    assert sent["data_parallel", "cross_node"] == 12.5
    assert math.isnan(sent["short", "cross_node"])
    assert "no bytes were counted" in [t.get_text() for t in traffic.draw(found).axes[0].texts]
    assert traffic.describe(study(none)) == "* no bytes were counted"
    guessed = foreseen(found, 960.0)
    said = scaling.describe(tables, guessed)
    assert "of the study which (possibly logged after it ran) are off by 25% (median)" in said
    unknown = foreseen(study(none))
    assert "of the study" not in scaling.describe(tables, unknown)
    widths = [p.get_width() for p in scaling.draw(tables, found).axes[-1].patches]
    assert widths == [1280.0]
    for name, figure in all_figures(found, tables).items():
        assert_readable(figure)
        assert figure.axes, name


def test_a_run_that_logged_no_loss_is_not_said_to_have_diverged(tmp_path: Path) -> None:
    """It has just begun, or was killed before its first line."""
    late, lines = {"kind": "delayed", "delay": 1}, [(10, {"staleness/curvature": 0.5})]
    young = replace(recorded(tmp_path, "young", 0, None, lines, exchange=late), failure=None)
    wild = replace(
        recorded(tmp_path, "wild", 0, None, lines, exchange=late),
        failure=f"{DIVERGED}: the loss of window 3 is not finite",
    )
    found = study(young, wild)
    first, second = staleness.describe(found).splitlines()
    assert first.endswith("its loss was not recorded")
    assert second.endswith("its loss is not finite")
    map_ = staleness.draw(found).axes[0]
    (marker,) = [line for line in map_.lines if len(line.get_xdata()) == 1]
    assert marker.get_color() == styles_of(["young", "wild"])["wild"].colour


def test_what_was_not_measured_has_no_marker_at_zero(tmp_path: Path) -> None:
    """A variant that failed, and waits inside a backward pass."""
    ddp = recorded(tmp_path, "ddp", 0, summary("ddp"), exchange={"kind": "ddp_powersgd"})
    base = recorded(tmp_path, "data_parallel", 0, summary())
    figure = phases.draw(study(base, ddp, recorded(tmp_path, "failed")))
    markers = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 1]
    styles = styles_of(["data_parallel", "ddp", "failed"])
    drawn = [[m for m in markers if m.get_color() == each.colour] for each in styles.values()]
    ordered = dict(zip(styles, drawn, strict=True))
    assert len(ordered["data_parallel"]) == len(phases.SPREAD)
    assert len(ordered["ddp"]) == 2, "forward and backward"
    assert ordered["failed"] == []


def test_a_counter_above_100_percent_is_drawn_whole(tmp_path: Path) -> None:
    of_node = "utilisation/node_0"
    lines = [
        (window, {f"{of_node}_counter_percent": counter, f"{of_node}_computed_percent": 50.0})
        for window, counter in ((10, 118.0), (20, 142.0))
    ]
    run = recorded(tmp_path, "data_parallel", 0, summary(), lines)
    panel, means = utilisation.draw(study(run)).axes
    assert panel.get_ylim()[1] > 142
    assert means.get_xlim()[1] > 130
    few = many(tmp_path, ["hybrid_async"], seeds=1)
    assert {axes.get_ylim()[1] for axes in utilisation.draw(few).axes[:-1]} == {105.0}


def test_counters_count_while_the_run_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first line is of second 110 and its last of second 120."""
    samples = pd.Series([0.0, 90.0, 80.0, 0.0], index=[101.0, 112.0, 118.0, 130.0])
    monkeypatch.setattr(utilisation, "counters", lambda uri, run: {0: samples})
    step = {"time/step_ms": 10.0, "time/forward_ms": 2.0, "time/backward_ms": 3.0}
    lines = [(window, step | {"time/optimizer_ms": 1.0}) for window in (10, 20)]
    run = recorded(tmp_path, "data_parallel", 0, summary(), lines)
    (node,) = utilisation.nodes(study(run), run).values()
    assert node.counter.to_dict() == {2.0: 90.0, 8.0: 80.0}
    assert list(node.computed) == [60.0, 60.0]
