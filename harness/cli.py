"""The command line: parses, calls, prints; the only place that catches what a user did wrong."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from harness.calibrate.command import add_calibrate
from harness.checkpoint.command import add_checkpoint
from harness.compare.command import add_compare
from harness.demo.command import add_demo
from harness.doctor.command import add_doctor
from harness.errors import AlikeOnAllRanks
from harness.evaluate.command import add_evaluate
from harness.lab.command import add_lab
from harness.launch.command import add_launch
from harness.leaving import leave
from harness.pack.command import add_pack
from harness.parallel.launcher import refuse_others
from harness.plan.command import add_plan
from harness.terminal import lasting_output
from harness.tracking.command import add_ui
from harness.train.command import add_train

ON_ALL_RANKS = (["train"], ["doctor"], ["calibrate"])
"""Commands that horovodrun starts on every rank; all others start ranks themselves."""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, as all commands do, and accepts no abbreviations: --seed is not
    --seeds."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise AlikeOnAllRanks(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit code: 0 success, 1 failure, 2 user error, reported in one
    line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    with lasting_output():
        return leave(partial(_main, given))


def _main(arguments: Sequence[str]) -> int:
    # Read when MLflow is imported, which many modules do late: otherwise it writes an identity into
    # the user's home and reports to its makers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    refuse_others(starts_ranks=arguments[:1] not in ON_ALL_RANKS)
    parsed = _parse(arguments)
    code: int = parsed.command(parsed)
    return code


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses like argparse, but key=value may also come after options."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    takes_more = getattr(parsed, "arguments", None) is not None
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not takes_more]
    if strange:
        message = f"unrecognized arguments: {' '.join(strange)}"
        if takes_more and not strange[0].startswith("-"):
            message += "; name all experiments in one place, before the options"
        # argparse leaves these to the outer parser, whose help lists no options.
        raise AlikeOnAllRanks(f"{message}; see {parser.prog} {arguments[0]} --help")
    if rest:
        parsed.arguments += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="harness",
        description="Trains classifiers with very many classes and compares ways to do it. "
        "`harness COMMAND --help` has an example of each command.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train(commands)
    add_launch(commands)
    add_compare(commands)
    add_checkpoint(commands)
    add_evaluate(commands)
    add_doctor(commands)
    add_plan(commands)
    add_calibrate(commands)
    add_pack(commands)
    add_lab(commands)
    add_demo(commands)
    add_ui(commands)
    return parser
