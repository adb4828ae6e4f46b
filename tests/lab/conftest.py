"""Fixtures of tests that begin without a lab."""

from collections.abc import Iterator

import pytest

from tests.labs import Way, require_lab, traces


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Way:
    """None is up yet."""
    require_lab(request.param)
    way: Way = request.param
    return way


@pytest.fixture
def before(lab: Way) -> Iterator[dict[str, object]]:
    """The machine without a lab; afterwards it is without one again."""
    lab.harness("lab", "down")
    try:
        yield traces()
    finally:
        lab.harness("lab", "down")
