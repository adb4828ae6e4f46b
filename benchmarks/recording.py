"""What benchmarks have in common: how often they measure, at which commit, and what they keep."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def number_of_rounds(text: str) -> int:
    """An argument: the number of rounds, of which quartiles need two."""
    if (found := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, for quartiles; got {found}")
    return found


def commit_of(facts: Mapping[str, Any]) -> str:
    """The commit of an `environment()`, and whether files were changed since."""
    return f"{facts['git_commit']}{' with changes' if facts['git_dirty'] else ''}"


def keep(text: str, file: Path | None) -> None:
    """Writes the text to `file`, whose folder is made, if one was asked for. Print it first: what
    was measured must not be lost with a file that cannot be written."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
