"""Linux namespaces and mounts, by the system calls that Python 3.11 does not have."""

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
"""MS_NOSUID, MS_NODEV, MS_NOEXEC: no set-uid programs, no devices, no programs at all."""
PR_SET_PDEATHSIG, PIDFD_OPEN = 1, 434

THIS_NETWORK = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(kinds: int) -> None:
    """Gives this process new namespaces of these kinds.

    A new process namespace applies to its children, not to the process itself.
    """
    _succeeded(_libc.unshare(kinds), "unshare")


def enter(*namespaces: Path) -> None:
    """Enters these namespaces, given by their files in /proc or in mounts, in this order."""
    with ExitStack() as opened:
        # All are opened first: once in another mount namespace, the paths may lead elsewhere.
        files = [opened.enter_context(each.open("rb", buffering=0)) for each in namespaces]
        for file, name in zip(files, namespaces, strict=True):
            _succeeded(_libc.setns(file.fileno(), 0), str(name))


def mount(source: str, target: Path, kind: str = "", flags: int = 0) -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    _succeeded(_libc.mount(*words, ctypes.c_ulong(flags), None), str(target))


def part_mounts() -> None:
    """Makes mounts private: those that follow are visible to this process and its children only."""
    unshare(MOUNTS)
    mount("none", Path("/"), flags=RECURSIVE | PRIVATE)


def end_with_parent() -> None:
    """Has the kernel kill this process as soon as its parent ends, in whatever way."""
    _succeeded(_libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL)), "prctl")


def end_of(process: int) -> int:
    """A pidfd of the process: readable once it has ended, even if its parent has not reaped it."""
    # os.pidfd_open exists only if Python was built with the headers of a newer kernel.
    return _succeeded(_libc.syscall(PIDFD_OPEN, process, 0), f"process {process}")


@contextmanager
def networks() -> Iterator[None]:
    """The block may enter other network namespaces; afterwards this thread is back in its own."""
    with THIS_NETWORK.open("rb", buffering=0) as here:
        try:
            yield
        finally:
            _succeeded(_libc.setns(here.fileno(), NETWORK), "setns")


@contextmanager
def network(namespace: Path) -> Iterator[None]:
    """Runs the block in that network namespace; processes that it starts stay there."""
    with networks():
        enter(namespace)
        yield


def make_network(file: Path) -> None:
    """Makes a network namespace that lasts as long as this file, on which it is mounted."""
    file.touch()
    with networks():
        unshare(NETWORK)
        mount(str(THIS_NETWORK), file, flags=BIND)


def remove_network(file: Path) -> None:
    """Removes the network namespace of this file; its processes must have ended."""
    # The result is ignored: it fails if a process was killed between touch and mount.
    _libc.umount2(os.fsencode(file), DETACHED)
    file.unlink()


def _succeeded(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
