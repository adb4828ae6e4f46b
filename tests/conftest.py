"""`make test` has two workers, each with whole files at a time: most tests wait for processes that
start, or keep one core.

Files that make the lab stay with one worker, for a machine has one lab. Tests that judge how fast
the machine is, or how long a run took, have it to themselves.
"""

import fcntl
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from harness.train.early_end import REQUEST

ROOT = Path(__file__).resolve().parent.parent
MAKE_THE_LAB = ("in_ways", "lab_of", "require_lab")
"""What a file takes from tests/labs.py that does: a list of files would forget the next one."""
ALONE = {
    "tests/doctor/test_doctor.py",
    "tests/doctor/test_doctor_lab.py",
    "tests/plan/test_from_calibration.py",
    "tests/train/test_choose_pieces.py",
    "tests/train/test_train.py",
}


@cache
def makes_the_lab(file: str) -> bool:
    text = (ROOT / file).read_text(encoding="utf-8")
    return any(name in text for name in MAKE_THE_LAB)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder, as tmp_path is, that is open to whatever user runs a command in it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.fixture(autouse=True)
def no_signal_stays_ignored() -> Iterator[None]:
    """A training leaves the request to end early ignored, because its process ends; in a test it
    goes on, and programs that later tests start would ignore that signal too."""
    before = signal.getsignal(REQUEST)
    yield
    signal.signal(REQUEST, before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store without runs, to copy; making its tables takes MLflow seconds."""
    from harness.tracking.connection import open_store

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{file}")
    return file


class ByFile(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "the lab" if makes_the_lab(file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test's fixtures are inside: what a training took is measured in one."""
    alone = item.nodeid.partition("::")[0] in ALONE
    run = getattr(item.config, "workerinput", {}).get("testrunuid")
    if run is None:
        return (yield)
    with _turn(Path(tempfile.gettempdir()) / f"tests-{run}", alone):
        return (yield)


@contextmanager
def _turn(place: Path, alone: bool) -> Iterator[None]:
    """The kernel releases a lock with its process. The door lets a test that waits to be alone keep
    others from going in before it."""
    with place.with_suffix(".door").open("w") as door, place.with_suffix(".room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
