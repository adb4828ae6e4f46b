"""File systems: of which type one is, and whether several machines can see the same one."""

import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
ON_NETWORK = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs2", "glusterfs", "gpfs", "lustre"),
    *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "virtiofs", "wekafs"),
    *("fuse.ceph", "fuse.ceph-fuse", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys"),
    *("fuse.juicefs", "fuse.mfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
}
"""Types of file systems that several machines can mount at once, as the kernel names them."""


def file_system(folder: str | bytes | Path) -> str:
    """The type of the file system that a folder is on, such as ext4; "" if that is not known."""
    try:
        device = os.stat(folder).st_dev
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        # Number, parent, device, ...; any number of further fields; a hyphen; type, ...
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [number]:
            return after.partition(" ")[0]
    return ""


def is_on_network(folder: str | bytes | Path) -> bool:
    """Whether other machines may see the very same folder."""
    return file_system(folder) in ON_NETWORK
