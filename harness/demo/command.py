"""The command line of `harness demo`."""

import argparse
from typing import Any

from harness.arguments import add_command, path


def add_demo(commands: Any) -> None:
    """Adds the `demo` command to the parser."""
    demo = add_command(
        commands,
        "demo",
        "Compare the method with data parallelism over an emulated slow link.\n\n"
        "It takes up to ten minutes on two cores.",
        "harness demo --folder first",
    )
    demo.add_argument(
        "--folder", type=path, help="output folder for runs, tables, charts and reports"
    )
    demo.set_defaults(command=_demo)


def _demo(parsed: argparse.Namespace) -> int:
    # Imported here because pandas and matplotlib take seconds to import.
    from harness.demo.demo import demo

    return demo(parsed.folder)
