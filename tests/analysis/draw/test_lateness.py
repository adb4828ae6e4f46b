"""Where lateness pays, from tables and a study at hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.draw import lateness, scale
from harness.compare.colours import in_order
from harness.config import Config
from harness.tracking.failure import divergence
from harness.tracking.results import Target, Variant
from tests.pictures import assert_readable
from tests.recorded import PHASES_MS, summary

DRAIN = 0.5
"""Seconds until what is late has landed."""
RATES = {
    "map-fast": {"ceiling": 1000, "data_parallel": 800, "hybrid_averaging": 900, "other": 5},
    "map-slow": {
        "ceiling": 1000,
        "data_parallel": 100,
        "hybrid_averaging": 960,
        "ddp_powersgd": 500,
    },
    "headline-far": {"ceiling": 1000, "data_parallel": 50, "hybrid_averaging": 900},
    "map-many": {"ceiling": 500, "data_parallel": 250, "hybrid_averaging": 400},
    "elsewhere": {"ceiling": 1, "data_parallel": 1},
}
NOISE = (0.9, 1.0, 1.1)
"""The rates of three rounds, of which each seed has one."""
TO_TARGET = {"data_parallel": 2, "hybrid_averaging": 2, "ddp_powersgd": 3}
"""Evaluations, 12,800 images apart, until the target."""


def condition(mbit: float, latency: str | None, classes: int = 1000) -> dict[str, object]:
    return {"hosts": 2, "ranks": 4, "classes": classes, "mbit_per_second": mbit, "latency": latency}


def row(variant: str, rate: float) -> dict[str, object]:
    late = variant == "hybrid_averaging"
    return {
        "variant": variant,
        "images_per_second": rate,
        "rates": [rate * noise for noise in NOISE],
        "drains_ms": [1e3 * DRAIN * late] * len(NOISE),
        "phases_ms_by_block": [PHASES_MS] * len(NOISE),
        "cross_node_mb": 1.0,
        "delay": int(late),
    }


def trained(name: str, evaluations: int, runs: int = 3) -> Variant:
    config = Config.model_validate({"name": name, "train": {"steps": 300}})
    accuracies = (0.5,) * (evaluations - 1) + (0.9,) * (4 - evaluations)
    found = [summary(name, seed=seed, accuracies=accuracies) for seed in range(runs)]
    return Variant(config, tuple(found), (divergence("loss, window 3"),) * (3 - runs))


TARGET = Target(0.85, "given")
STUDY = lateness.Study(tuple(trained(*each) for each in TO_TARGET.items()), TARGET)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    conditions = {
        "map-fast": condition(500, None),
        "map-slow": condition(20, "20ms"),
        "headline-far": condition(20, "60ms"),
        "map-many": condition(20, None, classes=3755),
        "map-not-measured": condition(1, None),
        "elsewhere": condition(1, None),
    }
    (tmp_path / "conditions.json").write_text(json.dumps(conditions))
    for name, rates in RATES.items():
        rows = [row(each, rate) for each, rate in rates.items()]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def test_time_to_accuracy_is_images_by_the_throughput_of_a_seeds_rounds(tables: Path) -> None:
    slow, far, fast, _ = lateness.places(tables, STUDY)
    assert (fast.lost, slow.lost) == pytest.approx((0.2, 0.9))
    assert set(fast.seconds) == {"data_parallel", "hybrid_averaging"}
    assert far.lost == pytest.approx(0.95)
    expected = {seed: 25_600 / 800 / noise for seed, noise in enumerate(NOISE)}
    assert fast.seconds["data_parallel"] == pytest.approx(expected)
    late = {seed: 25_600 / 900 / noise + DRAIN for seed, noise in enumerate(NOISE)}
    assert fast.seconds["hybrid_averaging"] == pytest.approx(late)
    assert fast.speedup.estimate == pytest.approx(32 / (25_600 / 900 + DRAIN), rel=0.01)
    assert fast.speedup.low < fast.speedup.estimate < fast.speedup.high
    assert slow.best(late=False) == "ddp_powersgd"
    assert slow.speedup.estimate == pytest.approx((38_400 / 500) / (25_600 / 960 + DRAIN), rel=0.01)


def test_without_a_training_of_so_many_classes_it_is_throughput(tables: Path) -> None:
    *_, many = lateness.places(tables, STUDY)
    assert not many.learned
    expected = {number: 1000 / 400 / noise for number, noise in enumerate(NOISE)}
    assert many.seconds["hybrid_averaging"] == pytest.approx(expected)
    assert many.speedup.estimate == pytest.approx(400 / 250)


def test_the_table_names_both_and_the_link(tables: Path) -> None:
    slow, _, fast, many = lateness.describe(tables, STUDY).splitlines()[2:]
    assert slow.startswith(
        "| 1,000 | 20 Mbit/s, 20ms one way | 90% | to the target | hybrid_averaging, 27.3 "
    )
    assert fast == (
        "| 1,000 | 500 Mbit/s, no latency | 20% | to the target | hybrid_averaging, 29.1 | "
        "data_parallel, 32.2 | 1.11x (1.10-1.11) |"
    )
    assert " | 50% | for 1,000 images | hybrid_averaging, 2.5 | data_parallel, 4.0 | 1.60x" in many


@pytest.mark.parametrize("misses", [trained("other", 4, runs=3), trained("other", 1, runs=2)])
def test_a_variant_of_which_a_run_misses_the_target_or_diverges_has_no_time(
    misses: Variant,
) -> None:
    assert lateness.Study((misses,), TARGET).seconds([row("other", 100)]) == {"other": {}}


@pytest.fixture
def missed() -> lateness.Study:
    """The study with a late variant of which two runs diverged."""
    base, late, rival = STUDY.variants
    return lateness.Study((base, trained(late.name, 2, runs=1), rival), TARGET)


def test_what_has_no_time_has_a_dash(
    missed: lateness.Study, tables: Path, sweep: pd.DataFrame
) -> None:
    slow, _, fast, _ = lateness.describe(tables, missed).splitlines()[2:]
    assert fast.endswith("| hybrid_averaging, - | data_parallel, 32.2 | - |")
    assert slow.endswith("| hybrid_averaging, - | ddp_powersgd, 77.3 | - |")
    assert lateness.draw(tables, missed, sweep).png().startswith(b"\x89PNG")
    lacking = sweep.assign(fits=sweep["fits"] & (sweep["classes"] < 1e6))
    lacking.loc[lacking["variant"] == "data_parallel", "fits"] = True
    maps = lateness.draw(tables, STUDY, lacking).axes[-len(scale.MAPS) :]
    texts = [text.get_text() for axes in maps for text in axes.texts]
    assert "-" in texts
    assert "nanx" not in texts


def test_seeds_are_paired_by_their_number(tables: Path) -> None:
    """A seed that failed in one variant is in no ratio."""
    base, late, rival = STUDY.variants
    lame = replace(base, summaries=base.summaries[1:], failures=("FAILED",))
    _, _, fast, _ = lateness.places(tables, lateness.Study((lame, late, rival), TARGET))
    assert sorted(fast.seconds["data_parallel"]) == [1, 2]
    own, others = fast.seconds["data_parallel"], fast.seconds["hybrid_averaging"]
    expected = math.sqrt(own[1] / others[1] * own[2] / others[2])
    assert fast.speedup.estimate == pytest.approx(expected)


def test_the_range_over_seeds_is_drawn(tables: Path, sweep: pd.DataFrame) -> None:
    slow, _, fast, _ = lateness.places(tables, STUDY)
    panel, *_ = lateness.draw(tables, STUDY, sweep).axes
    ends = [part[:, 1].tolist() for each in panel.collections for part in each.get_segments()]
    seconds = [slow.seconds[name].values() for name in in_order(fast.seconds)]
    assert ends == [pytest.approx([min(each), max(each)]) for each in seconds]


@pytest.fixture
def sweep() -> pd.DataFrame:
    """On 32 and 512 cards; the late one that is faster does not fit with a million classes."""
    columns = ["ranks", "classes", "gbit_per_second", "variant", "delay", "images_per_second"]
    rows = [
        (cards, classes, gbit, name, delay, rate * gbit)
        for cards in scale.MAPS
        for classes in (10_000, 1_000_000)
        for gbit in (10.0, 25.0)
        for name, delay, rate in (
            ("data_parallel", 0, 10.0),
            ("world_sync", 0, 20.0),
            ("hybrid_averaging", 1, 30.0),
            ("hybrid_async", 1, 40.0),
            ("ceiling", 0, 90.0),
        )
    ]
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.assign(sampling=1.0)
    return frame.assign(fits=(frame["classes"] < 1e6) | (frame["variant"] != "hybrid_async"))


def test_a_lead_is_of_the_best_late_variant_that_fits_over_the_best_that_waits(
    sweep: pd.DataFrame,
) -> None:
    found = lateness.leads(sweep, 512)
    assert found.loc[10_000].tolist() == [2.0, 2.0]
    assert found.loc[1_000_000].tolist() == [1.5, 1.5]


def test_it_is_a_picture(tables: Path, sweep: pd.DataFrame) -> None:
    picture = lateness.draw(tables, STUDY, sweep)
    above = picture.subfigs[0].axes[0]
    drawn = {line.get_label() for line in above.get_lines()}
    assert {"data_parallel", "hybrid_averaging"} <= drawn
    assert "ddp_powersgd" not in drawn, "it was not measured in all places"
    titles = [axes.get_title() for axes in picture.axes if axes.get_visible()]
    assert titles[:4] == [
        "1,000 classes, 20ms one way",
        "1,000 classes, 60ms one way",
        "1,000 classes, no latency",
        "3,755 classes, no latency",
    ]
    assert len(titles) == 4 + len(scale.MAPS)
    labels = [axes.get_ylabel() for axes in picture.axes if axes.get_visible()]
    assert labels[:4] == ["seconds to the target", "", "", "seconds for 1,000 images"]
    assert_readable(picture)
    assert picture.png().startswith(b"\x89PNG")
