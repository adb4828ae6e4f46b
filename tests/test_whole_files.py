"""A text that is written anew is the old one or the new one, whatever happens meanwhile."""

import os
from pathlib import Path

import pytest

from harness.whole_files import PARTIAL, write_text


def test_what_cannot_be_written_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_text(file, "old")

    def full(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "new")
    assert file.read_text() == "old"


def test_the_text_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, steps = os.fsync, list[tuple[str, bool]]()
    file = tmp_path / "file"

    def noted(handle: int) -> None:
        synced = Path(f"/proc/self/fd/{handle}").readlink().name
        steps.append((synced, file.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(file, "new")
    assert steps == [(f"file{PARTIAL}", False), (tmp_path.name, True)]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
