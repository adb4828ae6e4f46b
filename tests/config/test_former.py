"""Keys of earlier versions are read in recorded configs and refused in what a user writes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config import Config, load, load_resolved
from harness.config.former import REMOVED, RENAMED
from harness.config.section import keys_of
from harness.errors import UserError
from harness.tracking.failure import Failure, read_failures, write_failures

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Config.model_validate({"name": "late", "train": {"steps": 5}})


def recorded(**changes: Any) -> dict[str, Any]:
    """The values of a resolved config, with further keys `section__key`."""
    values = CONFIG.model_dump(mode="json")
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        values[section][key] = value
    return values


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_table_names_former_keys_and_present_ones() -> None:
    present = set(keys_of(Config))
    assert present.isdisjoint({*REMOVED, *RENAMED})
    assert present.issuperset({*REMOVED.values(), *RENAMED.values()})
    for former, name in RENAMED.items():
        assert former.split(".")[0] == name.split(".")[0]


@pytest.mark.parametrize("value", [True, False])
def test_a_removed_key_of_a_recorded_config_is_dropped(tmp_path: Path, value: bool) -> None:
    values = recorded(staleness__curvature_at_start=value)
    assert load_resolved(write(tmp_path, values)) == CONFIG
    flat = CONFIG.flattened() | {"staleness.curvature_at_start": str(value)}
    assert Config.from_flattened(flat, "store") == CONFIG


def test_a_renamed_key_of_a_recorded_config_is_read_as_the_present_one(tmp_path: Path) -> None:
    given = {
        "exchange": {"kind": "averaging", "max_pieces": 8, "powersgd_rank": 3},
        "optimizer": {"milestones": [0.25], "gamma": 0.5},
        "train": {"steps": 5, "matmul_seconds": 0.125},
    }
    config = Config.model_validate(given)
    values, flat = config.model_dump(mode="json"), config.flattened()
    for former, present in RENAMED.items():
        (section, old), new = former.split("."), present.split(".")[1]
        values[section][old] = values[section].pop(new)
        flat[former] = str(flat.pop(present))
    assert load_resolved(write(tmp_path, values)) == config
    known = {key: value for key, value in flat.items() if value is not None}
    assert Config.from_flattened(known, "store") == config


MESSAGES = {key: f"{key} was removed; use {other} instead" for key, other in REMOVED.items()} | {
    key: f"{key} is now called {other}; use that" for key, other in RENAMED.items()
}


@pytest.mark.parametrize("former", MESSAGES)
def test_a_users_former_key_is_refused_in_one_line(tmp_path: Path, former: str) -> None:
    section, key = former.split(".")
    said = MESSAGES[former]
    path = tmp_path / "user.yaml"
    path.write_text(f"{section}:\n  {key}: 1\n")
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value) == f"{path}, line 2: {said}"
    path = write(tmp_path, {"train": {"steps": 5}})
    with pytest.raises(UserError) as caught:
        load(path, [f"{former}=true"])
    assert str(caught.value) == f"command line: {said}"


def test_failures_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    file, failure = tmp_path / "failures.json", Failure(config=CONFIG, reason="killed")
    write_failures([failure], file)
    text = file.read_text()
    former = text.replace('"curvature_every"', '"curvature_at_start": false,\n"curvature_every"')
    former = former.replace('"max_pieces"', '"most_pieces"')
    assert former != text
    file.write_text(former)
    assert read_failures(file) == (failure,)


def test_recorded_configs_are_read() -> None:
    files = sorted((ROOT / "analysis").glob("lab/trainings/*/config.yaml"))
    files += sorted((ROOT / "analysis").glob("store/mlartifacts/*/artifacts/config.yaml"))
    assert files
    for file in files:
        assert load_resolved(file).name
