"""The command line: parses, calls, prints; the only place that catches what a user did wrong."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 well, 1 failed, 2 the user's mistake, told in one line on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.command(parsed)
        return code
    except UserError as error:
        print(f"harness: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harness", description="Trains classifiers with very many classes, and compares how."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="one training; under horovodrun, on all its ranks")
    train.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value")
    train.add_argument("--folder", type=Path, help="where this run's files go")
    train.set_defaults(command=_train)
    return parser


def _train(parsed: argparse.Namespace) -> int:
    from harness.config import load

    try:
        config = load(parsed.experiment, parsed.overrides)
    except UserError:
        if os.environ.get("HOROVOD_RANK", "0") != "0":
            return 2  # Rank 0 says it for all.
        raise
    from harness.run import run

    run(config, parsed.folder)
    return 0
