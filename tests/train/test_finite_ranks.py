"""What is not finite on one rank ends all of them, with the same words, whatever nodes exchange."""

import json
from functools import cache
from typing import Any

import pytest

from tests.horovodrun import horovodrun
from tests.laws.cases import Case
from tests.laws.task import WINDOWS
from tests.train.finite_program import LAYOUTS, SPOILT, Spoilt


@cache
def results() -> dict[str, Any]:
    """Two nodes of two ranks, one launch."""
    found = horovodrun(
        ["-m", "tests.train.finite_program"], timeout=600, environment={"HOROVOD_CYCLE_TIME": "5"}
    )
    lines = [json.loads(line) for line in found.lines(0) if line.startswith("{")]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("spoilt", SPOILT, ids=lambda spoilt: spoilt.name)
def test_all_ranks_end_alike_and_keep_what_was_good(spoilt: Spoilt) -> None:
    found = results()[spoilt.name]
    first, *others = found["said"]
    assert others == [first] * 3
    number = {
        "gradient": "the gradient norm in",
        "loss": "the loss of",
        "parameters": "the loss of",
    }
    # A pause may be the first to see values that no window has used yet.
    after = "the parameters or batch statistics after"
    begins = [f"{number[spoilt.kind]} window {spoilt.seen} is", f"{after} window {spoilt.seen} are"]
    assert first.startswith(tuple(begins)), first
    kept = [window for window in (2, 4, 6) if window < spoilt.seen]
    assert found["checkpoints"] == kept


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: case.name)
def test_the_gradients_norm_is_that_of_all_elements_once(case: Case) -> None:
    """However they are laid out and whichever way they go."""
    same = next(each for each in LAYOUTS if each.passes == case.passes)
    own, expected = (results()[each.name]["norms"] for each in (case, same))
    assert len(own) == WINDOWS
    assert own == pytest.approx(expected, rel=1e-10)
