"""Horovod's own timeline: what its first rank negotiates and sends, tensor by tensor."""

import os
from pathlib import Path

import horovod.torch as hvd


def allow_timeline() -> None:
    """To be called on all ranks before Horovod is opened: without it none can start later.

    It starts a thread on the first rank that polls without a pause until Horovod is shut down.
    """
    os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")


def start_timeline(path: Path) -> None:
    """On the first rank: Horovod of no other rank writes one."""
    hvd.start_timeline(str(path))


def stop_timeline() -> None:
    """The file is whole when this returns; empty where Horovod sent nothing."""
    hvd.stop_timeline()
