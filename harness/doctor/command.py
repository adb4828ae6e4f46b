"""The command line of `harness doctor`."""

import argparse
from typing import Any

from harness.arguments import MOST_RANKS, Arguments, add_command, count
from harness.errors import alike_on_all_ranks

ABOUT = (
    "Check machines, cards and links before a run.\n\n"
    "With an experiment it also checks that its model fits into memory and its files onto the "
    "disk."
)


def add_doctor(commands: Any) -> None:
    """`harness doctor`."""
    parser = add_command(commands, "doctor", ABOUT, "harness doctor --np 8 --hosts host1:4,host2:4")
    parser.add_argument("arguments", nargs="*", metavar="EXPERIMENT.yaml|key=value")
    parser.add_argument(
        "--np", "-np", type=count(MOST_RANKS), help="number of ranks to start with horovodrun"
    )
    parser.add_argument("--hosts", "-H", help="hosts to use: host:slots,host:slots")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.set_defaults(command=_doctor)


def _doctor(parsed: argparse.Namespace) -> int:
    from harness.doctor.doctor import diagnose, start

    if parsed.np or parsed.hosts:
        return start(parsed.arguments, parsed.np or 0, parsed.hosts, parsed.json)
    with alike_on_all_ranks():
        given = Arguments.split(parsed.arguments)
        return diagnose(given.experiments, given.overrides, parsed.json)
