"""What a checkpoint costs is measured where it happens: the drain, the copies, the disk."""

import json
from pathlib import Path

from benchmarks.saving import VARIANTS
from harness.mounts import file_system
from tests.horovodrun import horovodrun

ROUNDS = 2


def test_each_time_ends_where_its_name_says(tmp_path: Path) -> None:
    words = ["--rounds", str(ROUNDS), "--windows", "6", "--classes", "400"]
    command = ["-m", "benchmarks.saving", *words, "--folder", str(tmp_path)]
    result = horovodrun(command)
    (found,) = [json.loads(line) for line in result.lines(0) if line.startswith("{")]
    assert found["file_system"] == file_system(tmp_path)
    assert found["bytes"] > 0
    assert tuple(found["ms"]) == VARIANTS
    nothing, thread, waits = found["ms"].values()
    assert nothing["written"] == []
    for times in (nothing, thread, waits):
        assert len(times["still"]) == len(times["whole"]) == ROUNDS
    for times in (thread, waits):
        assert len(times["written"]) == ROUNDS
    # Where training waits, the checkpoint is on the disk before a window follows.
    for still, written, whole in zip(*map(waits.get, ("still", "written", "whole")), strict=True):
        assert written <= still < whole
    assert min(*thread["still"], *thread["written"]) > 0
    assert list(tmp_path.iterdir()) == []
