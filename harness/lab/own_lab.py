"""A lab for one command: it is taken down when the command ends, even if it is killed.

`python -m harness.lab.own_lab` waits for the end of its standard input, which comes when the
process that started it ends, and takes the lab down.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from harness.errors import RunFailed, UserError

HARNESS = [sys.executable, "-m", "harness"]


class NoLab(UserError):
    """This machine does not let this user make a lab; the message is the reason."""


@contextmanager
def own_lab(hosts: int, slots: int, *options: str) -> Iterator[str]:
    """A lab that is up while the block runs; yields its hosts for -H.

    `options`: further options of `lab up`.

    Raises NoLab, and UserError if a lab is up already, which somebody may be using.
    """
    if _lab("status").returncode != 2:
        raise UserError("a lab is up on this machine; take it down first: harness lab down")
    watch = [sys.executable, "-m", "harness.lab.own_lab"]
    # In its own session, so that Ctrl-C does not reach it.
    with subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        made = _lab("up", "--hosts", str(hosts), "--slots", str(slots), *options)
        if made.returncode == 2:
            last = (made.stderr.strip().splitlines() or ["no reason was given"])[-1]
            raise NoLab(last.removeprefix("harness: "))
        if made.returncode:
            raise RunFailed(f"the lab does not start: {made.stderr.strip()}")
        yield ",".join(f"h{number}:{slots}" for number in range(1, hosts + 1))
    if watcher.returncode:
        raise RunFailed("the lab could not be taken down; try: harness lab down")


def _lab(*words: str) -> "subprocess.CompletedProcess[str]":
    """Runs one command of the lab and captures what it prints."""
    return subprocess.run([*HARNESS, "lab", *words], capture_output=True, text=True, check=False)


def run_in_lab(command: Sequence[str]) -> int:
    """Runs a command in the lab's first host, with its output shown; returns the exit code."""
    return subprocess.run([*HARNESS, "lab", "run", "--", *command], check=False).returncode


def set_rate(rate: str) -> None:
    subprocess.run([*HARNESS, "lab", "rate", rate], check=True)


def main() -> int:
    sys.stdin.buffer.read()
    return subprocess.run([*HARNESS, "lab", "down"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
