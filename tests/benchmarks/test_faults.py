"""The fault bench damages what it says, once, and its table hides nothing that went wrong."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import fmean
from unittest import mock

import pytest

from benchmarks import faulty_rank
from benchmarks.faults import EXPECTED, Found, table, write
from benchmarks.faulty_rank import (
    EVERY,
    FAULTS,
    SOAKED,
    SOAKING,
    STARTED,
    drawn,
    is_first_time,
    lines_of,
    newest,
    soaked,
)

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


@pytest.mark.parametrize("fault", ["cut a link", "kill a host"])
def test_a_host_is_only_harmed_in_a_lab(fault: str, tmp_path: Path) -> None:
    with (
        mock.patch.object(faulty_rank.os, "kill") as killed,
        pytest.raises(RuntimeError, match="not on a test host"),
    ):
        FAULTS[fault](mock.Mock(), tmp_path, 0)
    killed.assert_not_called()


def test_faults_of_a_soak_leave_time_for_a_checkpoint_and_come_as_often_as_asked() -> None:
    due = [drawn(number, ranks=4, mean=100) for number in range(2000)]
    assert due == [drawn(number, ranks=4, mean=100) for number in range(2000)]
    assert min(each.after for each in due) > 2 * EVERY
    assert fmean(each.after for each in due) == pytest.approx(100, rel=0.05)
    assert {each.rank for each in due} == set(range(4))
    assert {each.fault for each in due} == set(SOAKING)


def test_a_soak_goes_on_with_the_next_fault_after_a_restart(tmp_path: Path) -> None:
    came = []
    note = {name: lambda *_, name=name: came.append(name) for name in FAULTS}
    with (
        mock.patch.dict(FAULTS, note),
        mock.patch.object(faulty_rank, "launched", return_value=mock.Mock(rank=0, size=1)),
    ):
        for number, first in enumerate((0, 40)):
            due, before = drawn(number, 1, 60), soaked(60, tmp_path)
            for window in range(first, first + due.after + 1):
                before(mock.Mock(), window)
    assert came == [drawn(number, 1, 60).fault for number in range(2)]
    lines = [json.loads(line) for line in (tmp_path / SOAKED).read_text().splitlines()]
    assert [line["window"] for line in lines] == [drawn(0, 1, 60).after, 40 + drawn(1, 1, 60).after]


def test_a_process_that_goes_on_after_its_fault_has_no_second_one(tmp_path: Path) -> None:
    """Though the next fault is due later, counted from the same start."""
    later = next(n for n in count() if drawn(n, 1, 60).after < drawn(n + 1, 1, 60).after)
    (tmp_path / SOAKED).write_text("{}\n" * later)
    came, before = [], soaked(60, tmp_path)
    with (
        mock.patch.dict(FAULTS, {name: lambda *_, name=name: came.append(name) for name in FAULTS}),
        mock.patch.object(faulty_rank, "launched", return_value=mock.Mock(rank=0, size=1)),
    ):
        for window in range(1000):
            before(mock.Mock(), window)
    assert came == [drawn(later, 1, 60).fault]
    (start,) = lines_of(tmp_path / STARTED)
    assert start["window"] == 1


def test_the_table_tells_what_went_wrong(tmp_path: Path) -> None:
    lost = replace(FINE, fault="NaN", named=False, equal=False, in_store=False)
    silent = replace(FINE, fault="stop the store", ended_after=None, trained_after=None, named=None)
    lines = table([FINE, lost, replace(silent, windows_lost=None)])
    assert lines[2:] == [
        "| kill a rank | 7.2 s | yes | 30.0 s | 10 | yes | yes |",
        "| NaN | 7.2 s | NO | 30.0 s | 10 | NO | NO |",
        "| stop the store | - | - | - | - | yes | yes |",
    ]


def test_what_is_not_injected_again_keeps_its_row(tmp_path: Path) -> None:
    write(tmp_path, [replace(FINE, fault="NaN"), FINE])
    write(tmp_path, [replace(FINE, fault="NaN", equal=False)])
    record = json.loads((tmp_path / "faults.json").read_text())
    assert list(record) == ["kill a rank", "NaN"]
    assert record["kill a rank"]["found"]["said"] == FINE.said
    assert record["NaN"]["measured"]["versions"]["torch"]
    lines = (tmp_path / "faults.md").read_text().splitlines()
    assert [line.split("|")[-3].strip() for line in lines[2:]] == ["yes", "NO"]
