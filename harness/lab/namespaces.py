"""Linux' namespaces and mounts, by the system calls that Python 3.11 does not have."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

# From Linux' sched.h, mount.h and prctl.h.
MOUNTS, NAMES, USERS, PROCESSES, NETWORK = 0x20000, 0x4000000, 0x10000000, 0x20000000, 0x40000000
BIND, RECURSIVE, PRIVATE, DETACHED = 0x1000, 0x4000, 0x40000, 2
HARMLESS = 0x2 | 0x4 | 0x8
"""No programs that change users, no devices, no programs."""
PR_SET_PDEATHSIG, PIDFD_OPEN = 1, 434

THIS_NETWORK = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(kinds: int) -> None:
    """Parts this process from its namespaces of these kinds: it has new ones.

    Those of processes hold its children, and not itself.
    """
    _succeeded(_libc.unshare(kinds), "unshare")


def enter(*namespaces: Path) -> None:
    """By their files, as /proc and mounts have them, in this order."""
    with ExitStack() as opened:
        # All before the first: in another one the paths may lead elsewhere.
        files = [opened.enter_context(each.open("rb", buffering=0)) for each in namespaces]
        for file, name in zip(files, namespaces, strict=True):
            _succeeded(_libc.setns(file.fileno(), 0), str(name))


def mount(source: str, target: Path, kind: str = "", flags: int = 0) -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    _succeeded(_libc.mount(*words, ctypes.c_ulong(flags), None), str(target))


def part_mounts() -> None:
    """What is mounted from now on is seen by this process and its children alone."""
    unshare(MOUNTS)
    mount("none", Path("/"), flags=RECURSIVE | PRIVATE)


def end_with_parent() -> None:
    """This process is killed as soon as its parent has ended, however that was."""
    _succeeded(_libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL)), "prctl")


def end_of(process: int) -> int:
    """A file that can be read once the process has ended, also where nobody collects it."""
    # Python has it only where it was built with headers of a new kernel.
    return _succeeded(_libc.syscall(PIDFD_OPEN, process, 0), f"process {process}")


@contextmanager
def networks() -> Iterator[None]:
    """The block may go to other networks; afterwards this thread is in the one where it was."""
    with THIS_NETWORK.open("rb", buffering=0) as here:
        try:
            yield
        finally:
            _succeeded(_libc.setns(here.fileno(), NETWORK), "setns")


@contextmanager
def network(namespace: Path) -> Iterator[None]:
    """The block is in that network; so is what it starts, for good."""
    with networks():
        enter(namespace)
        yield


def make_network(file: Path) -> None:
    """One that lasts as long as this file does."""
    file.touch()
    with networks():
        unshare(NETWORK)
        mount(str(THIS_NETWORK), file, flags=BIND)


def remove_network(file: Path) -> None:
    """What runs there must have been ended."""
    _libc.umount2(os.fsencode(file), DETACHED)  # fails where a killed process made the file alone
    file.unlink()


def _succeeded(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
