"""A resumed run equals the undisturbed one to the bit, on two nodes of two ranks each."""

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.horovodrun import horovodrun
from tests.train.resume_cases import APART, CASES

RANKS = range(4)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each rank found, of each case; one horovodrun goes through all of them."""
    ended = horovodrun(
        ["-m", "tests.train.resume_program", str(tmp_path_factory.mktemp("resume"))],
        timeout=600,
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


def test_hosts_find_out_whether_they_share_a_folder(found: dict[str, list[Any]]) -> None:
    for of_rank in found["folders"]:
        assert of_rank["shared"] == [0, 0, 0, 0]
        assert of_rank["apart"] == [0, 0, 2, 2]
        assert of_rank["left"] == [[], []]
    told = [of_rank["taken"] for of_rank in found["folders"]]
    assert told[2].startswith("--folder /run already contains a run; give another")
    assert [told[0], told[1], told[3]] == ["said by another"] * 3


EDGES = {"world": [[0, 3, 6], [6, 9, 13]], "node": [[0, 6, 13], [0, 6, 13]]}
PARTS = {
    layout: [
        [f"classifier-{start:09d}-{stop:09d}.safetensors" for start, stop in pairwise(edges)]
        for edges in of_nodes
    ]
    for layout, of_nodes in EDGES.items()
}
"""The slices that each node keeps."""


@pytest.mark.parametrize("layout", APART)
def test_hosts_that_share_no_folder_keep_what_they_own(
    found: dict[str, list[Any]], layout: str
) -> None:
    of_ranks = found[f"apart {layout}"]
    for rank, of_rank in enumerate(of_ranks):
        whole = ["backbone.safetensors", "checkpoint.json", *PARTS[layout][rank // 2]]
        assert of_rank["files"] == {"000000004": whole, "000000006": whole}
        assert of_rank["note"].startswith("localhost, 127.0.0.1 do not share /")
        assert of_rank["taken"] == ["000000006", ""]
        assert of_rank["differing"] == []
        # The second host loses its second slice.
        lost = f"{PARTS[layout][1][1]} is missing (on 127.0.0.1"
        lost += "; it is on localhost)" if layout == "node" else ")"
        assert f" takes 000000004; skipped 000000006: {lost}" in of_rank["skipped"]
    told = [of_rank["refused"] for of_rank in of_ranks]
    assert "is missing (on 127.0.0.1" in told[0]
    assert told[1:] == ["said by another"] * 3
