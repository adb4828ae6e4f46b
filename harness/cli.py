"""The command line: parses, calls, prints; the only place that catches what a user did wrong."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from harness.arguments import MOST_RANKS, Arguments, count, path
from harness.calibrate.command import add_calibrate
from harness.compare.command import add_compare
from harness.demo.command import add_demo
from harness.errors import AlikeOnAllRanks, UserError
from harness.lab.command import add_lab
from harness.launch.command import add_launch
from harness.leaving import leave
from harness.parallel.launcher import is_first, refuse_others
from harness.plan.command import add_plan
from harness.terminal import lasting_output
from harness.tracking.command import add_ui

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
        parser.error(message)
    if rest:
        parsed.arguments += rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="harness",
        description="Trains classifiers with very many classes and compares ways to do it.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="one training; under horovodrun, on all its ranks")
    train.add_argument("arguments", nargs="*", metavar="EXPERIMENT.yaml|key=value")
    train.add_argument("--folder", type=path, help="where this run's files go")
    train.set_defaults(command=_train)
    add_compare(commands)
    doctor = commands.add_parser("doctor", help="checks machines, cards and links before a run")
    doctor.add_argument("arguments", nargs="*", metavar="EXPERIMENT.yaml|key=value")
    doctor.add_argument(
        "--np", "-np", type=count(MOST_RANKS), help="ranks to start with horovodrun"
    )
    doctor.add_argument("--hosts", "-H", help="hosts to use: host:slots,host:slots")
    doctor.add_argument("--json", action="store_true", help="print one line of JSON")
    doctor.set_defaults(command=_doctor)
    add_plan(commands)
    add_calibrate(commands)
    add_launch(commands)
    add_lab(commands)
    add_demo(commands)
    add_ui(commands)
    return parser


def _train(parsed: argparse.Namespace) -> int:
    from harness.config import load_with_notes

    try:
        given = Arguments.split(parsed.arguments)
        loaded = load_with_notes(given.only_experiment("train"), given.overrides)
    except UserError as error:
        raise AlikeOnAllRanks(str(error)) from error
    from harness.train.run import run

    if is_first():
        for note in loaded.notes:
            print(f"harness: {note}", flush=True)
    run(loaded.config, parsed.folder)
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from harness.doctor.doctor import diagnose, start

    if parsed.np or parsed.hosts:
        return start(parsed.arguments, parsed.np or 0, parsed.hosts, parsed.json)
    try:
        given = Arguments.split(parsed.arguments)
        return diagnose(given.experiments, given.overrides, parsed.json)
    except UserError as error:
        raise AlikeOnAllRanks(str(error)) from error
