"""Every exchange ends on a card where it ends on a processor: late ones go by way of the host."""

import json
from functools import cache

import pytest
import torch

from tests.horovodrun import horovodrun
from tests.laws.card_program import EXACT, LOSSY
from tests.laws.cases import Case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no card")


@cache
def apart() -> dict[str, float]:
    found = horovodrun(["-m", "tests.laws.card_program"], 2, "localhost:1,127.0.0.1:1", timeout=250)
    (line,) = (line for line in found.lines(0) if line.startswith("{"))
    rows: dict[str, float] = json.loads(line)
    return rows


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_it_ends_where_a_processor_ends(case: Case) -> None:
    """Images are normalised in float32, whose last digits differ."""
    assert apart()[case.name] < 1e-6


@pytest.mark.parametrize("case", LOSSY, ids=lambda case: case.name)
def test_over_a_lossy_wire_it_ends_near(case: Case) -> None:
    """A number between two levels may fall on the other side."""
    assert apart()[case.name] < 2e-3
