"""Horovod's timeline: what its first rank negotiates and sends, tensor by tensor."""

import os
from pathlib import Path

import horovod.torch as hvd


def allow_timeline() -> None:
    """Lets a timeline be started later; call it on all ranks before Horovod is initialised.

    Horovod then runs a thread on the first rank that polls without a pause until it is shut down.
    """
    os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")


def start_timeline(path: Path) -> None:
    """Starts writing the timeline; only Horovod's first rank can."""
    hvd.start_timeline(str(path))


def stop_timeline() -> None:
    """Completes the timeline's file, which is empty if Horovod sent nothing."""
    hvd.stop_timeline()
