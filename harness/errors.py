"""The errors that end in one line: what is wrong, what was found, what to do."""


def one_line(error: object, most: int | None = None) -> str:
    """An error's text with its line breaks folded into blanks, `most` characters of it."""
    return " ".join(str(error).split())[:most]


class UserError(Exception):
    """A mistake the user can mend; its message is one line and ends with what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class AlikeOnAllRanks(UserError):
    """A mistake that every rank finds by itself, before any of them talks to another.

    The first rank says it; another rank only where nobody has ended it after a while, because the
    first did not find the same.
    """


class SaidByAnotherRank(Exception):
    """A user's mistake that one rank says for all: this one leaves without a word.

    `otherwise` is what it says where nobody has ended it after a while: it was the only one.
    """

    def __init__(self, otherwise: str = "") -> None:
        super().__init__(otherwise)
        self.otherwise = otherwise


class RunFailed(Exception):
    """A training that cannot go on, found by all ranks alike; its message is one line.

    The command line prints it on rank 0, without a traceback, and exits with code 1.
    """


DIVERGED = "training diverged"
"""Begins the line of a training that did."""


class Diverged(RunFailed):
    """A training whose loss, gradients or parameters are not finite any more."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{DIVERGED}: {found}; {advice}")
        self.found = found
        """What is not finite, and in which window."""
