"""Where lateness pays, from tables and a study at hand."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from analysis.draw import lateness, scale
from tests.pictures import assert_readable
from tests.recorded import summary

IMAGES = {"data_parallel": 10_000.0, "hybrid_averaging": 12_000.0, "ddp_powersgd": 15_000.0}
RATES = {
    "map-fast": {"ceiling": 1000, "data_parallel": 800, "hybrid_averaging": 900, "other": 5},
    "map-slow": {
        "ceiling": 1000,
        "data_parallel": 100,
        "hybrid_averaging": 960,
        "ddp_powersgd": 500,
    },
    "elsewhere": {"ceiling": 1, "data_parallel": 1},
}


def condition(mbit: float, latency: str | None) -> dict[str, object]:
    return {"hosts": 2, "ranks": 4, "classes": 1000, "mbit_per_second": mbit, "latency": latency}


def drained(variant: str) -> dict[str, object]:
    """Half a second until what is late has landed."""
    late = variant == "hybrid_averaging"
    return {"delay": int(late), "drains_ms": [500.0 * late]}


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    conditions = {
        "map-fast": condition(500, None),
        "map-slow": condition(20, "20ms"),
        "elsewhere": condition(1, None),
    }
    (tmp_path / "conditions.json").write_text(json.dumps(conditions))
    for name, rates in RATES.items():
        rows = [
            {"variant": each, "images_per_second": rate} | drained(each)
            for each, rate in rates.items()
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def test_time_to_accuracy_is_images_by_throughput(tables: Path) -> None:
    slow, fast = lateness.places(tables, IMAGES)
    assert (fast.lost, slow.lost) == pytest.approx((0.2, 0.9))
    assert fast.seconds == pytest.approx(
        {"data_parallel": 10_000 / 800, "hybrid_averaging": 12_000 / 900 + 0.5}
    )
    assert fast.faster == pytest.approx((10_000 / 800) / (12_000 / 900 + 0.5)), (
        "below 1: it does not pay"
    )
    assert slow.best(late=False) == "ddp_powersgd"
    assert slow.faster == pytest.approx((15_000 / 500) / (12_000 / 960 + 0.5))


def test_the_table_names_both_and_the_link(tables: Path) -> None:
    lines = lateness.describe(tables, IMAGES).splitlines()
    assert lines[-1] == (
        "| 1,000 | 500 Mbit/s, no latency | 20% | hybrid_averaging, 13.8 s | data_parallel, 12.5 s "
        "| 0.90x |"
    )
    assert lines[-2].startswith(
        "| 1,000 | 20 Mbit/s, 20ms one way | 90% | hybrid_averaging, 13.0 s"
    )


def test_a_variant_of_which_a_run_misses_the_target_needs_for_ever() -> None:
    runs = [summary("one", accuracies=(0.5, 0.8)), summary("one", accuracies=(0.8, 0.9), seed=1)]
    runs += [summary("other", accuracies=(0.5, 0.9)), summary("other", accuracies=(0.5,), seed=1)]
    assert lateness.images_to(runs, 0.8) == {"one": (25_600 + 12_800) / 2, "other": math.inf}


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
    return frame.assign(fits=(frame["classes"] < 1e6) | (frame["variant"] != "hybrid_async"))


def test_a_lead_is_of_the_best_late_variant_that_fits_over_the_best_that_waits(
    sweep: pd.DataFrame,
) -> None:
    found = lateness.leads(sweep, 512)
    assert found.loc[10_000].tolist() == [2.0, 2.0]
    assert found.loc[1_000_000].tolist() == [1.5, 1.5]


def test_it_is_a_picture(tables: Path, sweep: pd.DataFrame) -> None:
    picture = lateness.draw(tables, IMAGES, sweep)
    titles = [axes.get_title() for axes in picture.axes]
    assert titles[:2] == ["1,000 classes, 20ms one way", "1,000 classes, no latency"]
    assert len(titles) == 2 + len(scale.MAPS)
    assert_readable(picture)
    assert picture.png().startswith(b"\x89PNG")
