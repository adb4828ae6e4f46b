"""Runs a command as a user without rights who can read this checkout and its Python: for root.

`python tests/as_user.py COMMAND ...`. Where a folder on the way is closed to others, one that leads
there and nowhere else is mounted over it, as is an empty one over HOME; only the command sees that.
`python tests/as_user.py --unable COMMAND ...`: as the same user, who may make no namespaces.
"""

import os
import sys
from pathlib import Path

from harness.lab.namespaces import BIND, RECURSIVE, USERS, mount, part_mounts, unshare

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534


def main(command: list[str]) -> None:
    if command[0] == "--unable":
        del command[0]
        _forbid_namespaces()
    else:
        part_mounts()
        _open_the_way([ROOT, Path(sys.prefix), Path(sys.base_prefix)])
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    os.execv(command[0], command)


def _open_the_way(paths: list[Path]) -> None:
    closed = {folder for path in paths for folder in path.parents if _is_closed(folder)}
    covered = [Path.home(), *sorted(closed)]
    hidden = [path for path in paths if any(path.is_relative_to(each) for each in covered)]
    seen = [os.open(path, os.O_PATH) for path in hidden]
    for folder in covered:
        if folder.exists():  # not behind one that is covered by now
            mount("tmpfs", folder, "tmpfs")
    for path, file in zip(hidden, seen, strict=True):
        path.mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{file}", path, flags=BIND | RECURSIVE)
        os.close(file)


def _is_closed(folder: Path) -> bool:
    return not folder.stat().st_mode & 0o001


def _forbid_namespaces() -> None:
    """In a user namespace of the user's own, where that is the user's to decide."""
    user, group = os.getuid(), os.getgid()
    unshare(USERS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


if __name__ == "__main__":
    main(sys.argv[1:])
