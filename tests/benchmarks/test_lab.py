"""The page that `make lab` leaves, from numbers at hand."""

import json
from pathlib import Path

from benchmarks.lab_page import page, table


def variant(name: str, rate: float, ratio: float, wait: float) -> dict[str, object]:
    return {
        "variant": name,
        "images_per_second": rate,
        "ratio": ratio,
        "ratio_quartiles": [ratio - 0.02, ratio + 0.02],
        "exchange_wait_percent": wait,
    }


MEASURED = [
    variant("ceiling", 1000.0, 1.0, 0.0),
    variant("hybrid_averaging", 960.0, 0.961, 1.23),
    variant("data_parallel", 192.0, 0.19, 88.8),
]


def test_rates_stand_beside_the_ceiling_and_the_baseline() -> None:
    assert table(MEASURED) == [
        "| variant | images/s | of ceiling | quartiles | of data_parallel | exchange wait |",
        "|:--|--:|--:|--:|--:|--:|",
        "| ceiling | 1000 | 1.000 | 0.98 - 1.02 | 5.21x | 0.0 % |",
        "| hybrid_averaging | 960 | 0.961 | 0.94 - 0.98 | 5.00x | 1.2 % |",
        "| data_parallel | 192 | 0.190 | 0.17 - 0.21 | 1.00x | 88.8 % |",
    ]


def test_without_the_baseline_nothing_is_measured_against_it() -> None:
    assert table(MEASURED[:2])[-1] == "| hybrid_averaging | 960 | 0.961 | 0.94 - 0.98 |  | 1.2 % |"


def test_the_page_holds_what_was_measured_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "rate.json").write_text(json.dumps({"mbit_per_second": {"slow": 125}}))
    (tmp_path / "rate-slow.json").write_text(json.dumps(MEASURED))
    assert "## rate-slow" in page(tmp_path)
    assert "## lab" not in page(tmp_path)
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "comparison.md").write_text("# lab: 4 ranks\n\n| a |\n")
    assert page(tmp_path).rstrip().endswith("## lab: 4 ranks\n\n| a |")
