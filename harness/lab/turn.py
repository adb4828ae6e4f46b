"""Lets one command at a time change a lab; if it is killed, the next one gets its turn."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import UserError
from harness.lab.host import PREFIX

TURN_SECONDS = 60.0
"""Time to wait for another command."""


@contextmanager
def turn() -> Iterator[None]:
    """Holds the turn of this user in this network namespace while the block runs.

    The lock is an abstract socket name, which the kernel frees when its process ends.
    """
    with socket.socket(socket.AF_UNIX) as name:
        end = time.monotonic() + TURN_SECONDS
        while True:
            try:
                name.bind(f"\0{PREFIX}-turn-{os.geteuid()}")
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise UserError(
                        "another `harness lab` command is running; try again"
                    ) from error
                time.sleep(0.1)
        yield
