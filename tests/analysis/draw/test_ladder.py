"""The ladder of trainings that are timed by the speeds of a link."""

import json
from pathlib import Path

import pytest

from analysis.draw import ladder
from harness.errors import UserError
from tests.compare.test_folder import RUNGS, keep

ROW = {"cross_node_mb": 1.0, "delay": 0, "phases_ms_by_block": [{"forward": 1.0}] * 3}


def kept(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """Trainings of these variants, at 1,000 images/s each, and a table of other speeds."""
    for name in names:
        for seed in range(3):
            keep(folder / "trainings", name, seed, **RUNGS[name])
    table = folder / "headline.json"
    rates = {name: [100.0 * 2**number] * 3 for number, name in enumerate(names)}
    rows = [
        {"variant": name, "rates": each, "drains_ms": [0.0] * 3} | ROW
        for name, each in rates.items()
    ]
    table.write_text(json.dumps(rows))
    return folder / "trainings", table


def test_each_rung_has_the_speed_of_the_table(tmp_path: Path) -> None:
    found = ladder.read(*kept(tmp_path, list(RUNGS)))
    assert [rung.variant.name for rung in found.rungs] == list(RUNGS)
    speeds = [rung.images_per_second.estimate for rung in found.rungs]
    assert speeds == pytest.approx([100.0, 200.0, 400.0])
    assert "int8_k2" in ladder.describe(found)
    assert ladder.draw(found).png().startswith(b"\x89PNG")


def test_variants_that_are_no_rungs_have_no_ladder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"do not form a ladder"):
        ladder.read(*kept(tmp_path, ["data_parallel"]))
