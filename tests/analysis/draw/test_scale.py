"""The sweep's figure by a handmade sweep; the shipped sweep by simulating some of it again."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.draw import scale
from analysis.scale_grid import CLASSES, GBIT, RANKS, VARIANTS, Point, simulated
from harness.plan.machines import read_cluster
from tests.pictures import assert_readable, assert_units

ROOT = Path(__file__).resolve().parents[3]
SWEEP = ROOT / "analysis/scale/sweep.csv"
MACHINES = ROOT / "experiments/clusters/h100-400g.yaml"


@pytest.fixture
def sweep() -> pd.DataFrame:
    """Two variants and the ceiling at 32 cards: one twice as fast at 1 Gbit/s, equal at 400."""
    rows = [
        (32, 10_000, 1.0, "data_parallel", 50.0, True),
        (32, 10_000, 1.0, "hybrid_async", 100.0, True),
        (32, 10_000, 1.0, "ceiling", 200.0, True),
        (32, 10_000, 400.0, "data_parallel", 100.0, True),
        (32, 10_000, 400.0, "hybrid_async", 102.0, True),
        (32, 10_000, 400.0, "ceiling", 200.0, True),
        (32, 1_000_000, 1.0, "data_parallel", 500.0, False),
        (32, 1_000_000, 1.0, "hybrid_async", 30.0, True),
    ]
    columns = ["ranks", "classes", "gbit_per_second", "variant", "images_per_second", "fits"]
    return pd.DataFrame(rows, columns=columns).assign(sampling=1.0)


def test_the_fastest_is_one_that_fits_and_is_no_ceiling(sweep: pd.DataFrame) -> None:
    best = scale.winners(sweep, 32)
    assert list(best["variant"]) == ["hybrid_async"] * 3
    assert list(best["lead"])[:2] == pytest.approx([2.0, 1.02])
    assert [scale.times(lead) for lead in best["lead"]] == ["2.00x", "1.02x", "-"]


def test_shares_are_of_the_ceiling_at_the_same_place() -> None:
    rows = scale.along(scale.by_sampling(scale.read(SWEEP))["All classes"], "gbit_per_second")
    place = (rows["ranks"] == scale.PLACE["ranks"]) & (rows["classes"] == scale.PLACE["classes"])
    assert place.all()
    late = rows[rows["variant"] == "hybrid_averaging"].set_index("gbit_per_second")["share"]
    assert late.is_monotonic_increasing
    assert 0 < late.iloc[0] < late.iloc[-1] <= 1.01


def test_variants_are_compared_among_those_that_sample_alike(sweep: pd.DataFrame) -> None:
    fast = sweep.assign(variant=sweep["variant"] + "_sampled", sampling=0.1)
    fast["images_per_second"] *= 10
    parts = scale.by_sampling(pd.concat([sweep, fast]))
    assert list(parts) == ["All classes", "10% of the classes in a micro-batch"]
    for part, ending in zip(parts.values(), ("", "_sampled"), strict=True):
        best = scale.winners(part, 32)
        assert list(best["variant"]) == [f"hybrid_async{ending}"] * 3
        assert list(best["lead"])[:2] == pytest.approx([2.0, 1.02])


def test_the_figure_is_readable_and_has_units() -> None:
    figure = scale.draw(scale.read(SWEEP))
    assert_readable(figure)
    assert_units(figure)


def test_what_does_not_fit_is_said() -> None:
    text = scale.describe(scale.read(SWEEP))
    assert "`data_parallel_int8` does not fit from 10M classes on" in text


def test_the_shipped_sweep_is_whole() -> None:
    frame = scale.read(SWEEP)
    # One machine has no link to wait for: it is there once for all rates.
    places = len(CLASSES) * ((len(RANKS) - 1) * len(GBIT) + 1)
    assert len(frame) == places * len(VARIANTS)
    assert sorted(set(frame["ranks"])) == list(RANKS)


@pytest.mark.parametrize(
    ("point", "variant"),
    [
        (Point(8, 10_000, 1), "data_parallel"),
        (Point(32, 1_000_000, 25), "hybrid_averaging"),
        (Point(128, 100_000, 10), "data_parallel_k4_int8"),
        (Point(128, 10_000_000, 100), "world_late_int8"),
        (Point(128, 1_000_000, 25), "hybrid_averaging_sampled_paced"),
        (Point(128, 1_000_000, 100), "partial_fc_int8"),
    ],
)
def test_the_shipped_sweep_is_what_the_simulator_says(point: Point, variant: str) -> None:
    frame = scale.read(SWEEP).set_index(["ranks", "classes", "gbit_per_second", "variant"])
    row = frame.loc[(point.ranks, point.classes, point.gbit_per_second, variant)]
    found = simulated(read_cluster(MACHINES), point, variant)
    assert found["images_per_second"] == pytest.approx(row["images_per_second"], rel=1e-4)
    assert found["memory_gb"] == pytest.approx(row["memory_gb"], rel=1e-4)
    assert found["fits"] == row["fits"]
