"""The command line of `harness ui`, which shows MLflow's pages of the recorded runs."""

import argparse
from typing import Any

from harness.arguments import count, text

PORT = 5000


def add_ui(commands: Any) -> None:
    """`harness ui`."""
    ui = commands.add_parser(
        "ui", help="MLflow's pages of the runs so far: serves a file's, names a server's"
    )
    ui.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    ui.add_argument("--study", type=text, metavar="NAME", help="show the runs of this one")
    ui.add_argument(
        "--uri", type=text, help="MLflow store; none: MLFLOW_TRACKING_URI, else mlflow.db here"
    )
    ui.add_argument(
        "--host", default="127.0.0.1", help="address to serve at: 0.0.0.0 lets other machines look"
    )
    ui.add_argument(
        "--port",
        type=count(65_535),
        default=PORT,
        help="the first to try, 5000 by default; the next free one is taken",
    )
    ui.set_defaults(command=_ui)


def _ui(parsed: argparse.Namespace) -> int:
    from harness.errors import UserError
    from harness.tracking.ui import show

    if parsed.arguments:
        raise UserError(
            f"harness ui takes options only, found {parsed.arguments[0]}; see harness ui --help"
        )
    return show(parsed.uri, parsed.study, parsed.host, parsed.port)
