"""The largest curvature, on real ranks, against double backward passes of the dense program."""

import json
from functools import cache
from statistics import fmean
from typing import Any

import pytest
import torch

from harness.exchange.flat import BLOCK
from harness.train import curvature
from tests.horovodrun import horovodrun

LAYOUTS = pytest.mark.parametrize("layout", ["replicated", "node", "world"])


@cache
def results() -> dict[str, Any]:
    found = horovodrun(
        ["-m", "tests.train.curvature_program"],
        timeout=300,
        environment={"HOROVOD_CYCLE_TIME": "5"},
    )
    lines = [json.loads(line) for line in found.lines(0) if line.startswith("{")]
    return {line["layout"]: line for line in lines}


@LAYOUTS
def test_it_is_the_largest_eigenvalue_of_the_dense_hessian(layout: str) -> None:
    """Of a node's images, the mean over nodes; where all ranks hold one copy, of all images."""
    found = results()[layout]
    assert len(found["expected"]) == (1 if layout == "world" else 2)
    assert found["found"] == pytest.approx(fmean(each[-1] for each in found["expected"]), rel=5e-3)
    second = fmean(each[0] for each in found["expected"])
    assert abs(found["found"] - second) > 1e-2 * second, "the next one would do as well"


@LAYOUTS
def test_values_statistics_and_random_states_stay_to_the_bit(layout: str) -> None:
    assert results()[layout]["traces"] == 0


@LAYOUTS
def test_a_training_goes_on_as_if_nothing_had_been_measured(layout: str) -> None:
    assert results()[layout]["changed"] == 0


@LAYOUTS
def test_a_rank_short_of_memory_leaves_all_without_an_estimate_and_the_training_as_it_is(
    layout: str,
) -> None:
    found = results()[layout]
    assert found["estimated"]
    assert not found["estimated_where_short"]
    assert found["changed_where_short"] == 0
    assert any(
        "the curvature is not estimated after 1 window," in w for w in found["said_where_short"]
    )


def test_a_runs_last_word_on_how_far_nodes_are_apart_is_of_before_they_met() -> None:
    assert {layout: found["distance"] for layout, found in results().items()} == {
        "replicated": None,
        "node": pytest.approx(0.05, abs=0.05),
        "world": None,
    }
    assert results()["node"]["distance"] > 0


def test_a_dot_product_in_blocks_is_the_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCK, "cpu", 3)
    one, other = torch.randn(2, 10)
    assert float(curvature._dot(one, other)) == pytest.approx(float(one.double() @ other.double()))
