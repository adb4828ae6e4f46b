"""`make test` has two workers, each with whole files at a time: most tests wait for processes that
start, or keep one core. Files that make the lab stay with one worker: a machine has one lab."""

from pathlib import Path

import pytest

MAKE_THE_LAB = {
    "cluster/test_doctor_lab.py",
    "cluster/test_lab.py",
    "cluster/test_lab_traces.py",
    "cluster/test_launch_lab.py",
    "test_pace.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        group = "the lab" if file in MAKE_THE_LAB else file
        item.add_marker(pytest.mark.xdist_group(group))
