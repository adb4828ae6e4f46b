"""How a rank exits: its message, its exit code, and the order among ranks."""

import os
import re
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable

from harness.errors import AlikeOnAllRanks, ReportedByAnotherRank, RunFailed, UserError, one_line
from harness.parallel.launcher import is_first, is_one_of_many, launched

SILENT_SECONDS = 10.0
"""Seconds that a rank whose message another rank prints waits for the launcher to end it."""
LAST_WORDS_SECONDS = 120.0
"""The same if the first rank reports a failed run, since it first delivers records to the store."""
LISTEN_SECONDS = 2.0
"""Seconds that the rank with the cause waits for the messages that its error causes on others, so
that its own comes last."""

ENDED = re.compile(
    r"has been shut ?down|Connection (closed|reset|refused)|Broken pipe|Socket closed|"
    r"remote process exited|recv(Value)?Bytes|sendBytes|failed to recv",
    re.IGNORECASE,
)
UNANSWERED = re.compile(
    r"Timed out waiting \d+ms|Application timeout caused pair closure|"
    r"Watchdog caught collective operation timeout|wait timeout after"
)
"""Errors of Horovod, Gloo and NCCL if a rank has ended, and if a rank does not answer."""
UNREGISTERED = "Process set provided does not exist"
"""What Horovod says to a rank that launches something after another one has ended it."""
VICTIM = re.compile(r"^harness: rank \d+ on \S+: stopped because another rank ")
"""The message of a rank that is not the cause."""
CARRIERS = ("HorovodInternalError", "DistBackendError", "DistNetworkError", "DistStoreError")
CONSEQUENCES = "|".join(
    (f"(?i:{ENDED.pattern})", UNANSWERED.pattern, re.escape(UNREGISTERED), *CARRIERS)
)
"""Pattern of errors that a rank raises because another rank is gone."""


def leave(command: Callable[[], int]) -> int:
    """Runs a command. Returns its exit code: 0 success, 1 failure, 2 user error, reported in one
    line.

    The launcher ends all ranks as soon as one has exited, so the rank that reports exits first. A
    single rank raises an unexpected error unchanged. A rank whose groups are still open, as those
    of a card are after an error, does not return: it ends the process.
    """
    code = _reported(command)
    if is_one_of_many() and _has_open_groups():
        # As Python ends, it would close them, which waits for ranks that may not come.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _reported(command: Callable[[], int]) -> int:
    try:
        return command()
    except AlikeOnAllRanks as error:
        return _tell(error, 2) if is_first() else _leave_last(2, str(error))
    except UserError as error:
        return _say_cause(f"harness: {one_line(error)}\n", 2)
    except ReportedByAnotherRank as error:
        return _leave_last(2, error.otherwise)
    except RunFailed as error:
        code = error.exit_code
        return _tell(error, code) if is_first() else _leave_last(code, seconds=LAST_WORDS_SECONDS)
    except KeyboardInterrupt:
        return _tell("stopped", 1) if is_first() else 1
    except Exception as error:
        if not is_one_of_many():
            raise
        return _fail(error)


def _has_open_groups() -> bool:
    """Whether torch.distributed is open, which `open_ranks` leaves so only after an error."""
    distributed = sys.modules.get("torch.distributed")  # most commands do not import it
    return distributed is not None and distributed.is_initialized()


def consequence(error: BaseException) -> str | None:
    """What happened to another rank, if the error only shows that; None if this rank is the
    cause."""
    text = str(error)
    if type(error) is ValueError and UNREGISTERED in text:
        return "another rank ended"
    if not (type(error).__name__ in CARRIERS or type(error) is RuntimeError):
        return None
    if UNANSWERED.search(text):
        return "another rank did not answer"
    return "another rank ended" if ENDED.search(text) else None


def _fail(error: Exception) -> int:
    place = launched()
    because = consequence(error)
    if because is None:
        return _say_cause("".join(traceback.format_exception(error)), 1)
    _let_go()
    detail = one_line(error, 160)
    _tell(
        f"rank {place.rank} on {place.host}: stopped because {because} "
        f"({type(error).__name__}: {detail})",
        1,
    )
    return _leave_last(1)


def _say_cause(text: str, code: int) -> int:
    """Prints this rank's error after the messages that it causes on others. With a card it does so
    before: NCCL may abort a process whose connections end."""
    listens_first = not _has_open_groups()
    if listens_first:
        _listen()
    print(text, end="", file=sys.stderr, flush=True)
    if not listens_first:
        _listen()
    return code


def _listen() -> None:
    """Waits for the other ranks' messages about this one's error."""
    if is_one_of_many():
        _let_go()
        time.sleep(LISTEN_SECONDS)


def _let_go() -> None:
    """Closes the connections to other ranks, so that they notice that this one has ended.

    torch keeps them open as long as anything in the process refers to a group of ranks, as the
    traceback's variables do.
    """
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if number <= 2 or not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as connection:
                # Gloo aborts the process if its listening socket is closed.
                listens = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if connection.family in (socket.AF_INET, socket.AF_INET6) and not listens:
                    connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue  # already closed, or not connected


def _leave_last(code: int, otherwise: str = "", seconds: float = SILENT_SECONDS) -> int:
    time.sleep(seconds)
    return _tell(otherwise, code) if otherwise else code


def _tell(line: object, code: int) -> int:
    print(f"harness: {one_line(line)}", file=sys.stderr, flush=True)
    return code
