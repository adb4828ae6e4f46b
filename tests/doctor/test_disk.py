"""Free space and write permission in the folders of a run."""

import shutil
from pathlib import Path

import pytest

from harness.config import Config, TrainConfig
from harness.doctor.disk import DiskFacts, Place, disk_facts, judge_disk
from tests.doctor.seats import FOUR, seats

GB = 10**9


def place(purpose: str = "run's folder", **changed: object) -> Place:
    good = {"exists": True, "free_bytes": 50 * GB, "writable": True, "needed_bytes": GB}
    return Place.model_validate({"purpose": purpose, "folder": "/x"} | good | changed)


def judged(found: Place) -> tuple[str, str]:
    (finding,) = judge_disk(FOUR[:2], [DiskFacts(places=[place()]), DiskFacts(places=[found])])
    return finding.level, finding.found


def test_room_enough() -> None:
    assert judged(place()) == ("ok", "at least 50 GB free on every host in /x")


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (place(free_bytes=GB // 2), "fail"),
        (place(free_bytes=3 * GB // 2), "warn"),
        (place(writable=False), "fail"),
        # The cache may already hold all images.
        (place("cache", writable=False), "warn"),
        (place("cache", free_bytes=GB // 2), "warn"),
        (place("cache", writable=False, exists=False), "fail"),
    ],
)
def test_what_is_missing_is_told_with_its_host(found: Place, level: str) -> None:
    got, said = judged(found)
    assert got == level
    assert f"the {found.purpose} /x on h2" in said


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "train": {"steps": 10, "checkpoint_every": 5, "save": True},
            "data": {"cache": str(tmp_path / "a" / "b")},
            "tracking": {"folder": str(tmp_path)},
        }
    )
    cache, run = disk_facts(config, checkpoint_bytes=100, first=True).places
    assert (cache.exists, cache.writable, run.exists) == (False, True, True)
    assert cache.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert run.needed_bytes == 300
    assert cache.needed_bytes == 8 * 1000 * 32 * 32
    assert len(disk_facts(config, 0, first=False).places) == 2, "hosts may keep their own parts"
    silent = config.model_copy(update={"train": TrainConfig(steps=10)})
    assert len(disk_facts(silent, 0, first=False).places) == 1


@pytest.mark.parametrize(("keep", "most"), [(0, 6), (1, 2), (4, 5), (9, 6)])
def test_checkpoints_that_are_removed_need_no_room(keep: int, most: int) -> None:
    train = {"steps": 10, "checkpoint_every": 2, "save": True, "keep_checkpoints": keep}
    config = Config.model_validate({"train": train})
    assert disk_facts(config, checkpoint_bytes=100, first=True).places[1].needed_bytes == most * 100


def test_what_a_run_that_goes_on_has_saved_needs_no_room(tmp_path: Path) -> None:
    """Where its own checkpoints fill the disk it could otherwise never go on."""
    train = {"steps": 10, "checkpoint_every": 2, "save": True}
    config = Config.model_validate({"train": train, "tracking": {"folder": "elsewhere"}})
    run = tmp_path / "run"
    for window, size in (("000000002", 100), ("000000004.partial", 40)):
        (run / "checkpoints" / window).mkdir(parents=True)
        (run / "checkpoints" / window / "backbone.safetensors").write_bytes(bytes(size))
    (run / "metrics.jsonl").write_bytes(bytes(10))

    def place(folder: Path, checkpoint_bytes: int = 100) -> Place:
        return disk_facts(config, checkpoint_bytes, first=True, folder=folder).places[1]

    assert (place(run).folder, place(run).needed_bytes) == (str(run), 600 - 140)
    assert place(run, checkpoint_bytes=20).needed_bytes == 0
    assert place(tmp_path / "new").needed_bytes == 600


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    values = {"train": {"steps": 1}, "tracking": {"folder": str(tmp_path / "runs" / "x")}}
    facts = disk_facts(Config.model_validate(values), 0, first=True)
    assert not facts.places[1].writable


def test_silent_ranks_say_nothing() -> None:
    facts = [DiskFacts(places=[place()]), None]
    assert judge_disk(seats(("h1", 2)), facts)[0].level == "ok"
