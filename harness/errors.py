"""Errors that are reported in one line: what is wrong, what was found, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


def one_line(error: object, most: int | None = None) -> str:
    """An error's text on one line, at most `most` characters of it."""
    return " ".join(str(error).split())[:most]


class UserError(Exception):
    """A mistake that the user can fix; its message is one line and ends with what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class AlikeOnAllRanks(UserError):
    """A mistake that every rank finds by itself, before any of them communicates.

    The first rank reports it. Another rank reports it only if it has not been ended after a while,
    because then the first rank did not find the same.
    """


@contextmanager
def alike_on_all_ranks() -> Iterator[None]:
    """Inside the block every rank finds the same mistakes of the user: only one reports them."""
    try:
        yield
    except UserError as error:
        raise AlikeOnAllRanks(str(error)) from error


class ReportedByAnotherRank(Exception):
    """Raised on all other ranks when one rank reports a user's mistake; they exit silently.

    A rank prints `otherwise` if it has not been ended after a while, because then it was the only
    one.
    """

    def __init__(self, otherwise: str = "") -> None:
        super().__init__(otherwise)
        self.otherwise = otherwise


class RunFailed(Exception):
    """A training that cannot continue, found by all ranks alike; its message is one line.

    The command line prints it on rank 0, without a traceback, and exits with its code.
    """

    exit_code = 1


DIVERGED = "training diverged"
"""Start of the message of a training that diverged."""


class Diverged(RunFailed):
    """A training whose loss, gradients or parameters are no longer finite."""

    def __init__(self, found: str, advice: str, window: int | None = None) -> None:
        super().__init__(f"{DIVERGED}: {found}; {advice}")
        self.found = found
        """What is not finite, and in which window."""
        self.advice = advice
        self.window = window
        """Windows after which it was not finite; None if that is only known of the end."""
