"""An MLflow server that is stopped for a while, as by a full disk or a cut cable."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STOPPED_SECONDS, LONGEST_SECONDS = 12, 900.0
"""How long it is stopped, and the longest wait for the moment to do so."""
PORT = 5123


@contextmanager
def served(database: str, serves: bool) -> Iterator[tuple[str, int]]:
    """The address of the store, and the process that serves it; 0 if it is a file."""
    if not serves:
        yield database, 0
        return
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(PORT), "--workers", "1"]
    server = subprocess.Popen(
        [*command, "--backend-store-uri", database],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{PORT}"), 300)
        yield f"http://127.0.0.1:{PORT}", server.pid
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(uri: str) -> bool:
    import requests

    try:
        return bool(requests.get(f"{uri}/health", timeout=2).ok)
    except requests.RequestException:
        return False


def stop_for_a_while(group: int, mark: Path) -> None:
    """Stops the whole store when one of its processes is stopped, and lets it go on later."""
    wait_for(mark.exists, LONGEST_SECONDS)
    os.killpg(group, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    os.killpg(group, signal.SIGCONT)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()
