"""A resumed run equals the undisturbed one to the bit, on two nodes of two ranks each."""

import json
from typing import Any

import pytest

from tests.horovodrun import horovodrun
from tests.train.resume_cases import CASES

RANKS = range(4)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each rank found, of each case; one horovodrun goes through all of them."""
    ended = horovodrun(
        ["-m", "tests.train.resume_program", str(tmp_path_factory.mktemp("resume"))],
        timeout=280,
        environment={"HOROVOD_CYCLE_TIME": "5"},
    )
    lines = [[json.loads(line) for line in ended.lines(rank) if line[:1] == "{"] for rank in RANKS]
    return {of_rank[0]["case"]: list(of_rank) for of_rank in zip(*lines, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_undisturbed_one(found: dict[str, list[Any]], case: str) -> None:
    """Values, statistics, the optimizer's state, and what the exchange carries, on every rank."""
    assert [of_rank["differing"] for of_rank in found[case]] == [[], [], [], []]


def test_a_full_disk_of_one_rank_is_all_ranks_affair(found: dict[str, list[Any]]) -> None:
    """Training goes on; what cannot be written leaves nothing, and the ones before stay."""
    for of_rank in found["disks"]:
        ((name, line),) = of_rank["once"]
        assert name == "checkpoint"
        assert "checkpoints/000000004 cannot be written ([Errno 28] No space left on" in line
        assert of_rank["left"] == ["000000002", "000000006"]
        assert "checkpoints/000000006 cannot be written" in of_rank["last"]
        assert of_rank["last"].endswith("the run has ended and its model is not saved")
        assert of_rank["last left"] == ["000000002", "000000004"]


def test_hosts_without_a_common_folder_are_told_before_the_training(
    found: dict[str, list[Any]],
) -> None:
    of_ranks = found["folders"]
    assert [of_rank["shared"] for of_rank in of_ranks] == [""] * 4
    assert [of_rank["apart, nothing saved"] for of_rank in of_ranks] == [""] * 4
    assert [of_rank["left"] for of_rank in of_ranks] == ["[]"] * 4
    told = [of_rank["apart"] for of_rank in of_ranks]
    assert (told[0], told[1], told[3]) == ("said by another",) * 3
    assert "does not see files that" in told[2]
    assert "\n" not in told[2]
