"""The fault bench damages what it says, once, and its table hides nothing that went wrong."""

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import faulty_rank
from benchmarks.faults import EXPECTED, Found, table, write
from benchmarks.faulty_rank import FAULTS, is_first_time, newest

FINE = Found("kill a rank", 0, 7.25, True, 30.0, 10, True, True, "rank 3 was killed by SIGKILL")


def test_it_is_known_what_each_fault_is_to_be_called() -> None:
    assert EXPECTED.keys() == FAULTS.keys()


def test_a_fault_comes_once(tmp_path: Path) -> None:
    assert is_first_time(tmp_path)
    assert not is_first_time(tmp_path)


@pytest.mark.parametrize(("fault", "differs"), [("truncate a checkpoint", 5), ("flip a bit", 1)])
def test_the_newest_checkpoint_is_damaged(fault: str, differs: int, tmp_path: Path) -> None:
    content = bytes(range(10))
    for name in ("000000020", "000000040", "000000060.partial"):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "backbone.safetensors").write_bytes(content)
    assert newest(tmp_path).name == "000000040"
    with mock.patch.object(faulty_rank, "kill"):
        FAULTS[fault](mock.Mock(), tmp_path, 0)
    found = (newest(tmp_path) / "backbone.safetensors").read_bytes()
    kept = sum(one == two for one, two in zip(found, content, strict=False))
    assert len(content) - kept == differs
    other = tmp_path / "checkpoints" / "000000020" / "backbone.safetensors"
    assert other.read_bytes() == content


def test_the_table_tells_what_went_wrong(tmp_path: Path) -> None:
    lost = replace(FINE, fault="NaN", named=False, equal=False, in_store=False)
    silent = replace(FINE, fault="stop the store", ended_after=None, trained_after=None, named=None)
    lines = table([FINE, lost, replace(silent, windows_lost=None)])
    assert lines[2:] == [
        "| kill a rank | 7.2 s | yes | 30.0 s | 10 | yes | yes |",
        "| NaN | 7.2 s | NO | 30.0 s | 10 | NO | NO |",
        "| stop the store | - | - | - | - | yes | yes |",
    ]
    write(tmp_path, [FINE])
    record = json.loads((tmp_path / "localhost.json").read_text())
    assert record["found"][0]["said"] == FINE.said
    assert record["versions"]["torch"]
