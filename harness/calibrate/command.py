"""The command line of calibrate, which times the pieces of a step under horovodrun."""

import argparse
from typing import Any

from harness.arguments import Arguments, add_command, path, positive
from harness.errors import alike_on_all_ranks

SECONDS = 0.6
"""Time for each timed operation, unless --seconds is given."""
MOST_SECONDS = 600.0


def add_calibrate(commands: Any) -> None:
    """`harness calibrate`."""
    parser = add_command(
        commands,
        "calibrate",
        "Time the pieces of a step under horovodrun.\n\n`harness plan --hosts` starts it.",
        "horovodrun -np 2 harness calibrate experiments/glyphs/data_parallel.yaml "
        "--output times.json",
    )
    parser.add_argument("arguments", nargs="+", metavar="EXPERIMENT.yaml|key=value")
    parser.add_argument(
        "--output", type=path, help="output file (JSON) on the first rank's host (default: print)"
    )
    add_seconds(parser)
    parser.set_defaults(command=_calibrate)


def add_seconds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds",
        type=positive(MOST_SECONDS),
        default=SECONDS,
        help=f"time for each measurement (default: {SECONDS})",
    )


def _calibrate(parsed: argparse.Namespace) -> int:
    from harness.config import load

    with alike_on_all_ranks():
        given = Arguments.split(parsed.arguments)
        config = load(given.only_experiment("calibrate"), given.overrides)
    from harness.calibrate.calibrate import calibrate

    calibrate(config, parsed.output, parsed.seconds)
    return 0
