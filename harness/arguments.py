"""Arguments of commands: experiments, overrides, paths and numbers within bounds."""

import argparse
import math
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.paths import expanded

SUFFIXES = (".yaml", ".yml")
MOST_RANKS = 65_536
"""No launcher known here starts more."""
MOST_SEEDS = 1000
"""Most repetitions of a study; thirty already show what seeds can show."""


HELP_WIDTH = 78


def add_command(
    commands: Any, name: str, about: str, example: str, **settings: Any
) -> argparse.ArgumentParser:
    """Adds a command. Its line in `harness --help` is the first sentence of `about`, and its own
    --help begins with all of it and an example."""
    paragraphs = [textwrap.fill(each, HELP_WIDTH) for each in about.split("\n\n")]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about.partition(".")[0],
        description="\n\n".join([*paragraphs, f"example:\n  {example}"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **settings,
    )
    return parser


def add_continue(parser: argparse.ArgumentParser) -> None:
    """The option --continue."""
    parser.add_argument(
        "--continue",
        dest="goes_on",
        action="store_true",
        help="if FOLDER holds this run, go on from its newest good checkpoint",
    )


def check_continue(parsed: argparse.Namespace) -> None:
    """Raises UserError if it is not known which run goes on."""
    if parsed.goes_on and parsed.folder is None:
        raise UserError("--continue goes on with the run of a folder; name it with --folder")


@dataclass(frozen=True)
class Arguments:
    """The arguments of a command without its options, each kind in the given order."""

    experiments: tuple[Path, ...]
    overrides: tuple[str, ...]
    """Overrides, as key=value."""

    @classmethod
    def split(cls, given: Sequence[str]) -> "Arguments":
        """Splits arguments: one with a `=` is an override, unless it is the name of an existing
        YAML file."""
        overrides = tuple(each for each in given if is_override(each))
        try:
            experiments = tuple(path(each) for each in given if not is_override(each))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"an experiment: {error}") from error
        return cls(experiments, overrides)

    def only_experiment(self, command: str) -> Path:
        """The only experiment. Raises UserError if there is none, or more than one."""
        if len(self.experiments) != 1:
            found = ", ".join(map(str, self.experiments)) or "none"
            raise UserError(
                f"harness {command} takes one EXPERIMENT.yaml, found {found}; name one, and write "
                f"overrides as key=value"
            )
        return self.experiments[0]


def is_override(argument: str) -> bool:
    return "=" in argument and not (argument.endswith(SUFFIXES) and os.path.isfile(argument))


def path(given: str) -> Path:
    """For argparse: a path with a leading ~ expanded, and made absolute if it would look like an
    option to a program that gets it."""
    try:
        whole = Path(expanded(text(given)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{given} does not fit: {error}") from error
    return whole.absolute() if given.startswith("-") else whole


def count(most: int, least: int = 1) -> Callable[[str], int]:
    """For argparse: a whole number from `least` to `most`."""

    def read(text: str) -> int:
        number = int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text) else None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{text} does not fit; give a whole number from {least:,} to {most:,}"
            )
        return number

    return read


def positive(most: float) -> Callable[[str], float]:
    """For argparse: a number above 0 and at most `most`."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number <= most:
            raise argparse.ArgumentTypeError(
                f"{text} does not fit; give a number above 0 and at most {most:g}"
            )
        return number

    return read


def text(given: str) -> str:
    """For argparse: any text that is not empty."""
    if not given:
        raise argparse.ArgumentTypeError("it is empty; give a text")
    return given
