"""Limits the processor time of a test host's processes: control groups, version 1 or 2."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.lab.host import PREFIX

PERIOD_MICROSECONDS = 100_000
"""Period over which the kernel enforces a limit."""
EMPTY_SECONDS = 5.0
"""Time to wait for a group to become removable after its last process has ended."""


@dataclass(frozen=True)
class Groups:
    """The hierarchy of control groups with which this machine limits processor time."""

    mount: Path
    unified: bool
    """Whether this is version 2, with one hierarchy for all controllers."""

    @property
    def top(self) -> Path:
        """The group of the whole lab, which holds one group for each host."""
        return self.mount / PREFIX

    def lacks_controller(self) -> bool:
        """Whether the cpu controller must first be enabled for groups, as version 2 demands."""
        return self.unified and "cpu" not in _words(self.mount / "cgroup.subtree_control")

    def take_back_controller(self) -> None:
        """Disables the cpu controller for groups, unless another group has a limit by now."""
        limits = {"cpu.max": "max", "cpu.weight": "100"}
        used = any(
            not file.read_text().startswith(default)
            for name, default in limits.items()
            for file in self.mount.glob(f"*/{name}")
        )
        if not used:
            with suppress(OSError):  # groups below have enabled it for themselves
                (self.mount / "cgroup.subtree_control").write_text("-cpu")

    def make(self, hosts: list[str]) -> None:
        """Makes one group for each host.

        All together they get the weight of `len(hosts)` processes: 100 each in version 2, 1024 each
        in version 1.
        """
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
        """The file that takes a process into the host's group when its pid is written there."""
        return self.top / host / "cgroup.procs"

    def limit(self, host: str, cores: float | None) -> None:
        """Limits all processes of the host together to `cores` cores; None lifts the limit."""
        # The group may run for `quota` microseconds in each period, summed over all cores.
        quota = None if cores is None else max(1000, int(cores * PERIOD_MICROSECONDS))
        if self.unified:
            text = f"{'max' if quota is None else quota} {PERIOD_MICROSECONDS}"
            (self.top / host / "cpu.max").write_text(text)
        else:
            (self.top / host / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (self.top / host / "cpu.cfs_quota_us").write_text(str(-1 if quota is None else quota))

    def limit_of(self, host: str) -> float | None:
        """Cores that the host's processes may use together; None if there is no limit."""
        if self.unified:
            quota = (self.top / host / "cpu.max").read_text().split()[0]
        else:
            quota = (self.top / host / "cpu.cfs_quota_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / PERIOD_MICROSECONDS

    def remove(self) -> None:
        """Removes all groups of the lab; their processes must have ended."""
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
    """The writable hierarchy with the cpu controller, found in the text of /proc/mounts."""
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
    """The groups of this machine. Raises UserError if it has none that this user may write."""
    groups = find_groups(Path("/proc/mounts").read_text())
    if groups is None:
        raise UserError(
            "the hosts' cores cannot be limited here: /proc/mounts shows no control group "
            "hierarchy with the cpu controller that this user may write; run as root on a machine "
            "that has one"
        )
    return groups
