"""Fixtures for tests that start without a lab."""

from collections.abc import Iterator

import pytest

from tests.labs import Way, require_lab, traces


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Way:
    """The way in which labs are made; none is up yet."""
    require_lab(request.param)
    way: Way = request.param
    return way


@pytest.fixture
def before(lab: Way) -> Iterator[dict[str, object]]:
    """Traces on the machine without a lab; the test must leave the machine without one."""
    lab.harness("lab", "down")
    try:
        yield traces()
    finally:
        lab.harness("lab", "down")
