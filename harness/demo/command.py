"""The command line of `harness demo`."""

import argparse
from typing import Any

from harness.arguments import path


def add_demo(commands: Any) -> None:
    """Adds the `demo` command to the parser."""
    demo = commands.add_parser(
        "demo", help="the method against data parallelism over a slow link of this machine's own"
    )
    demo.add_argument("--folder", type=path, help="where runs, tables, charts and reports go")
    demo.set_defaults(command=_demo)


def _demo(parsed: argparse.Namespace) -> int:
    # Imported here because pandas and matplotlib take seconds to import.
    from harness.demo.demo import demo

    return demo(parsed.folder)
