"""One command at a time changes a lab; a killed one leaves the turn to the next."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import UserError
from harness.lab.host import PREFIX

TURN_SECONDS = 60.0


@contextmanager
def turn() -> Iterator[None]:
    """Of this user, in this network namespace; such a name ends with the process that has it."""
    with socket.socket(socket.AF_UNIX) as name:
        end = time.monotonic() + TURN_SECONDS
        while True:
            try:
                name.bind(f"\0{PREFIX}-turn-{os.geteuid()}")
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise UserError("another `harness lab` is at work; try again") from error
                time.sleep(0.1)
        yield
