"""Limits what a test host's processes get of the cores: control groups, version 1 or 2."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.lab.host import PREFIX

PERIOD_MICROSECONDS = 100_000
EMPTY_SECONDS = 5.0
"""A group can be removed some time after its last process ended."""


@dataclass(frozen=True)
class Groups:
    """The hierarchy of control groups that limits cores on this machine."""

    mount: Path
    unified: bool
    """Version 2."""

    @property
    def top(self) -> Path:
        return self.mount / PREFIX

    def lacks_controller(self) -> bool:
        """Version 2 hands the cores down to groups only where that is asked for."""
        return self.unified and "cpu" not in _words(self.mount / "cgroup.subtree_control")

    def take_back_controller(self) -> None:
        (self.mount / "cgroup.subtree_control").write_text("-cpu")

    def make(self, hosts: list[str]) -> None:
        """One group a host; together they weigh as much as so many machines of one process."""
        if self.lacks_controller():
            (self.mount / "cgroup.subtree_control").write_text("+cpu")
        self.top.mkdir()
        if self.unified:
            (self.top / "cgroup.subtree_control").write_text("+cpu")
            (self.top / "cpu.weight").write_text(str(min(10_000, 100 * len(hosts))))
        else:
            (self.top / "cpu.shares").write_text(str(1024 * len(hosts)))
        for host in hosts:
            (self.top / host).mkdir()

    def entrance(self, host: str) -> Path:
        return self.top / host / "cgroup.procs"

    def limit(self, host: str, cores: float | None) -> None:
        """The host's processes together get so many cores; None lifts it."""
        quota = None if cores is None else max(1000, int(cores * PERIOD_MICROSECONDS))
        if self.unified:
            text = f"{'max' if quota is None else quota} {PERIOD_MICROSECONDS}"
            (self.top / host / "cpu.max").write_text(text)
        else:
            (self.top / host / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (self.top / host / "cpu.cfs_quota_us").write_text(str(-1 if quota is None else quota))

    def limit_of(self, host: str) -> float | None:
        if self.unified:
            quota = (self.top / host / "cpu.max").read_text().split()[0]
        else:
            quota = (self.top / host / "cpu.cfs_quota_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / PERIOD_MICROSECONDS

    def remove(self) -> None:
        """All groups of the lab; their processes must have been ended."""
        if not self.top.exists():
            return
        end = time.monotonic() + EMPTY_SECONDS
        for folder in [*(path for path in self.top.iterdir() if path.is_dir()), self.top]:
            while True:
                try:
                    folder.rmdir()
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)


def find_groups(mounts: str) -> Groups | None:
    """The hierarchy with the controller of cores, in /proc/mounts; None where it is read only."""
    for line in mounts.splitlines():
        _, folder, kind, options, *_ = line.split()
        mount = Path(folder)
        if not kind.startswith("cgroup") or not os.access(mount, os.W_OK):
            continue
        if kind == "cgroup" and "cpu" in options.split(","):
            return Groups(mount, unified=False)
        if kind == "cgroup2" and "cpu" in _words(mount / "cgroup.controllers"):
            return Groups(mount, unified=True)
    return None


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def groups_here() -> Groups:
    """This machine's. Raises UserError where it has none."""
    groups = find_groups(Path("/proc/mounts").read_text())
    if groups is None:
        raise UserError(
            "no host's cores can be limited here: /proc/mounts shows no control group hierarchy "
            "with the cpu controller that this user may write; run with root where there is one"
        )
    return groups
