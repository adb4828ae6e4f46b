"""Locks on files, which the kernel releases if their process ends, in whatever way."""

import fcntl
import math
import time
from typing import IO, Any

LOOK_SECONDS = 0.1


def lock(file: IO[Any], wait_seconds: float = math.inf) -> bool:
    """Locks an open file; False if another process still holds it after `wait_seconds`.

    On a file system without locks it returns True at once, and nothing is kept out.
    """
    end = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if math.isinf(end) else fcntl.LOCK_NB))
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(LOOK_SECONDS)
        except OSError:
            return True
        else:
            return True
