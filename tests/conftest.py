"""`make test` has two workers, each with whole files at a time: most tests wait for processes that
start, or keep one core. Files that make the lab stay with one worker: a machine has one lab."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

MAKE_THE_LAB = {
    "tests/cluster/test_doctor_lab.py",
    "tests/cluster/test_lab.py",
    "tests/cluster/test_lab_traces.py",
    "tests/cluster/test_launch_lab.py",
    "tests/test_pace.py",
}


class ByFile(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "the lab" if file in MAKE_THE_LAB else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)
