"""The file system of a folder is the one that the kernel names for it."""

import os
from pathlib import Path

import pytest

from harness import mounts
from harness.mounts import file_system, is_on_network


def test_the_kernel_s_own_file_systems_are_known() -> None:
    assert file_system("/proc") == "proc"
    assert file_system(b"/sys") == "sysfs"
    assert not is_on_network("/proc")


def test_a_folder_that_is_not_there_is_on_none() -> None:
    assert file_system("/nowhere") == ""


@pytest.mark.parametrize(
    ("kind", "on_network"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("ext3", False)]
)
def test_the_device_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, on_network: bool
) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    listed = tmp_path / "mountinfo"
    listed.write_text(
        "21 1 8:199 / / rw - xfs /dev/sda1 rw\n"
        f"22 21 {number} / /images rw,noatime shared:1 master:2 - {kind} host:/images rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTS", listed)
    assert file_system(tmp_path) == kind
    assert is_on_network(tmp_path) == on_network
    listed.unlink()
    assert not is_on_network(tmp_path)
